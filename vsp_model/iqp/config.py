"""Settings of IQP; the defaults are the released network at 512 pixels.

What was read in the released code is marked [C], what is ours [I].
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vsp_model.condition import ConditionConfig
from vsp_model.config import Config, is_power_of_two


class BackboneConfig(Config):
    """From a picture to a latent of its side / unshuffle / 2^(levels - 1), and back [C].

    Attributes:
        size: Side of the picture in pixels.
        unshuffle: Pixels of so many rows and columns become channels before the first convolution
            [I]: small CPU networks work at a quarter of the pixels.
        channels: Width of the first level.
        multipliers: Width of each level over ``channels``; each after the first halves the side.
        num_blocks: ResBlocks a level.
        attention: Self-attention at the coarsest side.
        latent: Channels of the latent, which is the width of a code.
        groups: Of every GroupNorm.
    """

    size: int = 512
    unshuffle: Literal[1, 2, 4] = 1
    channels: int = Field(64, ge=1)
    multipliers: tuple[int, ...] = Field((1, 2, 2, 4, 4, 8), min_length=1)
    num_blocks: int = Field(2, ge=1)
    attention: bool = True
    latent: int = Field(256, ge=1)
    groups: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not is_power_of_two(self.size) or self.latent_side < 1:
            raise ValueError(
                f"size {self.size}: expected a power of two with a pixel left after "
                f"{len(self.multipliers) - 1} halvings"
            )
        odd = [m for m in self.multipliers if (m * self.channels) % self.groups]
        if odd:
            raise ValueError(f"groups {self.groups}: do not divide {odd[0] * self.channels}")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(m * self.channels for m in self.multipliers)

    @property
    def latent_side(self) -> int:
        """Side of the latent, h."""
        return self.size // self.unshuffle // 2 ** (len(self.multipliers) - 1)


class BooksConfig(Config):
    """The two codebooks and how they are fused: Z_q = q_c + alpha m q_h [C].

    Attributes:
        num_codes: Of the common book.
        num_codes_hq: Of the HQ+ book, which learns only from pictures above the threshold; 0: a
            single book.
        alpha: Weight of the HQ+ codes; belongs to the weights (the released command line uses 0.5
            with weights trained at 0.8: a mistake that is impossible here).
        fusion: "add", or attention from the common to the HQ+ codes (8 heads).
        threshold: Percentile of the training scores above which a picture feeds the HQ+ book [I];
            the released 0.70 lets nine of ten faces of FFHQ pass.
        softness: tau of the gate alpha sigmoid((S* - S_thr) / tau) in stages II and later [I]; the
            released code adds the HQ+ codes whatever quality is asked for, and so does a model
            without a condition.
        beta: Weight of the codebook's ("legacy") or the commitment's ("paper") half of the loss.
        beta_side: Which; the released code has it on the codebook's.
        update: Codes learn by gradient [C], or as averages of what is assigned to them [I].
        decay: Of those averages.
        restart_steps: A code that was not used for so many steps begins anew at a latent of the
            batch; 0: never.
    """

    num_codes: int = Field(1024, ge=2)
    num_codes_hq: int = Field(1024, ge=0)
    alpha: float = Field(0.8, ge=0)
    fusion: Literal["add", "attention"] = "add"
    threshold: float = Field(0.5, ge=0, le=1)
    softness: float = Field(0.05, gt=0)
    beta: float = Field(0.25, ge=0)
    beta_side: Literal["legacy", "paper"] = "legacy"
    update: Literal["gradient", "average"] = "gradient"
    decay: float = Field(0.99, ge=0, lt=1)
    restart_steps: int = Field(0, ge=0)


class DictionaryConfig(Config):
    """Codebooks and the decoder of what they say; frozen after stage I."""

    backbone: BackboneConfig = BackboneConfig()
    books: BooksConfig = BooksConfig()

    @property
    def num_heads(self) -> int:
        """Of the attention that fuses the books [C]."""
        return 8

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.books.fusion == "attention" and self.backbone.latent % self.num_heads:
            raise ValueError(
                f"latent {self.backbone.latent}: can't be split among {self.num_heads} heads"
            )
        return self


class PredictorConfig(Config):
    """The Transformer that predicts both code sequences [C].

    Attributes:
        latent: Channels of what it reads.
        num_tokens: h * h.
        num_codes: Of the common book.
        num_codes_hq: Of the HQ+ book.
        width: Of a token.
        num_layers: Pre-norm layers.
        num_heads: Of the attention.
        hidden: Between the two layers of each MLP.
    """

    latent: int = 256
    num_tokens: int = 256
    num_codes: int = 1024
    num_codes_hq: int = 1024
    width: int = Field(512, ge=1)
    num_layers: int = Field(9, ge=1)
    num_heads: int = Field(8, ge=1)
    hidden: int = Field(1024, ge=1)

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width}: can't be split among {self.num_heads} heads")
        return self


class TransformerConfig(Config):
    """The predictor's own widths; the rest follows from the latent and the books."""

    width: int = Field(512, ge=1)
    num_layers: int = Field(9, ge=1)
    num_heads: int = Field(8, ge=1)
    hidden: int = Field(1024, ge=1)


