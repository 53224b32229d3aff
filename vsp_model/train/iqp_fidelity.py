"""Stage III of IQP: how features of the degraded face modulate the decoder's (CodeFormer's) [S].

Codes stay as stage II predicts them. CodeFormer trains on what predicts them along, by their own
losses, and no loss of the picture reaches its encoder [S]. Here one may, which is a switch, and the
encoder's latent is held where it was, since what predicts the codes is frozen [I].
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from vsp_model.ask import Ask
from vsp_model.config import Config
from vsp_model.iqp.backbone import Encoder
from vsp_model.iqp.config import IQPConfig
from vsp_model.iqp.dictionary import as_places
from vsp_model.iqp.fusion import FidelityFusion
from vsp_model.iqp.model import IQP
from vsp_model.randomness import generator_for
from vsp_model.train import inversion
from vsp_model.train.batch import Batch
from vsp_model.train.config import AdamConfig, EMAConfig
from vsp_model.train.iqp_adversary import PatchAdversary, PatchAdversaryConfig
from vsp_model.train.iqp_losses import compared, qualities, widened
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
    weighted,
)


class FidelityWeights(Config):
    """Of the losses; the defaults are CodeFormer's [S]. The adversary's stands in ``patches``."""

    l1: float = Field(1.0, ge=0)
    lpips: float = Field(1.0, ge=0)
    structure: float = Field(0.1, ge=0)
    """Of 1 - SSIM, which stands in for a missing LPIPS judge [I]."""
    identity: float = Field(0.0, ge=0)
    anchor: float = Field(1.0, ge=0)
    """Of the latent's distance to where it was, where the encoder is trained [I]."""


class LateConfig(Config):
    """A larger w later in the run; the defaults are CodeFormer's [S].

    Of its 150,000 steps 40,000 have w = 1 and the further ones that look at a picture 1.3.
    """

    fidelity: float = Field(1.3, ge=1)
    starts_at: float = Field(0.2667, ge=0, le=1)
    """Share of the run."""


class IQPFidelityConfig(StageConfig):
    """``vsp train iqp-fidelity``; the defaults are CodeFormer's [S], without what is null."""

    kind: Literal["iqp-fidelity"] = "iqp-fidelity"
    model: IQPConfig
    weights: FidelityWeights = FidelityWeights()
    adam: AdamConfig = AdamConfig(lr=5e-5, betas=(0.9, 0.99))
    ema: EMAConfig | None = EMAConfig(half_life_images=3864)
    train_encoder: bool = False
    """Train the encoder of degraded faces along."""
    random_share: float = Field(0.0, ge=0, le=1)
    """Share of the faces whose w is drawn evenly from [0, 1] [I]; the others have w = 1."""
    late: LateConfig | None = None
    """Null: they have w = 1 to the end."""
    patches: PatchAdversaryConfig | None = None
    """Null: no adversarial term."""


class IQPFidelityStage(Stage):
    """Degraded face, codes, w -> restored face."""

    config: IQPFidelityConfig
    needs = ("dictionary", "lq_encoder", "predictor", "embedding")

    def __init__(
        self, config: IQPFidelityConfig, parts: Parts, judges: Judges, device: str = "cpu"
    ) -> None:
        super().__init__(config, parts, judges, device)
        if config.model.fusion is None:
            raise ValueError("model.fidelity_sides: empty, so there is no stage III to train")
        for name in self.parts:
            self.frozen(name)
        self.model = IQP(config.model, self.parts)
        trained: Parts = {"fusion": self.parts["fusion"]}
        self.anchor: Encoder | None = None
        if config.train_encoder:
            trained["lq_encoder"] = self.parts["lq_encoder"]
            self.anchor = copy.deepcopy(cast(Encoder, self.parts["lq_encoder"]))
        for net in trained.values():
            net.requires_grad_(True).train()
        self.players["fidelity"] = Player(trained, config.adam)
        self.patches: PatchAdversary | None = None
        if config.patches:
            last = _last_shift(cast(FidelityFusion, self.parts["fusion"]))
            self.patches = self.adversary = PatchAdversary(self, config.patches, last)
        self.keep_averages(config.ema, *trained)

    def buffers(self) -> Iterator[Tensor]:
        """See ``Stage``; with what a step gathers of gradients."""
        yield from super().buffers()
        if self.patches:
            yield from self.patches.gathered()

    def accumulate(self, batch: Batch, moment: Moment) -> Terms:
        """See ``Stage``."""
        quality = qualities(self.model, batch)
        with self.autocast():
            latent = self.model.encode(batch.lq, fused=True)
            with torch.no_grad():
                scores = self.model.scores(latent.places, quality)
            feature = self.model.feature(scores, latent.places, quality)
            fusing = self.model.modulation(latent, self._fidelity(batch, moment))
            image = self.model.dictionary.decode(feature, fusing)
        image = widened(image)
        wants_identity = self.config.weights.identity > 0
        terms = compared(self.judges, image, batch, identity=wants_identity)
        terms["anchor"] = self._drift(latent.places, batch)
        loss, kept = weighted(terms, dict(self.config.weights))
        if self.patches and self.patches.active(moment):
            kept |= self.patches.backward(loss, image, batch.hq, moment)
        else:
            self.backward(loss, moment)
        return detached(kept | {"loss": loss})

    def _fidelity(self, batch: Batch, moment: Moment) -> Tensor:
        """w of each face, (B, 1, 1, 1)."""
        late = self.config.late
        usual = late.fidelity if late and moment.progress >= late.starts_at else 1.0
        share, seed = self.config.random_share, self.config.run.seed
        drawn = [generator_for(seed, stream, "fidelity").random(2) for stream in batch.streams]
        values = [w if chance < share else usual for chance, w in drawn]
        return batch.lq.new_tensor(values).reshape(-1, 1, 1, 1)

    def _drift(self, places: Tensor, batch: Batch) -> Tensor | None:
        if self.anchor is None:
            return None
        with torch.no_grad(), self.autocast():
            before = as_places(self.anchor(batch.lq))
        return (places - before).square().mean()

    def _restored(self, batch: Batch, fidelity: float) -> Tensor:
        model = IQP(self.config.model, self.result())
        settings = model.settle(Ask())._replace(fidelity=fidelity)
        with self.autocast():
            return model(batch.lq, settings=settings).float()

    @torch.no_grad()
    def validate(self, batch: Batch) -> Terms:
        """See ``Stage``; at w = 1, and what the codes alone give."""
        figures = inversion.validated(self.judges, self._restored(batch, 1.0), batch)
        codes = inversion.validated(self.judges, self._restored(batch, 0.0), batch)
        names = ("psnr", "lpips", "identity")
        return figures | {f"{name}_codes": codes[name] for name in names if name in codes}

    @torch.no_grad()
    def preview(self, batch: Batch) -> Pictures:
        """See ``Stage``."""
        shown = {f"w {w}": self._restored(batch, w) for w in (0.0, 0.5, 1.0)}
        return {"LQ": batch.lq} | shown | {"HQ": batch.hq}


def _last_shift(fusion: FidelityFusion) -> Tensor:
    """Where CodeFormer compares gradients: what is added at the largest side [S]."""
    side = max(fusion.config.sides)
    return cast(nn.Conv2d, fusion.sides[str(side)].shift).weight
