"""Checks at the door: what a batch of faces must be, and one line about what came instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SLACK = 1e-3  # resampling may overshoot the range by rounding; more is another value range


def check_faces(lq: Tensor, size: int, keys: Sequence[str]) -> None:
    """Refuse anything but (B, 3, size, size) float32, finite, in [-1, 1], with a key per face.

    Raises:
        ValueError: in one line: what came, in which items of the batch, what is expected.
    """
    expected = f"expected (B, 3, {size}, {size}) float32 RGB in [-1, 1]"
    if lq.ndim != 4:
        raise ValueError(f"faces: got {lq.ndim} axes {tuple(lq.shape)}; {expected}")
    if lq.shape[1] != 3:
        raise ValueError(f"faces: got {lq.shape[1]} channels; {expected}")
    if lq.shape[2:] != (size, size):
        raise ValueError(f"faces: got {lq.shape[2]} x {lq.shape[3]} pixels; {expected}")
    if lq.dtype != torch.float32:
        raise ValueError(f"faces: got {str(lq.dtype).removeprefix('torch.')}; {expected}")
    if len(keys) != len(lq) or not keys:
        raise ValueError(
            f"faces: got {len(lq)} faces and {len(keys)} keys; expected one key a face"
        )
    bad = ~finite_items(lq)
    if bad.any():
        raise ValueError(f"faces: NaN or infinite values in {_items(bad, keys)}; {expected}")
    peak = lq.detach().abs().amax(dim=(1, 2, 3))
    bad = peak > 1 + _SLACK
    if bad.any():
        raise ValueError(
            f"faces: values up to {peak.max().item():.4g} in {_items(bad, keys)}; {expected}"
        )


def finite_items(batch: Tensor) -> Tensor:
    """(B, ...) -> (B,) bool, True where every value of the item is finite."""
    batch = batch.detach()
    # A sum is finite only if every term is, and takes a tenth of the time of asking each. It may
    # also overflow, so that the rest is asked.
    dims = tuple(range(1, batch.dim()))
    finite = batch.sum(dims, dtype=torch.promote_types(batch.dtype, torch.float32)).isfinite()
    if not finite.all():
        rest = ~finite
        finite[rest] = batch[rest].isfinite().flatten(1).all(dim=1)
    return finite


def _items(bad: Tensor, keys: Sequence[str]) -> str:
    found = bad.nonzero().flatten().tolist()
    shown = ", ".join(f"{i} ({keys[i]})" for i in found[:4])
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return f"item{'s' if len(found) > 1 else ''} {shown}{more}"
