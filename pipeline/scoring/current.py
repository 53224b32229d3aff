"""The current view of an evaluation folder: which images, which metrics with which weights.

Rows in `scores/` and `features/` outlive it: an image or a weight file may be replaced. What counts
is what this view names.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.metrics.choose import Choice, Chosen
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
        missing: Data set -> metrics that were not computed, a line each with the fix.
        references: Data set -> statistics file that FID compares with.
    """

    weights: dict[str, str]
    files: dict[str, dict[str, str]]
    missing: dict[str, list[str]]
    references: dict[str, str]

    @property
    def missing_lines(self) -> tuple[str, ...]:
        """What is missing in any data set, each line once."""
        return tuple(dict.fromkeys(line for lines in self.missing.values() for line in lines))


def load_current(store: Store) -> Current:
    """Read the view; an empty one where nothing was scored."""
    try:
        facts: dict[str, Any] = load_json(store, CURRENT)
    except FileNotFoundError:
        facts = {"weights": {}, "files": {}, "missing": {}, "references": {}}
    return Current(**facts)


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
        for protocol in _protocols(chosen, before):
            weights[protocol] = chosen.weights_sha256
            files[protocol] = dict(chosen.files)
    datasets = {pair_set.dataset for pair_set in sets}
    kept = {name: path for name, path in before.references.items() if name not in datasets}
    missing = before.missing | {name: list(choice.missing) for name in datasets}
    facts = {
        "weights": dict(sorted(weights.items())),
        "files": dict(sorted(files.items())),
        "missing": dict(sorted(missing.items())),
        "references": dict(sorted((kept | references).items())),
    }
    store.write(CURRENT, json.dumps(facts, indent=1).encode())


def _protocols(chosen: Chosen, before: Current) -> list[str]:
    """What is computed with these weights now: features serve all metrics of their family."""
    names = chosen.definition.metrics if chosen.is_of_sets else chosen.metrics
    protocols = {name: BY_NAME[name].protocol for name in names}
    return [
        protocol
        for name, protocol in protocols.items()
        if name in chosen.metrics or protocol in before.weights
    ]
