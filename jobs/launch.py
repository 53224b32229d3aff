"""Ray Train around the same worker: processes here or in a cluster, started again when one dies.

Ray gets numbers to show and nothing to keep: checkpoints are the run's own, and each start goes on
from the newest. `fit()` gives up when its controller dies, so a supervisor stands around it.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jobs.training import TrainingJob
from jobs.training_display import Attendant, Display
from pipeline.errors import RunError, UserError, one_line
from pipeline.pools.ray import join_cluster, start_embedded
from vsp_model.files import CheckpointError
from vsp_model.train.loop import Outcome, Watcher

if TYPE_CHECKING:
    from vsp_model.train.distributed import Comm

MAX_RESTARTS = 3
POLL_S = 0.5
_REASON_CHARS = 160  # Ray's own reasons go on for a page
TALK_S = 1.0  # between two words of the first worker to the driver
# Ray Train copies these to its workers' surroundings when they are set here.
ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


class Board:
    """An actor between driver and first worker: progress and lines one way, "stop" the other."""

    def __init__(self) -> None:
        """Nothing has been said yet."""
        self._events: list[tuple[str, Any]] = []
        self._stop = False

    def tell(self, events: list[tuple[str, Any]]) -> bool:
        """Take a worker's news; returns whether to stop."""
        self._events += events
        return self._stop

    def take(self, stop: bool) -> list[tuple[str, Any]]:
        """Give the driver the news, and take whether to stop."""
        self._stop = self._stop or stop
        events, self._events = self._events, []
        return events


class _Messenger(Watcher):
    """A worker's side of the board; only the first worker talks."""

    def __init__(self, board: Any, rank: int) -> None:
        self._board, self._rank = board, rank
        self._events: list[tuple[str, Any]] = []
        self._progress: tuple[str, Any] | None = None
        self._told_s = 0.0
        self._stop = False

    def say(self, line: str) -> None:
        self._events.append(("line", line))
        self.talk()

    def talk(self) -> None:
        """One exchange with the driver."""
        import ray

        news = self._events + ([self._progress] if self._progress else [])
        self._events, self._progress, self._told_s = [], None, time.monotonic()
        self._stop = ray.get(self._board.tell.remote(news))

    def should_stop(self) -> bool:
        return self._stop

    def stepped(self, images_seen: int, num_images: int, terms: Mapping[str, Tensor]) -> None:
        if self._rank == 0 and time.monotonic() - self._told_s >= TALK_S:
            loss = terms.get("loss")
            self._progress = "progress", (
                images_seen, num_images, None if loss is None else float(loss)
            )  # fmt: skip
            self.talk()

    def measured(self, images_seen: int, figures: Mapping[str, float]) -> None:
        from ray import train

        train.report({"images": images_seen, **figures})  # a barrier: every worker is here


def run_on_ray(
    job: TrainingJob, world: int, address: str, display: Display, attendant: Attendant
) -> Outcome:
    """Train on `world` workers; go on from the newest checkpoint when they or Ray die.

    Raises:
        UserError: If the settings do not fit what is there.
        RunError: If training can't go on, or died more than `MAX_RESTARTS` times.
    """
    os.environ.update(ENVIRONMENT)
    ours = join_cluster(address) if address else start_embedded(world)
    import ray  # not before the environment is set

    logging.getLogger("ray").setLevel(logging.ERROR)
    board = ray.remote(Board).options(num_cpus=0).remote()
    try:
        for tries in range(MAX_RESTARTS + 1):
            fault = _supervised(job, world, board, display, attendant)
            if isinstance(fault, Outcome):
                return fault
            if tries < MAX_RESTARTS:
                display.say(f"{fault}; starting again from the newest checkpoint")
        raise RunError(f"training died {MAX_RESTARTS + 1} times, the last time: {fault}")
    finally:
        if ours:
            ray.shutdown()


def _supervised(
    job: TrainingJob, world: int, board: Any, display: Display, attendant: Attendant
) -> Outcome | str:
    """One `fit()`; returns how it ended, or what it died of.

    It runs in a thread: in the main one it would take SIGINT for itself.
    """
    import ray

    ended: list[Outcome | Exception] = []

    def fit() -> None:
        try:
            ended.append(_fit(job, world, board))
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=fit, name="vsp-fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        try:
            events = ray.get(board.take.remote(attendant.is_stopping))
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray died: {one_line(error)}; run the same command again") from None
        _show(events, display)
    return _judged(ended[0])


def _show(events: list[tuple[str, Any]], display: Display) -> None:
    for kind, value in events:
        if kind == "line":
            display.say(value)
        else:
            display.progress(*value)


def _judged(end: Outcome | Exception) -> Outcome | str:
    """An outcome, or why to start again.

    Raises:
        UserError: What a worker raised that another start would not change.
        RunError: Alike.
    """
    if isinstance(end, Outcome):
        return end
    import ray
    from ray.train import TrainingFailedError

    if not isinstance(end, TrainingFailedError | ray.exceptions.RayError):
        raise end
    failures = getattr(end, "worker_failures", {}).values()
    for failure in failures:
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, UserError | CheckpointError | RunError):
            raise type(cause)(str(cause)) from None
        if not _is_lost(cause):
            raise RunError(f"a worker failed: {one_line(cause)}") from None
    return one_line(next(iter(failures), end))[:_REASON_CHARS]


def _is_lost(error: BaseException) -> bool:
    """Whether a worker died, or failed only because another one was gone."""
    if type(error).__module__.startswith("ray.") or isinstance(error, ConnectionError):
        return True
    text = str(error)
    return any(each in text for each in ("Connection closed by peer", "gloo", "NCCL", "Timed out"))


def _fit(job: TrainingJob, world: int, board: Any) -> Outcome:
    import tempfile

    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    on_gpu = job.device.startswith("cuda")
    with tempfile.TemporaryDirectory(prefix="vsp-ray-", ignore_cleanup_errors=True) as folder:
        trainer = TorchTrainer(
            _work_on_ray,
            train_loop_config={"job": job.to_dict(), "board": board},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=world, use_gpu=on_gpu),
            run_config=RunConfig(
                name="vsp", storage_path=folder, failure_config=FailureConfig(max_failures=0)
            ),
        )
        trainer.fit()
    return _outcome_of(job)


def _outcome_of(job: TrainingJob) -> Outcome:
    """How far the run is; its own checkpoints know, whatever Ray remembers."""
    from pipeline.storage import open_store
    from pipeline.training.checkpoints import open_checkpoints

    checkpoint = open_checkpoints(open_store(job.out)).newest()
    step, run = (checkpoint.step if checkpoint else 0), job.config.run
    return Outcome(step * run.batch_size, step >= run.num_steps, {})


def _work_on_ray(settings: Mapping[str, Any]) -> None:
    """What a Ray Train worker runs."""
    from ray import train

    from jobs.training_run import work

    job = TrainingJob.from_dict(settings["job"])
    context = train.get_context()
    comm = _comm(job)
    messenger = _Messenger(settings["board"], comm.rank)
    outcome = work(job, comm, messenger, messenger.say, context.get_local_world_size())
    train.report({"images": outcome.images_seen, "finished": float(outcome.finished)})


def _comm(job: TrainingJob) -> "Comm":
    import torch.distributed as dist

    from vsp_model.train.distributed import Alone, ProcessGroup

    return ProcessGroup(job.device) if dist.is_initialized() else Alone()
