"""The current view of an evaluation folder: which images, which metrics with which weights.

Rows in `scores/` and `features/` outlive it: an image or a weight file may be replaced. What counts
is what this view names.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.metrics.choose import Choice
from pipeline.metrics.table import BY_NAME
from pipeline.scoring.pairs import PairSet, write_pairs
from pipeline.scoring.work import Work
from pipeline.storage import Store, load_json

CURRENT = "metrics.json"


@dataclass(frozen=True, slots=True)
class Current:
    """How each metric is computed now.

    Attributes:
        weights: Protocol -> what identifies its weights (column `weights_sha256`).
        files: Protocol -> weight file -> sha256.
        missing: Metrics that were not computed, a line each with the fix.
        references: Data set -> statistics file that FID compares with.
    """

    weights: dict[str, str]
    files: dict[str, dict[str, str]]
    missing: tuple[str, ...]
    references: dict[str, str]


def load_current(store: Store) -> Current:
    """Read the view; an empty one where nothing was scored."""
    try:
        facts: dict[str, Any] = load_json(store, CURRENT)
    except FileNotFoundError:
        facts = {"weights": {}, "files": {}, "missing": [], "references": {}}
    return Current(**facts | {"missing": tuple(facts["missing"])})


def save_current(
    store: Store,
    sets: Sequence[PairSet],
    choice: Choice,
    work: Sequence[Work],
    references: dict[str, str],
) -> None:
    """Make these images and metrics current, and tell workers what to do.

    Metrics of earlier runs stay current unless these have the same protocol.
    """
    for each in work:
        each.save(store)
    for pair_set in sets:
        write_pairs(store, pair_set)
    before = load_current(store)
    weights, files = dict(before.weights), dict(before.files)
    for chosen in choice.chosen:
        for name in chosen.metrics:
            weights[BY_NAME[name].protocol] = chosen.weights_sha256
            files[BY_NAME[name].protocol] = dict(chosen.files)
    facts = {
        "weights": dict(sorted(weights.items())),
        "files": dict(sorted(files.items())),
        "missing": list(choice.missing),
        "references": dict(sorted((before.references | references).items())),
    }
    store.write(CURRENT, json.dumps(facts, indent=1).encode())
