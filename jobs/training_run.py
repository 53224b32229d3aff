"""One worker's part in a training run, whoever started it; and what the run leaves at its end."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from jobs.models import num_cores
from jobs.training import TrainingJob, build_stage, find_parts, origin_of
from pipeline.errors import RunError, UserError
from pipeline.locks import run_lock
from pipeline.plan import make_out
from pipeline.provenance import commit, hardware
from pipeline.scratch import scratch_folder
from pipeline.storage import LocalStore, Store, make_folder, open_store
from pipeline.training.checkpoints import FOLDER, RESULT, open_checkpoints
from pipeline.training.index import list_shards
from pipeline.training.log import LOG, RunLog
from pipeline.training.monitor import classic_scores
from pipeline.training.report import ReportFacts, write_report
from pipeline.training.scores import ScoreTable
from pipeline.training.source import FaceSource, open_source, validation_batches
from vsp_model.checkpoints import save_parts
from vsp_model.condition import NUM_KNOTS
from vsp_model.files import checksum_path, record_checksum
from vsp_model.runtime import keep_freed_memory
from vsp_model.train.batch import Batch, BatchSource
from vsp_model.train.distributed import Comm
from vsp_model.train.judges import load_judges
from vsp_model.train.loop import Outcome, Trainer, TrainingError, Watcher
from vsp_model.train.sameness import config_hash
from vsp_model.train.stage import Pictures, Stage

CONFIG = "config.yaml"
BEST = "best.safetensors"
_CONDITIONED = {
    "restorer": "condition",
    "iqp-codes": "embedding",
    "iqp-fidelity": "embedding",
    "idm": "unet",
}
"""Kinds of stage that tell a quality, and the part that holds the condition."""
_OURS = (CONFIG, FOLDER, LOG, "grids", "_vsp")

Say = Callable[[str], None]


class _Silent:
    """What a worker other than the first one notes (`vsp_model.train.loop.Log`): nothing."""

    def scalars(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def pictures(self, images_seen: int, columns: Pictures) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _nothing(line: str) -> None:
    """What a worker other than the first one says."""


def check_workers(job: TrainingJob, world: int) -> None:
    """See that the workers can share a step.

    Raises:
        UserError: If they can't.
    """
    try:
        job.config.run.parts(0, world)
    except ValueError as error:
        raise UserError(str(error)) from None


def prepare(job: TrainingJob, store: Store, *, restart: bool) -> None:
    """Make the run's folder ready; the caller holds its lock.

    Raises:
        UserError: If it holds something else.
    """
    names = set(store.list())
    ours = {name for name in names if name.split("/")[0] in _OURS}
    if names and not ours:
        raise UserError(f"{job.out}: holds files of others ({min(names)}); choose another --out")
    if restart:
        _clear(store, names)
    if restart or CONFIG not in names:  # another one is refused when its checkpoint is looked at
        store.write(CONFIG, resolved(job).encode())


def _clear(store: Store, names: set[str]) -> None:
    """Forget a run; what others put beside it stays."""
    own = (*_OURS, "tensorboard", RESULT, BEST, "report.md", "curves.png")
    tops = (*own, f"{RESULT}.sha256", f"{BEST}.sha256")
    for name in sorted(names):
        if name.split("/")[0] in tops or name.startswith(f"{LOG}."):  # a log's parts, remote
            store.remove(name)
    for name in list(store.list("_vsp")):
        if not name.endswith("run.lock"):
            store.remove(name)
    if isinstance(store, LocalStore):
        for folder in (FOLDER, "grids", "tensorboard"):
            shutil.rmtree(store.path(folder), ignore_errors=True)


def resolved(job: TrainingJob) -> str:
    """All settings of a run as YAML, which `vsp train` takes in the place of its file."""
    values = job.config.model_dump(mode="json") | {"data": job.data.model_dump(mode="json")}
    head = f"# {job.command}\n" if job.command else ""
    return head + yaml.safe_dump({"kind": job.kind, **values}, sort_keys=False)


@dataclass(frozen=True)
class Faces:
    """What a run is fed.

    Attributes:
        source: Batches to train on.
        validation: Batches of other faces.
        num_faces: To train on; 0 where shards are streamed and nobody counts.
        scores: How good the faces are, None where nobody has told.
    """

    source: BatchSource
    validation: Sequence[Batch]
    num_faces: int
    scores: ScoreTable | None = None


def open_faces(job: TrainingJob, say: Say) -> Faces:
    """Index the shards and prepare the faces to validate on.

    Raises:
        UserError: If there is no shard, or no usable face in them.
    """
    source, lines = open_source(job.data, job.config.run.seed, partial(_tell_fault, say))
    for line in lines:
        say(line)
    part_size = job.config.run.part_size or job.config.run.batch_size
    scores = source.scores
    validation = validation_batches(job.data, part_size, partial(_tell_fault, say), scores)
    num_faces = len(source.index) if isinstance(source, FaceSource) else 0
    note = _scores_line(scores) if scores else _unscored_line(job)
    if note:
        say(note)
    return Faces(source, validation, num_faces, scores)


def _scores_line(scores: ScoreTable) -> str:
    low, middle, high = (scores.knots[place] for place in (5, 50, 95))
    return (
        f"quality of {scores.known:,} faces by {', '.join(scores.scorers)}: S {low:.2f} (5 %), "
        f"{middle:.2f} (median), {high:.2f} (95 %); the scorers deviate by "
        f"{scores.uncertainty[50]:.2f} (median)"
    )


def _unscored_line(job: TrainingJob) -> str:
    """What a stage misses without scores; empty where nothing is missed."""
    model = job.config.model
    if job.kind == "iqp-books":
        there = model.kind == "iqp" and model.books.num_codes_hq
        return "no data.scores: the HQ+ book learns nothing" if there else ""
    if model.condition is None or job.kind not in _CONDITIONED:
        return ""
    more = ", and the model knows no other quality" if _is_new(job) else ""
    return f"no data.scores: every face trains as unknown{more}"


def _is_new(job: TrainingJob) -> bool:
    """Whether the run begins with a quality condition that nobody has trained."""
    return job.kind in _CONDITIONED and _CONDITIONED[job.kind] not in find_parts(job)


def _tell_scores(job: TrainingJob, stage: Stage, scores: ScoreTable | None) -> None:
    """Tell the condition how scores are spread; without any a trained one keeps what it knows."""
    if scores:
        stage.observe_scores(scores.knots.tolist())
    else:
        _tell_none(job, stage)


def _tell_none(job: TrainingJob, stage: Stage) -> None:
    """Tell a new condition that there are no scores: no quality is asked of what has learnt none.

    Again when a checkpoint is loaded: old ones hold even knots in the place of none.
    """
    if _is_new(job):
        stage.observe_scores([math.nan] * NUM_KNOTS)


def _tell_fault(say: Say, key: str, reason: str) -> None:
    say(f"{key}: left out, {reason}")


def set_threads(job: TrainingJob, local_workers: int) -> int:
    """Give this process its share of the machine's cores; returns it."""
    wanted = job.config.run.threads or max(1, num_cores() // local_workers)
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
    if job.device == "cpu":
        keep_freed_memory()
    return wanted


def work(
    job: TrainingJob, comm: Comm, watcher: Watcher, say: Say, local_workers: int = 1
) -> Outcome:
    """Train, as one of the workers; the first one writes the result when the run has ended.

    Args:
        job: What to do.
        comm: The workers.
        watcher: Shows progress, and says when to stop.
        say: Takes a line for the user.
        local_workers: Workers on this machine, who share its cores.

    Raises:
        UserError: If the settings do not fit what is there.
        RunError: If training can't go on.
    """
    threads = set_threads(job, local_workers)
    say = say if comm.rank == 0 else _nothing
    judges = load_judges(job.config.judges, job.device)
    if judges.quality is not None and judges.monitor is None:
        judges.monitor = classic_scores  # no network, so that no gradient knows its weak spots
    stage = build_stage(job, judges)
    store = open_store(job.out)
    checkpoints = open_checkpoints(store)
    say(_begin_line(job, stage, comm, threads))
    faces = open_faces(job, say)
    _tell_scores(job, stage, faces.scores)
    log = RunLog(store, say, _sitting(job, comm)) if comm.rank == 0 else _Silent()
    origin = origin_of(job, faces.num_faces, faces.scores)

    def export(stage: Stage, folder: Path) -> None:
        _export(job, stage, folder / RESULT)

    with closing(log):
        trainer = Trainer(
            stage, comm, checkpoints, log, faces.validation, watcher, export, origin,
            resumed=None if faces.scores else partial(_tell_none, job),
        )  # fmt: skip
        try:
            outcome = trainer.train(faces.source)
        except TrainingError as error:
            raise RunError(str(error)) from None
    if outcome.finished and comm.rank == 0:
        _finish(job, stage, store, faces, comm.world)
    comm.barrier()
    return outcome


def _begin_line(job: TrainingJob, stage: Stage, comm: Comm, threads: int) -> str:
    run = job.config.run
    parts = run.parts(comm.rank, comm.world)
    trained = {name: net for p in stage.players.values() for name, net in p.nets.items()}
    nets = ", ".join(
        f"{name} {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M"
        for name, net in trained.items()
    )
    device = f"cpu with {threads} thread(s)" if job.device == "cpu" else job.device
    return (
        f"{job.kind}: {comm.world} worker(s) on {device}, {run.num_images:,} images in steps of "
        f"{run.batch_size} ({parts.count} part(s) of {parts.part_size}); trains {nets}"
    )


def _export(job: TrainingJob, stage: Stage, path: Path) -> None:
    sources = {f"{name} of {path.name}": digest for name, path, digest in _sources(job)}
    notes = (f"vsp train {job.stage} ({job.kind}), settings {config_hash(job.config)}",)
    save_parts(stage.result(), stage.result_config(), path, sources=sources, notes=notes)


def _sources(job: TrainingJob) -> list[tuple[str, Path, str]]:
    from vsp_model.files import sha256_of

    return [(name, path, sha256_of(path)) for name, path in find_parts(job).items()]


def _finish(job: TrainingJob, stage: Stage, store: Store, faces: Faces, world: int) -> None:
    """Write the result, the best checkpoint's, and the report."""
    _put(store, RESULT, lambda path: _export(job, stage, path))
    best = open_checkpoints(store).best(job.config.run.best)
    if best is not None:
        there = best.folder / RESULT

        def copy(path: Path) -> None:
            temporary = path.with_name(f".{path.name}")
            shutil.copyfile(there, temporary)
            temporary.replace(path)
            record_checksum(path)

        _put(store, BEST, copy)
    images = best.step * job.config.run.batch_size if best else None
    store.write(CONFIG, resolved(job).encode())
    write_report(store, _report(job, faces, world, images))


def _put(store: Store, name: str, write: Callable[[Path], None]) -> None:
    """Have a file and its checksum written, here or by way of the scratch folder."""
    if isinstance(store, LocalStore):
        make_folder(store.root)
        write(store.path(name))
        return
    from pipeline.remote import RemoteStore

    assert isinstance(store, RemoteStore)
    path = scratch_folder() / name
    write(path)
    for each in (path, checksum_path(path)):
        store.objects.upload(each, store.path(each.name))
        each.unlink()


def _report(job: TrainingJob, faces: Faces, world: int, best_images: int | None) -> ReportFacts:
    run = job.config.run
    count = len(list_shards(job.data.train))
    num_validation = sum(len(batch.keys) for batch in faces.validation)
    return ReportFacts(
        title=f"{job.stage} ({job.kind})",
        rows={
            "command": f"`{job.command}`" if job.command else "",
            "settings": f"{CONFIG}, hash {config_hash(job.config)}",
            "seed": str(run.seed),
            "faces": f"{faces.num_faces or 'uncounted'} in {count} shard(s)",
            "validated on": f"{num_validation} faces",
            "images seen": f"{run.num_images:,} in steps of {run.batch_size}",
            "workers": str(world),
            "made from": ", ".join(
                f"{name}: {path} ({digest[:16]})" for name, path, digest in _sources(job)
            ),
        },
        best=run.best,
        best_images=best_images,
        files={"result": RESULT, "best checkpoint": BEST if best_images is not None else ""},
    )


def _sitting(job: TrainingJob, comm: Comm) -> dict[str, Any]:
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{comm.world} x {hardware(job.device)}",
        "torch": torch.__version__,
        "commit": commit(),
    }


@contextmanager
def locked(job: TrainingJob, *, restart: bool) -> Iterator[None]:
    """Hold the run's folder, made ready for it.

    Raises:
        UserError: If it holds something else.
        RunError: If another run is at work there.
    """
    store = open_store(job.out)
    if isinstance(store, LocalStore):
        make_out(store.root)
    with run_lock(store):
        prepare(job, store, restart=restart)
        yield
