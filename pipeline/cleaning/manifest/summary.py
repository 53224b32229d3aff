"""A manifest in a few tables."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cleaning.manifest.export import STAYS
from pipeline.cleaning.manifest.read import read_manifest
from pipeline.storage import Store

Table = tuple[str, Sequence[str], list[Sequence[Any]]]
COLUMNS = ("decision", "decision_reason", "outcome", "fallback", "quality", "classic",
           "quality_after", "classic_after")  # fmt: skip


def summarise(store: Store) -> Iterator[Table]:
    """Title, names of the columns and rows of each table.

    Args:
        store: The OUT of a cleaning run.
    """
    manifest = read_manifest(store, COLUMNS)
    yield _counts(manifest)
    yield _qualities(manifest)


def _counts(manifest: pa.Table) -> Table:
    names = ("outcome", "decision", "decision_reason", "fallback")
    columns = (manifest[name].to_pylist() for name in names)
    found = Counter(zip(*columns, strict=True))
    order = Counter(manifest["outcome"].to_pylist())
    rows: list[Sequence[Any]] = [
        [outcome, decision, fallback or reason, count]
        for (outcome, decision, reason, fallback), count in sorted(
            found.items(), key=lambda item: (-order[item[0][0]], -item[1], item[0])
        )
    ]
    return f"{len(manifest)} images", ("outcome", "decision", "why", "images"), rows


def _qualities(manifest: pa.Table) -> Table:
    """Medians by the net that gates, and by the classic measures, which it knows nothing of."""
    stays = pc.is_in(manifest["outcome"], value_set=pa.array(STAYS))
    restored = manifest.filter(pc.equal(manifest["outcome"], "restored"))
    kept = manifest.filter(stays)
    after = {
        name: pc.coalesce(
            pc.if_else(pc.equal(kept["outcome"], "restored"), kept[f"{name}_after"], None),
            kept[name],
        )
        for name in ("quality", "classic")
    }
    rows: list[Sequence[Any]] = [
        ["all images, before", len(manifest), *_medians(manifest["quality"], manifest["classic"])],
        ["what stays, after", len(kept), *_medians(after["quality"], after["classic"])],
        ["restored, before", len(restored), *_medians(restored["quality"], restored["classic"])],
        ["restored, after", len(restored),
         *_medians(restored["quality_after"], restored["classic_after"])],
    ]  # fmt: skip
    return "median quality, 0 to 1", ("", "images", "quality net", "classic measures"), rows


def _medians(*columns: pa.ChunkedArray) -> list[float | None]:
    values = [np.asarray(pc.drop_null(column).to_pylist(), np.float64) for column in columns]
    return [float(np.median(each)) if len(each) else None for each in values]
