"""Every random quantity of a restoration, as explicit input, drawn per image from (seed, key).

The draw depends on nothing else: not on the batch, the neighbours, the order, the worker or a
retry. It happens on the CPU with numpy's PCG64 seeded by 128 bits of SHA-256, so two images of a
large set never share a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

NoiseMode = Literal["seeded", "mean"]

MIXING_PROBABILITY = 0.5  # of the published script, which mixes at test time too
_MEAN_KEY = "mean"


class RandomInputs(NamedTuple):
    """What one batch of B faces needs; every entry float32 but ``inject``."""

    start: Tensor
    """Start noise of the code diffuser, (B, T, D)."""
    z: Tensor
    """Input of the restoration net's mapping, (B, 1, D), or (B, 2, D) with style mixing."""
    inject: Tensor | None
    """First slot of the second z, (B,) int64; None without style mixing."""
    prior_noise: list[Tensor] | None
    """Noise maps of the feature bank, (B, 1, r, r) each; None for zero noise."""
    restoration_noise: list[Tensor] | None
    """Noise maps of the restoration net, (B, 1, r, r) each; None for zero noise."""

    def to(self, device: torch.device | str) -> RandomInputs:
        """The same values on another device."""

        def move(maps: list[Tensor] | None) -> list[Tensor] | None:
            return None if maps is None else [m.to(device, non_blocking=True) for m in maps]

        return RandomInputs(
            self.start.to(device, non_blocking=True),
            self.z.to(device, non_blocking=True),
            None if self.inject is None else self.inject.to(device, non_blocking=True),
            move(self.prior_noise),
            move(self.restoration_noise),
        )


@dataclass(frozen=True)
class RandomShapes:
    """What a model draws for one face."""

    num_tokens: int
    style_dim: int
    num_slots: int
    prior_sides: tuple[int, ...]
    restoration_sides: tuple[int, ...]


def generator_for(seed: int, key: str, purpose: str) -> np.random.Generator:
    """The stream of one image and purpose; equal arguments give equal numbers on any machine."""
    digest = hashlib.sha256(f"{seed}|{purpose}|{key}".encode("utf-8", "surrogatepass")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def draw(
    shapes: RandomShapes,
    keys: Sequence[str],
    seed: int = 0,
    mode: NoiseMode = "seeded",
    *,
    mixing: bool = False,
) -> RandomInputs:
    """Draw for one batch.

    Args:
        shapes: what the model needs (``VSPBFR.random_shapes``).
        keys: one a face; equal keys get equal numbers.
        seed: of the run.
        mode: "seeded" draws everything from (seed, key). "mean" takes start noise and z from one
            fixed stream, the same for every image and run, and injects no noise.
        mixing: style mixing as published: with probability 0.5 a second z from a slot drawn
            uniformly in 1 ... num_slots - 1 on.

    Raises:
        ValueError: for another mode.
    """
    if mode not in get_args(NoiseMode):
        raise ValueError(f"noise mode {mode!r}: expected one of {', '.join(get_args(NoiseMode))}")
    codes = [_codes(shapes, _stream(seed, key, mode), mixing=mixing) for key in keys]
    start, z, inject = (torch.from_numpy(np.stack(part)) for part in zip(*codes, strict=True))
    if mode == "mean":
        return RandomInputs(start, z, inject if mixing else None, None, None)
    return RandomInputs(
        start,
        z,
        inject if mixing else None,
        noise_maps(shapes.prior_sides, keys, seed, "prior"),
        noise_maps(shapes.restoration_sides, keys, seed, "restoration"),
    )


def noise_maps(sides: Sequence[int], keys: Sequence[str], seed: int, purpose: str) -> list[Tensor]:
    """Standard normal maps, (B, 1, side, side) each; a longer list begins with the shorter one."""
    counts = [side * side for side in sides]
    flat = torch.empty(len(keys), sum(counts))
    for row, key in zip(flat.numpy(), keys, strict=True):
        generator_for(seed, key, purpose).standard_normal(out=row, dtype=np.float32)
    parts = flat.split(counts, dim=1)
    return [p.reshape(-1, 1, s, s) for p, s in zip(parts, sides, strict=True)]


def _stream(seed: int, key: str, mode: NoiseMode) -> np.random.Generator:
    if mode == "mean":
        return generator_for(0, _MEAN_KEY, "mean")
    return generator_for(seed, key, "codes")


def _codes(
    shapes: RandomShapes, stream: np.random.Generator, *, mixing: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start = stream.standard_normal((shapes.num_tokens, shapes.style_dim), dtype=np.float32)
    z = stream.standard_normal((2 if mixing else 1, shapes.style_dim), dtype=np.float32)
    inject = shapes.num_slots
    if mixing and stream.random() < MIXING_PROBABILITY:
        inject = int(stream.integers(1, shapes.num_slots))
    return start, z, np.array(inject, dtype=np.int64)
