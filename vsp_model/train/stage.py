"""What the stages share: networks by part, players, gradients over parts, what is kept.

A stage knows batches of tensors and nothing of shards, files or workers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from vsp_model.condition import QualityCondition
from vsp_model.config import Config
from vsp_model.randomness import generator_for
from vsp_model.registry import ModelConfig
from vsp_model.runtime import Precision
from vsp_model.train.batch import Batch
from vsp_model.train.config import EMAConfig, RunConfig
from vsp_model.train.ema import averaged_copy, decay_of, running_statistics, update_average
from vsp_model.train.judges import Judges, JudgesConfig
from vsp_model.train.optimiser import Player
from vsp_model.vspbfr import FORMAT, VSPBFRConfig

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

Terms = dict[str, Tensor]
Pictures = dict[str, Tensor]
Parts = dict[str, nn.Module]


class StageConfig(Config):
    """The sections that every stage's file has."""

    model: ModelConfig
    run: RunConfig
    judges: JudgesConfig = JudgesConfig()

    @property
    def asks_quality(self) -> bool:
        """Whether it trains for the score of ``judges.quality``, which must be there then."""
        return False

    @model_validator(mode="after")
    def _quality_has_a_judge(self) -> Self:
        if self.asks_quality and not self.judges.quality.path:
            raise ValueError(
                "judges.quality.path: empty, but a score is trained for; give "
                "judges: {quality: {path: built-in}}"
            )
        return self


class ChainConfig(StageConfig):
    """Of the stages of VSPBFR."""

    model: VSPBFRConfig


class Moment(NamedTuple):
    """Where training stands while a step is computed."""

    step: int
    images_seen: int
    """Before this step."""
    num_images: int
    num_parts: int
    """Of the global batch; a part's losses count one over it."""
    part: int = 0

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        return self.images_seen / self.num_images