class FidelityConfig(Config):
    """Controllable fidelity (stage III): the degraded picture's features modulate the decoder's.

    Attributes:
        backbone: Of encoder and decoder.
        sides: Sides of the features, in pixels after the unshuffle; 32, 64, 128, 256 in CodeFormer.
            Where there is an unshuffle, the picture's own side may be one, too [I]: else what is
            finer than the unshuffled pixels comes from the codes alone.
    """

    backbone: BackboneConfig = BackboneConfig()
    sides: tuple[int, ...] = (32, 64, 128, 256)

    @model_validator(mode="after")
    def _sides_there(self) -> Self:
        levels = range(len(self.backbone.multipliers))
        known = [self.backbone.size // self.backbone.unshuffle >> n for n in levels]
        known = list(dict.fromkeys([self.backbone.size, *known]))
        odd = [side for side in self.sides if side not in known]
        if odd:
            raise ValueError(f"sides: no level of {odd[0]} pixels; there are {known}")
        return self


class EmbeddingConfig(Config):
    """The quality condition of IQP: Z + reshape(E_S) [C], by our condition instead of ten bins.

    Attributes:
        condition: How a quality is embedded.
        latent: Channels.
        side: h.
        per_place: An embedding for each place of the latent as released, or one for all [I].
    """

    condition: ConditionConfig = ConditionConfig(default=0.9)
    latent: int = 256
    side: int = 16
    per_place: bool = True


class IQPConfig(Config):
    """The whole restorer; the defaults are the released 512 network.

    Attributes:
        encoder: Of the degraded picture and, in stage I, of the clean one.
        books: The two codebooks.
        transformer: Widths of the predictor.
        condition: The quality condition; null: none.
        condition_per_place: See ``EmbeddingConfig.per_place``.
        fidelity_sides: Where stage III modulates; empty: no stage III.
        fidelity: w where nobody asks: 0 the codes alone (released), 1 closest to the input.
        colour_transfer: Give the codes' feature the mean and deviation of the degraded picture's
            [C]; off where the colours are what is to be restored [I].
    """

    kind: Literal["iqp"] = "iqp"
    encoder: BackboneConfig = BackboneConfig()
    books: BooksConfig = BooksConfig()
    transformer: TransformerConfig = TransformerConfig()
    condition: ConditionConfig | None = ConditionConfig(default=0.9)
    condition_per_place: bool = True
    fidelity_sides: tuple[int, ...] = (32, 64, 128, 256)
    fidelity: float = Field(0.0, ge=0, le=1)
    colour_transfer: bool = True

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        # Made here, so that each part's own checks refuse a file when it is read.
        _ = self.dictionary, self.predictor, self.embedding, self.fusion
        return self

    @property
    def size(self) -> int:
        """Working size S in pixels."""
        return self.encoder.size

    # The parts of a bundle, by name.

    @property
    def hq_encoder(self) -> BackboneConfig:
        """Encoder of clean pictures; stage I and II need it, restoring does not."""
        return self.encoder

    @property
    def lq_encoder(self) -> BackboneConfig:
        """Encoder of degraded pictures."""
        return self.encoder

    @property
    def dictionary(self) -> DictionaryConfig:
        """Books and decoder."""
        return DictionaryConfig(backbone=self.encoder, books=self.books)

    @property
    def predictor(self) -> PredictorConfig:
        """The Transformer."""
        return PredictorConfig(
            latent=self.encoder.latent,
            num_tokens=self.encoder.latent_side**2,
            num_codes=self.books.num_codes,
            num_codes_hq=self.books.num_codes_hq,
            **self.transformer.model_dump(),
        )

    @property
    def embedding(self) -> EmbeddingConfig | None:
        """The quality condition, if there is one."""
        if self.condition is None:
            return None
        return EmbeddingConfig(
            condition=self.condition,
            latent=self.encoder.latent,
            side=self.encoder.latent_side,
            per_place=self.condition_per_place,
        )

    @property
    def fusion(self) -> FidelityConfig | None:
        """Stage III, if there is one."""
        if not self.fidelity_sides:
            return None
        return FidelityConfig(backbone=self.encoder, sides=self.fidelity_sides)
