"""One loop for every stage and every launcher: step, guard, log, validate, keep, stop.

It knows neither shards nor Ray. Everything random follows from (seed, record) or (seed, step), so
the position in the run is one number and a resumed run goes on bit for bit.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vsp_model.train.batch import Batch, BatchSource
from vsp_model.train.config import RunConfig
from vsp_model.train.distributed import Comm, fingerprint
from vsp_model.train.optimiser import Player
from vsp_model.train.sameness import changed_setting, config_identity, first_difference
from vsp_model.train.stage import Moment, Pictures, Stage, Terms
from vsp_model.train.state import load_state, save_state
from vsp_model.train.store import Checkpoint, Store

_TENSORS, _TREE = "state.safetensors", "state.json"
_COMPARE_STEPS = 500  # workers compare their parameters so often
_MB = 1e6

Players = Mapping[str, Player]


class TrainingError(RuntimeError):
    """Training can't go on; one line says why and what to do."""


class Log(Protocol):
    """Who watches."""

    def scalars(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Figures, means since the last call."""

    def pictures(self, images_seen: int, columns: Pictures) -> None:
        """A sample grid by column."""

    def say(self, line: str) -> None:
        """One line for the user."""


class Watcher:
    """Asks between steps whether to stop; the default never does."""

    def should_stop(self) -> bool:
        """Whether a signal came."""
        return False

    def stepped(self, images_seen: int, num_images: int, terms: Mapping[str, Tensor]) -> None:
        """For a progress line; reading a term waits for the device."""

    def measured(self, images_seen: int, figures: Mapping[str, float]) -> None:
        """A validation's figures; told on every worker."""


class Outcome(NamedTuple):
    """How a run ended."""

    images_seen: int
    finished: bool
    figures: dict[str, float]
    """The last validation."""


class _Means:
    """Sums of terms on their device, read out once in a while."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, terms: Terms, count: int = 1) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value * count
            self._counts[name] = self._counts.get(name, 0) + count

    def take(self) -> dict[str, float]:
        means = {name: (total / self._counts[name]).item() for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class Trainer:
    """One run of one stage."""

    def __init__(
        self,
        stage: Stage,
        comm: Comm,
        store: Store,
        log: Log,
        validation: Sequence[Batch] = (),
        watcher: Watcher | None = None,
        export: Callable[[Stage, Path], None] | None = None,
        origin: Mapping[str, Any] | None = None,
        resumed: Callable[[Stage], None] | None = None,
    ) -> None:
        """Take a stage that was just built.

        Args:
            stage: What is trained.
            comm: The workers.
            store: Where checkpoints lie.
            log: Who watches; only the first worker speaks.
            validation: Faces that are not trained on, kept in memory; the first draws the grid.
            watcher: Told of each step, and asked whether to stop.
            export: Writes the result into a checkpoint's folder, beside the state.
            origin: What else decides a step, as JSON: the faces, parts that were trained before.
            resumed: Given the stage when a checkpoint has been loaded into it.
        """
        self.stage = stage
        self.run: RunConfig = stage.config.run
        self.comm = comm
        self.store = store
        self.log = log
        self.validation = validation
        self.watcher = watcher or Watcher()
        self.export = export
        self.origin = dict(origin or {})
        self.resumed = resumed
        self.parts = self.run.parts(comm.rank, comm.world)
        self.figures: dict[str, float] = {}
        self._bad_steps = 0
        self._measured_step = -1
        self._means = _Means()

    def train(self, source: BatchSource) -> Outcome:
        """Go on from the newest checkpoint, to the last image or until asked to stop.

        Raises:
            TrainingError: in one line.
        """
        step = self.resume()
        self._same_start()
        if step < self.run.num_steps:
            self._look_for_room()
        batches = source.batches(self.parts, step)
        stopped = False
        while step < self.run.num_steps and not stopped:
            terms = self._step(next(batches), step)
            step += 1
            self.watcher.stepped(step * self.run.batch_size, self.run.num_images, terms)
            stopped = self._due(step)
        return Outcome(step * self.run.batch_size, step >= self.run.num_steps, self.figures)

    # -------------------------------------------------------------------------------- a step

    def _moment(self, step: int, part: int) -> Moment:
        seen = step * self.run.batch_size
        return Moment(step, seen, self.run.num_images, self.parts.count, part)

    def _step(self, batches: Sequence[Batch], step: int) -> Terms:
        for player in self.stage.players.values():
            player.zero_grad()
        before = [buffer.clone() for buffer in self.stage.buffers()]
        sums = [torch.zeros_like(buffer) for buffer in before]
        total: Terms = {}
        for part, batch in zip(self.parts.own, batches, strict=True):
            self._restore_buffers(before)
            terms = self.stage.accumulate(batch.to(self.stage.device), self._moment(step, part))
            for name, value in terms.items():
                total[name] = total.get(name, torch.zeros_like(value)) + value
            for summed, buffer in zip(sums, self.stage.buffers(), strict=True):
                summed.add_(buffer)
        # A discriminator that waits for its turn must not count steps: Adam's first real one
        # would be many times too long.
        players = {n: p for n, p in self.stage.players.items() if p.has_gradients()}
        self._reduce(total, sums, players)
        self._update(total, step, players, before)
        return total

    def _restore_buffers(self, before: Sequence[Tensor]) -> None:
        """Go back to the running statistics of the step's beginning.

        Every part starts from them: the mean over parts is then independent of who computed which.
        """
        for buffer, value in zip(self.stage.buffers(), before, strict=True):
            buffer.copy_(value)

    def _reduce(self, total: Terms, sums: Sequence[Tensor], players: Players) -> None:
        names = sorted(total)
        stacked = torch.stack([total[name].float() for name in names])
        gradients = [g for p in players.values() for g in p.gradients()]
        self.comm.sum_([*gradients, *sums, stacked])
        for name, value in zip(names, stacked / self.parts.count, strict=True):
            total[name] = value
        for buffer, value in zip(self.stage.buffers(), sums, strict=True):
            buffer.copy_(value / self.parts.count)

    def _update(self, terms: Terms, step: int, players: Players, before: Sequence[Tensor]) -> None:
        """Move the players, or leave the step out with its running statistics."""
        moment = self._moment(step, 0)
        norms = {name: player.gradient_norm() for name, player in players.items()}
        if not torch.isfinite(torch.stack(list(norms.values()))).all():
            self._restore_buffers(before)
            self._left_out(step, norms)
            return
        self._bad_steps = 0
        for name, player in players.items():
            rate = player.update(norms[name], moment.images_seen, moment.num_images)
            terms[f"norm/{name}"], terms[f"lr/{name}"] = norms[name], torch.tensor(rate)
        more = self.stage.after_update(moment, terms)
        self._means.add(terms | {name: torch.tensor(value) for name, value in more.items()})

    def _left_out(self, step: int, norms: Mapping[str, Tensor]) -> None:
        """A step whose gradients are no numbers changes nothing; many in a row end the run."""
        self._bad_steps += 1
        bad = ", ".join(name for name, norm in norms.items() if not torch.isfinite(norm))
        self._say(f"step {step}: gradients of {bad} are not finite; the step is left out")
        if self._bad_steps >= self.run.max_bad_steps:
            raise TrainingError(
                f"{self._bad_steps} steps in a row without finite gradients (the last: {step}, "
                f"{bad}); lower adam.lr, set adam.clip_norm or run.precision=fp32, and resume"
            )

    # --------------------------------------------------------------------- what falls due

    def _due(self, step: int) -> bool:
        """Log, draw, validate and keep what this step's number asks for; whether to stop."""
        run = self.run
        last = step >= run.num_steps
        stopping = self.comm.agree(self.watcher.should_stop())
        if last or self._crossed(step, run.log_images):
            self._speak(step, self._means.take())
        if last or self._crossed(step, run.preview_images):
            self.validate(step)
        if last or stopping or self._crossed(step, run.checkpoint_images):
            self.keep(step)
        if step % _COMPARE_STEPS == 0 or last:
            self._compare(step)
        return stopping

    def _crossed(self, step: int, every_images: int) -> bool:
        size = self.run.batch_size
        return step * size // every_images > (step - 1) * size // every_images

    def validate(self, step: int) -> None:
        """Figures over the validation faces and a sample grid; every worker computes the same."""
        if not self.validation:
            return
        means = _Means()
        for batch in self.validation:
            means.add(self.stage.validate(batch.to(self.stage.device)), len(batch.keys))
        self.figures = {f"val/{name}": value for name, value in means.take().items()}
        self._measured_step = step
        self._speak(step, self.figures)
        self.watcher.measured(step * self.run.batch_size, self.figures)
        if self.comm.rank == 0:
            columns = self.stage.preview(self.validation[0].to(self.stage.device))
            self.log.pictures(step * self.run.batch_size, columns)

    def _speak(self, step: int, values: Mapping[str, float]) -> None:
        if self.comm.rank == 0 and values:
            self.log.scalars(step * self.run.batch_size, values)

    def _say(self, line: str) -> None:
        if self.comm.rank == 0:
            self.log.say(line)

    # ------------------------------------------------------------------------- checkpoints

    def keep(self, step: int) -> None:
        """Write a checkpoint. A full disk costs this one, not the run: the last one is intact.

        Raises:
            TrainingError: on every worker, if it is the run's last and could not be written.
        """
        trouble = self._write(step) if self.comm.rank == 0 else ""
        if not self.comm.agree(bool(trouble)):
            return
        if step >= self.run.num_steps:
            raise TrainingError(
                f"the last checkpoint could not be written: {trouble}; make room and run the same "
                "command again: it goes on from the one before"
            )
        self._say(f"step {step}: no checkpoint, {trouble}; the one before is intact, going on")

    def _write(self, step: int) -> str:
        """Write a checkpoint and forget old ones; returns what went wrong, "" for nothing."""
        figures = self.figures if self._measured_step == step else {}  # of these very weights
        facts = {"config": config_identity(self.stage.config), "origin": self.origin, **figures}
        try:
            with self.store.write(step, facts) as folder:
                save_state(self._state(), folder / _TENSORS, folder / _TREE)
                if self.export:
                    self.export(self.stage, folder)
            self.store.prune(self.run.keep_checkpoints, self.run.best)
        except OSError as error:
            return _reason(error)
        return ""

    def _look_for_room(self) -> None:
        """Refuse to begin where not even one checkpoint fits."""
        trouble, num_bytes = "", self._checkpoint_bytes()
        if self.comm.rank == 0:
            try:
                self.store.probe(num_bytes)
            except OSError as error:
                trouble = _reason(error)
        if self.comm.agree(bool(trouble)):
            raise TrainingError(
                f"no room for a checkpoint of {num_bytes / _MB:.1f} MB: {trouble}; make room"
            )

    def _checkpoint_bytes(self) -> int:
        """Networks, two moments of every trained parameter, and the exported result."""
        state = [t for net in self.stage.networks().values() for t in net.state_dict().values()]
        moments = [p for player in self.stage.players.values() for p in player.parameters] * 2
        result = [t for net in self.stage.result().values() for t in net.state_dict().values()]
        return sum(t.numel() * t.element_size() for t in [*state, *moments, *result])

    def _state(self) -> dict[str, Any]:
        stage = self.stage
        return {
            "networks": {name: net.state_dict() for name, net in stage.networks().items()},
            "players": {name: player.state_dict() for name, player in stage.players.items()},
            "extra": stage.extra_state(),
        }

    def resume(self) -> int:
        """Load the newest whole checkpoint; the step to go on with.

        Raises:
            TrainingError: if it is of another configuration.
        """
        checkpoint = self.store.newest()
        for line in self.store.notes:
            self._say(line)
        self._same_step(checkpoint.step if checkpoint else 0)
        if checkpoint is None:
            return 0
        self._check(checkpoint)
        state = load_state(checkpoint.folder / _TENSORS, checkpoint.folder / _TREE)
        for name, net in self.stage.networks().items():
            net.load_state_dict(state["networks"][name])
        for name, player in self.stage.players.items():
            player.load_state_dict(state["players"][name])
        self.stage.load_extra_state(state["extra"])
        if self.resumed:
            self.resumed(self.stage)
        self.figures = {k: v for k, v in checkpoint.facts.items() if k.startswith("val/")}
        self._measured_step = checkpoint.step if self.figures else -1
        self._say(f"going on from step {checkpoint.step} of {self.run.num_steps}")
        return checkpoint.step

    def _check(self, checkpoint: Checkpoint) -> None:
        facts = checkpoint.facts
        changed = changed_setting(facts.get("config", {}), self.stage.config)
        if changed is None and self.origin and facts.get("origin"):
            changed = first_difference(facts["origin"], self.origin)
        if changed:
            name, old, new = changed
            raise TrainingError(
                f"{checkpoint.folder}: made with {name} {old!r}, now {new!r}; use the old value, "
                "another --out, or --restart"
            )

    # ---------------------------------------------------------------------------- workers

    def _same_start(self) -> None:
        tensors = [t for net in self.stage.networks().values() for t in net.state_dict().values()]
        with torch.no_grad():
            self.comm.broadcast_([t for t in tensors if t.is_floating_point()])

    def _same_step(self, step: int) -> None:
        """Workers on several machines must see the same checkpoints."""
        first = torch.tensor([step], device=self.stage.device)
        self.comm.broadcast_([first])
        if self.comm.agree(int(first.item()) != step):
            raise TrainingError(
                "the workers see different checkpoints; put --out on a folder that all of them "
                "share, or on an object store"
            )

    def _compare(self, step: int) -> None:
        """Workers that drifted apart would go on in silence."""
        if self.comm.world == 1:
            return
        own = fingerprint(net for _, net in sorted(self.stage.networks().items()))
        first = own.clone().to(self.stage.device)
        self.comm.broadcast_([first])
        if self.comm.agree(not torch.equal(own, first.cpu())):
            raise TrainingError(
                f"step {step}: the workers' parameters differ; run again from the last checkpoint"
            )


def _reason(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"the disk is full ({error.strerror or error})" if full else str(error)
