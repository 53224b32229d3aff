"""Settings that every training stage has."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vsp_model.config import Config
from vsp_model.train.batch import Parts


class AdamConfig(Config):
    """Adam with a schedule; the defaults of betas are PyTorch's."""

    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = Field(0.0, ge=0)
    """Largest norm of the gradient of all networks that this optimiser moves; 0 for no limit."""
    warmup_images: int = Field(0, ge=0)
    """The learning rate rises linearly over them."""
    decay: Literal["constant", "cosine"] = "constant"
    """Cosine falls to ``final_lr`` at the run's last image."""
    final_lr: float | None = Field(None, ge=0)
    """Null: zero."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.final_lr is not None and self.decay == "constant":
            raise ValueError(f"final_lr {self.final_lr}: the rate is constant; use decay: cosine")
        if (self.final_lr or 0) > self.lr:
            raise ValueError(f"final_lr {self.final_lr}: expected at most lr {self.lr}")
        return self


class EMAConfig(Config):
    """Average of the trained network's parameters, which is what is kept."""

    half_life_images: float = Field(10_000, gt=0)
    ramp: float = Field(0.0, ge=0)
    """Half-life at most this share of the images seen; 0: from the start as configured."""


class RunConfig(Config):
    """How long, in which portions, with what care."""

    seed: int = Field(0, ge=0)
    num_images: int = Field(gt=0)
    """Training ends with the step that reaches it; the schedule is spread over it."""
    batch_size: int = Field(8, ge=1)
    """Records a step, over all workers."""
    part_size: int | None = Field(None, ge=1)
    """Records a forward pass; null: the whole batch. Decides the result (batch norm, order of
    sums), the number of workers does not. Workers share the parts: at most batch / part of them."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the forward pass; weights, gradients and losses stay float32."""
    threads: int = Field(0, ge=0)
    """Torch threads of a process on the CPU, 0 for all cores; they decide the last bits."""
    log_images: int = Field(2_000, ge=1)
    """Scalars are written after so many images."""
    preview_images: int = Field(20_000, ge=1)
    """Sample grids are drawn, and validation runs, after so many."""
    checkpoint_images: int = Field(20_000, ge=1)
    keep_checkpoints: int = Field(3, ge=1)
    """The newest so many are kept, and the best."""
    best: str = "val/loss"
    """Validation figure that names the best checkpoint; lower is better."""
    max_bad_steps: int = Field(20, ge=1)
    """Steps in a row with NaN or infinite gradients that end the run; each is left out."""

    @model_validator(mode="after")
    def _whole_parts(self) -> Self:
        if self.batch_size % (self.part_size or self.batch_size):
            raise ValueError(
                f"batch_size {self.batch_size}: expected a multiple of part_size {self.part_size}"
            )
        return self

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return -(-self.num_images // self.batch_size)

    def parts(self, rank: int, world: int) -> Parts:
        """This worker's share of a step.

        Raises:
            ValueError: if the workers can't share the parts evenly.
        """
        parts = Parts(self.batch_size, self.part_size or self.batch_size, rank, world)
        if parts.count % world:
            raise ValueError(
                f"{world} workers: batch_size {parts.batch_size} has {parts.count} part(s) of "
                f"{parts.part_size}; use --set run.part_size={max(1, parts.batch_size // world)}"
            )
        return parts
