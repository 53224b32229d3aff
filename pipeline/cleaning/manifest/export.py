"""A manifest as CSV, for people and other programs.

A cell that a spreadsheet would take for a formula gets an apostrophe before it: names and sources
come from strangers.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from pipeline.cleaning.manifest.read import rows

What = Literal["decisions", "clean", "changes"]
FORMULA = ("=", "+", "-", "@", "\t", "\r")
STAYS = ("kept", "restored", "fallback")

DECISIONS = (
    "shard", "index", "key", "decision", "decision_reason", "decision_detail", "outcome",
    "fallback", "sha256", "sha256_out", "copy_of", "quality", "quality_after", "identity",
)  # fmt: skip
CLEAN = ("sha256", "sha256_out", "shard", "key", "outcome", "source")
CHANGES = (
    "shard", "key", "source", "author", "licence", "changes", "model_sha256", "sha256", "sha256_out"
)  # fmt: skip
_READ: Mapping[What, tuple[str, ...]] = {
    "decisions": DECISIONS,
    "clean": CLEAN,
    "changes": ("shard", "key", "source", "author", "licence", "outcome", "operations", "sha256",
                "sha256_out"),
}  # fmt: skip


def columns_of(what: What) -> tuple[str, ...]:
    """The manifest's columns that an export reads."""
    return _READ[what]


def export(tables: Iterable[pa.Table], what: What, file: BinaryIO) -> int:
    """Write one of the lists.

    Args:
        tables: Parts of the manifest with the columns of `columns_of`.
        what: "decisions": every image and what was decided; "clean": sha256 and key of what stays,
            a list that other copies of the set can be cut down by; "changes": what was changed, by
            whom it is and under which licence.
        file: Where to.

    Returns:
        Lines written, without the first.
    """
    names, make = {
        "decisions": (DECISIONS, _decision), "clean": (CLEAN, _clean),
        "changes": (CHANGES, _change),
    }[what]  # fmt: skip
    return write_csv(file, names, _lines(tables, make))


def write_csv(file: BinaryIO, names: Sequence[str], lines: Iterable[Sequence[Any]]) -> int:
    """Write lines under names, with every cell made safe; returns their number."""
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(safe(name) for name in names)
    num_lines = 0
    for line in lines:
        writer.writerow([safe(value) for value in line])
        num_lines += 1
    text.detach()
    return num_lines


def safe(value: Any) -> Any:
    """A cell that no spreadsheet runs: text that begins like a formula is told to be text."""
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=str)
    return value


def _lines(
    tables: Iterable[pa.Table], make: Callable[[Mapping[str, Any]], Sequence[Any] | None]
) -> Iterator[Sequence[Any]]:
    for table in tables:
        for row in rows(table):
            if row["outcome"] != "forgotten" and (line := make(row)) is not None:
                yield line


def _decision(row: Mapping[str, Any]) -> Sequence[Any]:
    return [row[name] for name in DECISIONS]


def _clean(row: Mapping[str, Any]) -> Sequence[Any] | None:
    stays = row["outcome"] in STAYS and row["sha256"]
    return [row[name] for name in CLEAN] if stays else None


def _change(row: Mapping[str, Any]) -> Sequence[Any] | None:
    done = taken(row)
    if row["outcome"] not in STAYS or not done:
        return None
    values = dict(row) | {
        "changes": "; ".join(_said(each) for each in done),
        "model_sha256": " ".join(each["model_sha256"] for each in done if "model_sha256" in each),
    }
    return [values[name] for name in CHANGES]


def taken(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The operations whose outcome is in the cleaned set."""
    restored = row["outcome"] == "restored"
    operations: list[dict[str, Any]] = json.loads(row["operations"])
    return [each for each in operations if each.get("operation") != "restore" or restored]


def _said(operation: Mapping[str, Any]) -> str:
    """An operation in words: what licences ask for when they ask to indicate changes."""
    if operation.get("operation") == "restore":
        model = operation.get("model", "a model")
        return f"face restored by {model}: details are the model's, not the photographer's"
    if operation.get("operation") == "align":
        return "face cut out, turned and scaled"
    return str(operation.get("operation", "changed"))
