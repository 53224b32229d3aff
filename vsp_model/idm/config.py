"""Settings of IDM. No code of it is public: what its siblings do is marked [S], what is ours [I].

[S] is SR3 (its public re-implementation) and DDPM.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vsp_model.condition import ConditionConfig
from vsp_model.config import Config, is_power_of_two


class UNetConfig(Config):
    """Network of one step; the defaults are SR3's at 128 pixels [S].

    Attributes:
        size: Side of the picture in pixels.
        unshuffle: Pixels of so many rows and columns become channels at the door [I].
        channels: Width of the first level.
        multipliers: Width of each level over ``channels``; each after the first halves the side.
        num_blocks: ResBlocks a level.
        attention_sides: Sides, after the unshuffle, with self-attention; the middle always has it.
        groups: Of every GroupNorm.
        dropout: In each ResBlock, in training.
        conditional: Read the degraded picture beside the noisy one, as more channels [S]; False is
            DifFace's prior, which knows the picture only from where the chain starts.
        condition: The quality condition, added to the embedding of the noise level [I]; null: none.
        scaled_state: Show the network its state times sqrt(ab), the best linear guess at what lies
            under the noise [I]: pure noise is hardly seen, and needs not be unlearnt. For networks
            that predict x0 or the residual; eps could not be told from it.
        tail_channels: With an unshuffle, what each pixel is told before a last convolution at full
            resolution [I]; 0: no such convolution.
        zero_out: Begin with a last convolution of zeros [I]: a residual chain is then the identity.
    """

    size: int = 128
    unshuffle: Literal[1, 2, 4] = 1
    channels: int = Field(64, ge=2)
    multipliers: tuple[int, ...] = Field((1, 2, 4, 8, 8), min_length=1)
    num_blocks: int = Field(2, ge=1)
    attention_sides: tuple[int, ...] = (16,)
    groups: int = Field(32, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    conditional: bool = True
    condition: ConditionConfig | None = None
    scaled_state: bool = False
    tail_channels: int = Field(0, ge=0)
    zero_out: bool = True

    @property
    def sides(self) -> tuple[int, ...]:
        """In pixels after the unshuffle, of each level from the finest."""
        return tuple(self.size // self.unshuffle >> k for k in range(len(self.multipliers)))

    @model_validator(mode="after")
    def _whole(self) -> Self:
        coarsest = self.size // self.unshuffle // 2 ** (len(self.multipliers) - 1)
        if not is_power_of_two(self.size) or coarsest < 1:
            raise ValueError(
                f"size {self.size}: expected a power of two with a pixel left after "
                f"{len(self.multipliers) - 1} halvings"
            )
        odd = [m for m in self.multipliers if (m * self.channels) % self.groups]
        if odd:
            raise ValueError(f"groups {self.groups}: do not divide {odd[0] * self.channels}")
        return self


class NoiseConfig(Config):
    """The forward process: variances evenly spaced [S]."""

    num_steps: int = Field(2000, ge=1)
    beta_start: float = Field(1e-6, gt=0, lt=1)
    beta_end: float = Field(1e-2, gt=0, lt=1)


class IDMConfig(Config):
    """The whole restorer.

    Attributes:
        unet: The network.
        noise: The forward process.
        param: What the network predicts: the noise [S], v, the clean picture, or the clean residual
            (x - y) / residual_scale [I], which alone learns anything in minutes on a CPU.
        residual_scale: Deviation of a residual, about [I].
        sampler: Used where nobody asks: "ancestral" [S] or "ddim", the default [I].
        steps: Of the sampler, evenly spread over the schedule; 50 of them [I].
        eta: Noise of the DDIM sampler: 0 none, the default [I], 1 that of the ancestral one.
        start: From pure noise [S], or from an estimate noised to ``t0`` (DifFace) [I].
        t0: How far, as a share of the schedule; DifFace's 100 of 250 steps [S].
    """

    kind: Literal["idm"] = "idm"
    unet: UNetConfig = UNetConfig()
    noise: NoiseConfig = NoiseConfig()
    param: Literal["eps", "v", "x0", "residual_x0"] = "eps"
    residual_scale: float = Field(0.3, gt=0)
    sampler: Literal["ddim", "ancestral"] = "ddim"
    steps: int = Field(50, ge=1)
    eta: float = Field(0.0, ge=0, le=1)
    start: Literal["noise", "estimate"] = "noise"
    t0: float = Field(0.4, gt=0, le=1)

    @property
    def size(self) -> int:
        """Working size S in pixels."""
        return self.unet.size

    @property
    def condition(self) -> ConditionConfig | None:
        """The quality condition, if there is one."""
        return self.unet.condition

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.steps > self.noise.num_steps:
            raise ValueError(f"steps {self.steps}: the schedule has {self.noise.num_steps}")
        if self.unet.scaled_state and self.param == "eps":
            raise ValueError(
                "unet.scaled_state: param eps asks for noise that it hides; use v or x0"
            )
        if not self.unet.conditional and self.start == "noise":
            raise ValueError("start noise: an unconditional net would never see the picture")
        if not self.unet.conditional and self.param == "residual_x0":
            raise ValueError(
                "param residual_x0: an unconditional net does not see what is left over"
            )
        return self
