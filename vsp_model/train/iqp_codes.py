"""Stage II of IQP: degraded face and quality -> the codes of the clean face; the books are frozen.

The codes to predict are made of the clean face on the fly: stored ones (as released) would have to
be made again for every flip and crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from vsp_model.config import Config
from vsp_model.iqp.backbone import Encoder
from vsp_model.iqp.config import IQPConfig
from vsp_model.iqp.dictionary import Codes, Dictionary, as_places, straight_through
from vsp_model.iqp.model import IQP
from vsp_model.train import inversion
from vsp_model.train.batch import Batch
from vsp_model.train.config import AdamConfig, EMAConfig
from vsp_model.train.guard import GuardConfig
from vsp_model.train.iqp_losses import previews_of, qualities, widened
from vsp_model.train.judges import Judges
from vsp_model.train.optimiser import Player
from vsp_model.train.quality_loss import QualityLoss
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

FROZEN = ("hq_encoder", "dictionary")
TRAINED = ("lq_encoder", "predictor", "embedding")


class CodesWeights(Config):
    """Of the losses; the defaults are the released code's [C], the published file's quality 0."""

    feature: float = Field(1.0, ge=0)
    index: float = Field(0.5, ge=0)
    quality: float = Field(0.1, ge=0)
    """Of 1 - score [N]; counts where ``quality_mode`` is not off."""


class IQPCodesConfig(StageConfig):
    """``vsp train iqp-codes``; the defaults are the released code's [C]."""

    kind: Literal["iqp-codes"] = "iqp-codes"
    model: IQPConfig
    weights: CodesWeights = CodesWeights()
    adam: AdamConfig = AdamConfig(lr=1e-4, betas=(0.9, 0.99))
    ema: EMAConfig | None = EMAConfig(half_life_images=3864)
    """0.995 a step of 28 images, as a half-life."""
    quality_mode: Literal["off", "st_encoder", "st_logits"] = "off"
    """Where the score's gradient goes: to encoder and condition as released, straight through the
    codes; or to the Transformer, by way of the code that is expected of its scores [I]."""
    guard: GuardConfig = GuardConfig()

    @field_validator("quality_mode", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        """YAML reads a bare ``off`` as false, in files and behind ``--set``."""
        return "off" if value is False else value

    @property
    def asks_quality(self) -> bool:
        """See ``StageConfig``."""
        return self.quality_mode != "off" and self.weights.quality > 0


class Prediction(NamedTuple):
    """What a batch's degraded faces give."""

    conditioned: Tensor
    """Z + E_S, (B, T, D)."""
    scores: Tensor
    """Of both books' codes."""
    gate: Tensor
    """Weight of the HQ+ codes, (B,)."""


class IQPCodesStage(Stage):
    """Degraded face -> codes of the clean one."""

    config: IQPCodesConfig
    needs = FROZEN

    def __init__(
        self, config: IQPCodesConfig, parts: Parts, judges: Judges, device: str = "cpu"
    ) -> None:
        super().__init__(config, parts, judges, device)
        self.hq_encoder = cast(Encoder, self.frozen("hq_encoder"))
        self.dictionary = cast(Dictionary, self.frozen("dictionary"))
        self.model = IQP(self.result_config(), self.parts)
        trained = {name: self.parts[name].train() for name in TRAINED if name in self.parts}
        for net in trained.values():
            net.requires_grad_(True)
        self.players["codes"] = Player(trained, config.adam)
        self.keep_averages(config.ema, *trained)
        self.quality: QualityLoss | None = None
        if config.asks_quality and judges.quality:
            self.quality = QualityLoss(config.guard, judges)

    def result(self) -> Parts:
        """See ``Stage``; restoring needs no encoder of clean faces."""
        return {name: net for name, net in super().result().items() if name != "hq_encoder"}

    def result_config(self) -> IQPConfig:
        """See ``Stage``; without stage III, so that no untrained fusion is asked for fidelity."""
        return self.config.model.model_copy(update={"fidelity_sides": ()})

    def accumulate(self, batch: Batch, moment: Moment) -> Terms:
        """See ``Stage``."""
        quality = qualities(self.model, batch, withheld_by=self.config.run.seed)
        wanted = self._wanted(batch)
        with self.autocast():
            predicted = self._predict(batch, quality)
        terms = self._compared(predicted, wanted)
        figures: Terms = {}
        if self.quality and self.quality.active:
            with self.autocast():
                image = self.dictionary.decode(self._decodable(predicted))
            terms["quality"], figures = self.quality.judged(widened(image), batch)
        loss, kept = weighted(terms, dict(self.config.weights))
        self.backward(loss, moment)
        return detached(kept | figures | self._right(predicted.scores, wanted) | {"loss": loss})

    @torch.no_grad()
    def _wanted(self, batch: Batch) -> Codes:
        """Codes of the clean faces; those of HQ+ for every face, whatever its score [C]."""
        with self.autocast():
            latent = self.hq_encoder(batch.hq)
        return self.dictionary.nearest(as_places(latent))

    def _predict(self, batch: Batch, quality: Tensor) -> Prediction:
        places = self.model.encode(batch.lq, fused=False).places
        conditioned = self.model.conditioned(places, quality)
        scores = self.model.predictor(conditioned)
        return Prediction(conditioned, scores, self.model.gate(quality))

    def _compared(self, predicted: Prediction, wanted: Codes) -> dict[str, Tensor | None]:
        feature = self.dictionary.look_up(wanted, predicted.gate).detach()
        common, hq = self.model.predictor.split(predicted.scores)
        index = F.cross_entropy(common.flatten(0, 1), wanted.common.flatten())
        if hq is not None and wanted.hq is not None:
            index = index + F.cross_entropy(hq.flatten(0, 1), wanted.hq.flatten())
        return {"feature": (feature - predicted.conditioned).square().mean(), "index": index}

    def _right(self, scores: Tensor, wanted: Codes) -> Terms:
        """Share of the codes that are right, by book."""
        best = self.model.predictor.best(scores)
        pairs = {"right_common": (best.common, wanted.common), "right_hq": (best.hq, wanted.hq)}
        return {
            name: (a == b).float().mean()
            for name, (a, b) in pairs.items()
            if a is not None and b is not None
        }

    # --------------------------------------------------------------------- training for a score

    def _decodable(self, predicted: Prediction) -> Tensor:
        """The best codes' feature, with gradients as ``quality_mode`` says."""
        best = self.model.predictor.best(predicted.scores)
        hard = self.dictionary.look_up(best, predicted.gate)
        if self.config.quality_mode == "st_encoder":
            return straight_through(predicted.conditioned, hard)
        common, hq = self.model.predictor.split(predicted.scores)
        book = self.dictionary.hq
        expected = None if hq is None or book is None else book.expected(hq)
        soft = self.dictionary.fused(
            self.dictionary.common.expected(common), expected, predicted.gate
        )
        return straight_through(soft, hard)

    def after_update(self, moment: Moment, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """See ``Stage``; the guard looks at means over steps and all workers."""
        figures = super().after_update(moment, terms)
        return figures | (self.quality.observe(terms) if self.quality else {})

    def extra_state(self) -> dict[str, Any]:
        """See ``Stage``."""
        mine = {"watch": self.quality.state_dict()} if self.quality else {}
        return super().extra_state() | mine

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """See ``Stage``."""
        super().load_extra_state(state)
        if self.quality:
            self.quality.load_state_dict(state["watch"])

    # ------------------------------------------------------------------------------- figures

    @torch.no_grad()
    def validate(self, batch: Batch) -> Terms:
        """See ``Stage``; restored as the model does by itself, and codes as the face's quality."""
        model = IQP(self.result_config(), self.result())
        with self.autocast():
            image = model(batch.lq).float()
            places = model.encode(batch.lq, fused=False).places
            scores = model.scores(places, qualities(model, batch))
        figures = inversion.validated(self.judges, image, batch)
        if self.judges.quality is not None:
            figures["score"] = self.judges.quality(image).mean()
        return figures | self._right(scores, self._wanted(batch))

    @torch.no_grad()
    def preview(self, batch: Batch) -> Pictures:
        """See ``Stage``."""
        model = IQP(self.result_config(), self.result())
        pictures = {"LQ": batch.lq}
        with self.autocast():
            for title, settings in previews_of(model).items():
                pictures[title] = model(batch.lq, settings=settings).float()
            best = self.dictionary.look_up(self._wanted(batch), self._highest(batch))
            pictures["its codes"] = self.dictionary.decode(best).float()
        return pictures | {"HQ": batch.hq}

    def _highest(self, batch: Batch) -> Tensor:
        return self.model.gate(torch.ones_like(batch.quality))
