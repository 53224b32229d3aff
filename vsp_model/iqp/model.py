"""IQP assembled: degraded face, quality -> codes of two books -> restored face.

Shapes: B batch, S working size, h side of the latent, T = h h places, D channels of the latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vsp_model.ask import Ask, dial_of, refuse_others
from vsp_model.condition import Dial, guided
from vsp_model.faces import check_faces
from vsp_model.iqp.backbone import Encoder, Modulate
from vsp_model.iqp.codebook import gate
from vsp_model.iqp.config import IQPConfig
from vsp_model.iqp.dictionary import Dictionary, as_places
from vsp_model.iqp.embedding import CodeCondition
from vsp_model.iqp.fusion import FidelityFusion
from vsp_model.iqp.predictor import Predictor
from vsp_model.randomness import NoiseMode

FORMAT = torch.channels_last
_NOTHING = Ask()
_EPS = 1e-5


class Settings(NamedTuple):
    """What a restoration is asked for, as plain numbers."""

    dial: Dial | None
    """Quality and guidance; None for a model without the condition."""
    fidelity: float
    """w: 0 the codes alone, 1 closest to the degraded face."""


class NothingDrawn(NamedTuple):
    """IQP draws nothing: its result follows from the face and what is asked for."""

    def to(self, device: torch.device | str) -> NothingDrawn:
        """The same nothing on another device."""
        return self


class Latent(NamedTuple):
    """What the encoder says of a degraded face."""

    places: Tensor
    """(B, T, D), float32 or wider."""
    features: dict[int, Tensor]
    """For stage III, by side, (B, C, r, r)."""


class IQP(nn.Module):
    """Restoration with an image quality prior.

    Args:
        config: Of the whole.
        parts: Networks by name that are there already; those that are not are made.
    """

    def __init__(self, config: IQPConfig, parts: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.config = config
        there = parts or {}
        self.lq_encoder = cast(Encoder, there.get("lq_encoder") or Encoder(config.lq_encoder))
        self.dictionary = cast(Dictionary, there.get("dictionary") or Dictionary(config.dictionary))
        self.predictor = cast(Predictor, there.get("predictor") or Predictor(config.predictor))
        self.embedding: CodeCondition | None = None
        if config.embedding is not None:
            made = there.get("embedding") or CodeCondition(config.embedding)
            self.embedding = cast(CodeCondition, made)
        self.fusion: FidelityFusion | None = None
        if config.fusion is not None:
            made = there.get("fusion") or FidelityFusion(config.fusion)
            self.fusion = cast(FidelityFusion, made)

    @property
    def size(self) -> int:
        """Working size S in pixels."""
        return self.config.size

    def drawn(self, keys: Sequence[str], seed: int = 0, mode: NoiseMode = "seeded") -> NothingDrawn:
        """Every random quantity of a batch: none."""
        return NothingDrawn()

    def settle(self, ask: Ask) -> Settings:
        """What is asked for, as plain numbers.

        Raises:
            ValueError: in one line, for what this model can't do.
        """
        kind = self.config.kind
        refuse_others(ask, kind, "fidelity")
        scored = self.embedding is None or self.embedding.condition.scored
        dial = dial_of(ask, self.config.condition, kind, scored=scored)
        wanted = self.config.fidelity if ask.fidelity is None else ask.fidelity
        if self.config.fusion is None:
            if ask.fidelity:
                raise ValueError(f"fidelity: this {kind} model was trained without stage III")
            wanted = 0.0
        return Settings(dial, wanted)

    def forward(
        self, lq: Tensor, drawn: NothingDrawn | None = None, settings: Settings | None = None
    ) -> Tensor:
        """Degraded faces -> restored faces.

        Args:
            lq: (B, 3, S, S) in [-1, 1].
            drawn: of this batch; IQP draws nothing.
            settings: of ``settle``; None for the model's own.

        Returns:
            (B, 3, S, S), about [-1, 1], not clamped.
        """
        dial, fidelity = settings or self.settle(_NOTHING)
        latent = self.encode(lq, fused=fidelity > 0)
        dial = dial or Dial()
        scores = guided(lambda quality: self.scores(latent.places, quality), dial, lq)
        feature = self.feature(scores, latent.places, dial.tensor(lq))
        return self.dictionary.decode(feature, self.modulation(latent, fidelity))

    def encode(self, lq: Tensor, *, fused: bool) -> Latent:
        """The latent of degraded faces, with the features of stage III where they are wanted."""
        sides = self.config.fidelity_sides if fused and self.fusion is not None else ()
        latent, features = self.lq_encoder.features(lq, sides)
        return Latent(as_places(latent), features)

    def conditioned(self, places: Tensor, quality: Tensor) -> Tensor:
        """The latent that knows the quality, Z + E_S, a new tensor (B, T, D)."""
        return places if self.embedding is None else self.embedding(places, quality)

    def scores(self, places: Tensor, quality: Tensor) -> Tensor:
        """Scores of the codes for a latent and qualities (B,); see ``Predictor``."""
        return self.predictor(self.conditioned(places, quality))

    def gate(self, quality: Tensor) -> Tensor:
        """Weight of the HQ+ codes for qualities (B,) that are asked for, (B,)."""
        if self.embedding is None:  # nobody can ask: they are always added, as released [C]
            return torch.full_like(quality, self.config.books.alpha)
        if not self.embedding.condition.scored:  # it was never told which faces deserve them
            return torch.zeros_like(quality)
        return gate(quality, self.config.books)

    def feature(self, scores: Tensor, places: Tensor, quality: Tensor) -> Tensor:
        """What the best codes say, (B, T, D), HQ+ gated by the quality (B,) that is asked for."""
        feature = self.dictionary.look_up(self.predictor.best(scores), self.gate(quality))
        if self.config.colour_transfer:
            feature = adain(feature, self.conditioned(places, quality))
        return feature

    def modulation(self, latent: Latent, fidelity: float | Tensor) -> Modulate | None:
        """Stage III for the decoder; None where it is not wanted."""
        if self.fusion is None or not latent.features:
            return None
        return self.fusion(latent.features, fidelity)

    @torch.no_grad()
    def restore(
        self,
        lq: Tensor,
        keys: Sequence[str],
        *,
        seed: int = 0,
        noise: NoiseMode = "seeded",
        ask: Ask = _NOTHING,
    ) -> Tensor:
        """Check the batch and restore it.

        A face has the same bits at every place of a batch of one shape, whoever stands beside it. A
        batch of another size may round the last bits otherwise (most of all a batch of one), so the
        pipeline pads all batches to one shape.

        Args:
            lq: (B, 3, S, S) float32 in [-1, 1], RGB.
            keys: one a face.
            seed: of the run; IQP draws nothing.
            noise: see ``randomness.draw``; alike.
            ask: which quality, which fidelity; see ``settle``.

        Returns:
            (B, 3, S, S), about [-1, 1], not clamped.

        Raises:
            ValueError: in one line, what came, in which items, and what is expected.
        """
        check_faces(lq, self.size, keys)
        settings = self.settle(ask)
        return self(lq.contiguous(memory_format=FORMAT), self.drawn(keys, seed, noise), settings)


def adain(feature: Tensor, like: Tensor) -> Tensor:
    """Give each channel the mean and deviation that it has in another feature, (B, T, D) both.

    CodeFormer's transfer of colours [C]; it brings a colour cast back with them.
    """
    deviation, mean = torch.var_mean(feature, dim=1, keepdim=True)
    wanted_deviation, wanted_mean = torch.var_mean(like, dim=1, keepdim=True)
    scale = ((wanted_deviation + _EPS) / (deviation + _EPS)).sqrt()
    return (feature - mean) * scale + wanted_mean
