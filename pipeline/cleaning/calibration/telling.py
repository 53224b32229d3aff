"""What a calibration came to, for people: a table for the terminal and one sentence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.cleaning.calibration.levels import level_of

if TYPE_CHECKING:
    from pipeline.cleaning.calibration.thresholds import CalibrateConfig, Level, Refusal, Thresholds


def conclusion(
    levels: Sequence["Level"], keep: float | None, refusal: "Refusal", config: "CalibrateConfig"
) -> str:
    """One sentence about what was derived."""
    if refusal == "uncalibrated":
        least = min(level.count for level in levels)
        return (
            f"Nothing is restored: only {least} good faces could be tried, and fewer than "
            f"{config.min_trials} say nothing."
        )
    if refusal == "no_profit":
        return (
            "Nothing is restored: at no level do "
            f"{config.min_closer:.0%} of the faces come closer to the truth."
        )
    if refusal == "identity_unmeasurable":
        return (
            "Nothing is restored: where faces come closer to the truth, the identity net cannot "
            "tell people apart."
        )
    restored = [level.level for level in levels if not level.refusal]
    which = f"level {restored[0]}" if len(restored) == 1 else f"levels {_list(restored)}"
    return f"Restored is what looks like {which}: a quality below {keep:.3f}."


def _list(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


COLUMNS = (
    "level", "n", "quality", "to the truth", "closer", "(95 %)", "same person", "strangers below",
    "gain from", "change to", "decision",
)  # fmt: skip


def table_lines(thresholds: "Thresholds") -> list[str]:
    """The table for a terminal: a line a level, what was derived, and the conclusion."""
    rows = [COLUMNS, *(_cells(level) for level in thresholds.levels)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    told = "; ".join(f"{name} {value}" for name, value in sorted(thresholds.facts.items()))
    return [*lines, *([told] if told else []), thresholds.conclusion]


def _cells(level: "Level") -> tuple[str, ...]:
    name = f"{level.level} {level_of(level.level).name}"
    if level.quality is None:
        return (name, str(level.count), *("-",) * (len(COLUMNS) - 3), "kept: too few faces")
    decision = "restored" if not level.refusal else f"kept: {level.refusal}"
    return (
        name, str(level.count), f"{level.quality:.3f}",
        f"{level.distance_before:.3f} -> {level.distance_after:.3f}",
        f"{level.closer:.0%}", f"{level.closer_low:.0%} to {level.closer_high:.0%}",
        f"{level.genuine_share:.0%}, known {level.known_share:.0%}",
        _number(level.identity_threshold, 2), _number(level.min_gain, 3),
        _number(level.max_change, 3), decision,
    )  # fmt: skip


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
