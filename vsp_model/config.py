"""What all network configurations share: one frozen base class and the channel table."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

MIN_SIZE = 4


class Config(BaseModel):
    """Frozen; an unknown key is an error, not a typo that passes in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def is_power_of_two(value: int) -> bool:
    """True for 1, 2, 4, ..."""
    return value > 0 and value & (value - 1) == 0


def num_levels(size: int) -> int:
    """Number of resolutions 4, 8, ..., size.

    Raises:
        ValueError: if ``size`` is not a power of two from 8 up.
    """
    if size < 2 * MIN_SIZE or not is_power_of_two(size):
        raise ValueError(f"size {size}: expected a power of two from {2 * MIN_SIZE} up")
    return size.bit_length() - MIN_SIZE.bit_length() + 1


def num_style_slots(size: int) -> int:
    """Styles that synthesis up to ``size`` reads: 2 log2(size) - 2 (16 at 512, 18 at 1024)."""
    return 2 * num_levels(size)


def check_channels(channels: tuple[int, ...], size: int) -> None:
    """Refuse a channel table that has not one width for each of 4, 8, ..., size.

    Raises:
        ValueError: with both counts.
    """
    if len(channels) != num_levels(size):
        raise ValueError(
            f"channels: {len(channels)} values for size {size}, "
            f"expected {num_levels(size)} (4, 8, ..., {size})"
        )


def published_channels(size: int, multiplier: int = 2) -> tuple[int, ...]:
    """Channels at 4, 8, ..., size of every published network (``multiplier`` 2)."""
    sides = (MIN_SIZE << level for level in range(num_levels(size)))
    return tuple(512 if side <= 32 else 256 * multiplier * 64 // side for side in sides)
