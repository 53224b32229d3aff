"""IDM: the network of one denoising step, at a noise level drawn for each face.

Everything random of a face comes from its own stream; drop-out, which knows no faces, from that of
the step's part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vsp_model.ask import Ask
from vsp_model.config import Config
from vsp_model.idm.chain import Chain, draw
from vsp_model.idm.config import IDMConfig
from vsp_model.idm.model import settle
from vsp_model.idm.schedule import (
    Level,
    continuous_signal,
    levels_of,
    noised,
    target_of,
    to_x0,
)
from vsp_model.idm.unet import UNet
from vsp_model.randomness import generator_for
from vsp_model.train import inversion
from vsp_model.train.batch import Batch
from vsp_model.train.condition import HIGH, LOW, told_qualities
from vsp_model.train.config import AdamConfig, EMAConfig
from vsp_model.train.judges import Judges
from vsp_model.train.optimiser import Player
from vsp_model.train.stage import (
    Moment,
    Parts,
    Pictures,
    Stage,
    StageConfig,
    Terms,
    detached,
    normal,
    step_generator,
    weighted,
)


class IDMWeights(Config):
    """Of the losses. SR3's re-implementation has L1 alone [S], as a sum; here each is a mean."""

    l1: float = Field(1.0, ge=0)
    """Of what the network predicts."""
    l2: float = Field(0.0, ge=0)
    """Alike, squared (DDPM)."""
    lpips: float = Field(0.0, ge=0)
    """Of the picture that the prediction means, at every noise level. Not of the sources: with it
    the estimate is no longer a mean over all faces that fit, and is sharper [I]."""
    identity: float = Field(0.0, ge=0)
    """1 - cosine, of the same picture [I]."""


class IDMTrainConfig(StageConfig):
    """``vsp train idm``; the defaults are those of SR3's re-implementation at 128 pixels [S]."""

    kind: Literal["idm"] = "idm"
    model: IDMConfig
    weights: IDMWeights = IDMWeights()
    adam: AdamConfig = AdamConfig(lr=1e-4)
    ema: EMAConfig | None = EMAConfig()
    validation_steps: int = Field(5, ge=1)
    """Of the sampler in validation, at most: fewer than the model's own are a matter of time."""


class Noising(NamedTuple):
    """What a face's stream decides of its step."""

    state: Tensor
    """x_t, (B, 3, S, S)."""
    noise: Tensor
    level: Level


class IDMStage(Stage):
    """Noisy picture and degraded face -> what was noised."""

    config: IDMTrainConfig

    def __init__(
        self, config: IDMTrainConfig, parts: Parts, judges: Judges, device: str = "cpu"
    ) -> None:
        super().__init__(config, parts, judges, device)
        self.chain = Chain(config.model)
        self.net = cast(UNet, self.parts["unet"]).requires_grad_(True).train()
        self.players["unet"] = Player({"unet": self.net}, config.adam)
        self.keep_averages(config.ema, "unet")

    def accumulate(self, batch: Batch, moment: Moment) -> Terms:
        """See ``Stage``."""
        param, weights = self.config.model.param, self.config.weights
        x0 = self.chain.state_of(batch.hq, batch.lq)
        found = self._noised(x0, batch)
        signal = cast(Tensor, found.level.signal).flatten()
        with self._drop_out(moment), self.autocast():
            prediction = self.net(found.state, signal, batch.lq, self._qualities(batch))
        prediction = prediction.to(x0.dtype)
        error = prediction - target_of(param, x0, found.noise, found.level)
        terms: dict[str, Tensor | None] = {"l1": error.abs().mean(), "l2": error.square().mean()}
        if weights.lpips or weights.identity:
            clean = to_x0(param, prediction, found.state, found.level)
            picture = self.chain.picture_of(clean, batch.lq)
            terms["lpips"] = self.judges.perceptual(picture, batch.hq)
            if weights.identity:
                terms["identity"] = self.judges.identity(picture, batch.hq, batch.points)
        loss, kept = weighted(terms, dict(weights))
        self.backward(loss, moment)
        return detached(kept | {"loss": loss})

    def _noised(self, x0: Tensor, batch: Batch) -> Noising:
        """Noise each face to a level between two neighbouring times [S]."""
        seed, last = self.config.run.seed, self.config.model.noise.num_steps
        streams = [generator_for(seed, stream, "idm.time") for stream in batch.streams]
        t = np.array([stream.integers(1, last + 1) for stream in streams])
        share = np.array([stream.random() for stream in streams])
        level = levels_of(continuous_signal(self.chain.alpha_bar, t, share), x0)
        noise = normal(batch.streams, tuple(x0.shape[1:]), seed, "idm.noise")
        noise = noise.to(x0.device, x0.dtype, memory_format=torch.channels_last)
        return Noising(noised(x0, noise, level), noise, level)

    def _qualities(self, batch: Batch) -> Tensor | None:
        if self.net.condition is None:
            return None
        return told_qualities(self.net.condition, batch, self.config.run.seed)

    @contextmanager
    def _drop_out(self, moment: Moment) -> Iterator[None]:
        """PyTorch's generator set by step and part inside, as it was after."""
        if not self.config.model.unet.dropout:
            yield
            return
        on_gpu = torch.device(self.device).type == "cuda"
        with torch.random.fork_rng(devices=[torch.device(self.device)] if on_gpu else []):
            generator = step_generator(self.config.run.seed, moment, "idm.dropout")
            torch.manual_seed(generator.initial_seed())
            yield

    @torch.no_grad()
    def validate(self, batch: Batch) -> Terms:
        """See ``Stage``; "clean_psnr" is that of faces which were clean when they came."""
        found = inversion.validated(self.judges, self._restored(batch, batch.lq), batch)
        kept = inversion.validated(Judges(), self._restored(batch, batch.hq), batch)
        return found | {"clean_psnr": kept["psnr"]}

    @torch.no_grad()
    def preview(self, batch: Batch) -> Pictures:
        """See ``Stage``; also what one step makes, the mean over all faces that fit."""
        columns = {
            "LQ": batch.lq,
            "1 step": self._restored(batch, batch.lq, Ask(steps=1)),
            "restored": self._restored(batch, batch.lq),
        }
        if self.net.condition is not None and self.net.condition.scored:
            for quality in (LOW, HIGH):
                asked = self._restored(batch, batch.lq, Ask(quality=quality))
                columns[f"quality {quality:g}"] = asked
        return columns | {"HQ": batch.hq}

    def _restored(self, batch: Batch, lq: Tensor, ask: Ask | None = None) -> Tensor:
        condition = self.net.condition
        scored = condition is None or condition.scored
        settings = settle(self.config.model, ask or Ask(), scored=scored)
        settings = settings._replace(steps=min(settings.steps, self.config.validation_steps))
        drawn = draw(self.config.model.size, batch.streams, self.config.run.seed).to(self.device)
        net = cast(UNet, self.result()["unet"])
        with inversion.evaluating(net), self.autocast():
            return self.chain.sample(net, lq, drawn, settings)