class Opponent(Protocol):
    """What a stage's bookkeeping knows of its adversary (``vsp_model.train.adversary``)."""

    def observe(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Follow a step; figures for the log."""

    def state_dict(self) -> dict[str, Any]:
        """What must be resumed."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""


class Stage(ABC):
    """One stage of training.

    Attributes:
        parts: Every network of the result by its name in a bundle, trained or frozen.
        players: What moves, by name.
        averages: Averaged copies, by the part's name; they take the part's place in the result.
        ema: How the averages follow.
        adversary: The discriminator's side, where there is one.
    """

    needs: tuple[str, ...] = ()
    """Parts that must have been trained before."""

    def __init__(self, config: StageConfig, parts: Parts, judges: Judges, device: str) -> None:
        self.config = config
        self.judges = judges
        self.device = device
        self.parts = {
            name: net.to(torch.device(device)).to(memory_format=FORMAT)
            for name, net in parts.items()
        }
        self.players: dict[str, Player] = {}
        self.averages: Parts = {}
        self.ema: EMAConfig | None = None
        self.adversary: Opponent | None = None
        self._autocast = _autocast(config.run.precision, device)

    # ------------------------------------------------------------------ what a stage defines

    @abstractmethod
    def accumulate(self, batch: Batch, moment: Moment) -> Terms:
        """Compute one part: its losses' gradients are added up; the terms are returned."""

    @abstractmethod
    def validate(self, batch: Batch) -> Terms:
        """Figures of the result on faces that are not trained on, means over the batch."""

    @abstractmethod
    def preview(self, batch: Batch) -> Pictures:
        """Columns of a sample grid by title, (B, 3, s, s) each; sizes may differ."""

    def after_update(self, moment: Moment, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Averages and what else follows a step; figures for the log.

        Args:
            moment: of the step.
            terms: of the step, means over all workers.
        """
        if self.ema:
            self._update_averages(self.ema, moment)
        return self.adversary.observe(terms) if self.adversary else {}

    def extra_state(self) -> dict[str, Any]:
        """What must be resumed beside networks and optimisers."""
        return {"adversary": self.adversary.state_dict()} if self.adversary else {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on from ``extra_state``."""
        if self.adversary:
            self.adversary.load_state_dict(state["adversary"])

    def observe_scores(self, knots: Sequence[float]) -> None:
        """Learn how the quality scores of the training set are spread, before the first step.

        A frozen condition keeps the scores that it was trained with.

        Args:
            knots: Scores at even shares of the set (``condition.NUM_KNOTS``), ascending.
        """
        for net in self.networks().values():
            for module in net.modules():
                if isinstance(module, QualityCondition):
                    module.set_distribution(knots)

    # ------------------------------------------------------------------------- what they share

    def networks(self) -> Parts:
        """Everything that changes: trained networks and averages, by a unique name."""
        trained = {f"{n}": net for p in self.players.values() for n, net in p.nets.items()}
        return trained | {f"average.{name}": net for name, net in self.averages.items()}

    def result(self) -> Parts:
        """The parts to keep, averages in the place of what they average."""
        return self.parts | self.averages

    def result_config(self) -> ModelConfig:
        """The model that the parts to keep belong to."""
        return self.config.model

    def autocast(self) -> AbstractContextManager[Any]:
        """The configured precision."""
        return self._autocast()

    def backward(self, loss: Tensor, moment: Moment) -> None:
        """Add a part's gradient."""
        (loss / moment.num_parts).backward()

    def buffers(self) -> Iterator[Tensor]:
        """Running statistics of what is trained; averaged over parts after each step."""
        for player in self.players.values():
            for net in player.nets.values():
                yield from running_statistics(net)

    def keep_averages(self, config: EMAConfig | None, *names: str) -> None:
        """Average these parts from now on, if that is configured."""
        if config:
            self.ema = config
            self.averages = {name: averaged_copy(self.parts[name]) for name in names}

    def _update_averages(self, config: EMAConfig, moment: Moment) -> None:
        size = self.config.run.batch_size
        seen = moment.images_seen + size
        decay = decay_of(config.half_life_images, size, seen, config.ramp)
        for name, average in self.averages.items():
            update_average(average, self.parts[name], decay)

    def frozen(self, name: str) -> nn.Module:
        """A part that is only used."""
        net: nn.Module = self.parts[name]
        return net.eval().requires_grad_(False)


def _autocast(precision: Precision, device: str) -> Callable[[], AbstractContextManager[Any]]:
    dtype = _AUTOCAST.get(precision)
    if dtype is None:
        return nullcontext
    return lambda: torch.autocast(torch.device(device).type, dtype=dtype)


@contextmanager
def without_gradients_to(net: nn.Module) -> Iterator[None]:
    """Let gradients flow through a network, not into it."""
    net.requires_grad_(False)
    try:
        yield
    finally:
        net.requires_grad_(True)


def weighted(
    terms: Mapping[str, Tensor | None], weights: Mapping[str, float]
) -> tuple[Tensor, Terms]:
    """The sum of the terms that count, and those terms.

    Terms of weight 0 and missing ones are left out.
    """
    kept = {n: t for n, t in terms.items() if t is not None and weights[n] > 0}
    return torch.stack([weights[name] * term.float() for name, term in kept.items()]).sum(), kept


def pooled(image: Tensor, size: int) -> Tensor:
    """Area average to ``size`` pixels, as the published trainers shrink the prior's picture."""
    return image if image.shape[-1] == size else F.adaptive_avg_pool2d(image, size)


def normal(streams: tuple[str, ...], shape: tuple[int, ...], seed: int, purpose: str) -> Tensor:
    """Standard normal numbers, each record's from its own stream, (B, *shape)."""
    rows = [
        generator_for(seed, stream, purpose).standard_normal(shape, dtype=np.float32)
        for stream in streams
    ]
    return torch.from_numpy(np.stack(rows))


def step_generator(seed: int, moment: Moment, purpose: str) -> torch.Generator:
    """The stream of one part of one step, on the CPU."""
    stream = generator_for(seed, f"{moment.step}/{moment.part}", purpose)
    return torch.Generator().manual_seed(int(stream.integers(2**63)))


def detached(terms: Mapping[str, Tensor]) -> Terms:
    """For the log."""
    return {name: term.detach() for name, term in terms.items()}
