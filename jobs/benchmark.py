"""BENCH.yaml into a checked benchmark; every mistake with its file and line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from jobs import config as configs
from jobs.config import Place
from pipeline.benchmark.config import Benchmark, Dataset, Method, Settings
from pipeline.errors import UserError
from pipeline.replica import Frozen


class _Draft(Settings):
    """A benchmark whose entries are not looked at yet."""

    datasets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)


class _OneDataset(Frozen):
    datasets: Dataset


class _OneMethod(Frozen):
    methods: Method


ROOMS: dict[str, type[Frozen]] = {"datasets": _OneDataset, "methods": _OneMethod}


def load_benchmark(
    path: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> Benchmark:
    """Read BENCH.yaml, with `a.b=c` overrides on top; paths come out absolute.

    The entries are checked one by one: their names are the user's, and `jobs.config` finds the
    line of a mistake by following names that a schema knows.

    Args:
        path: The file.
        overrides: See `jobs.config.resolve`.
        only: Methods that are kept; all without names.

    Raises:
        UserError: In one line: file, line, key, what is wrong and what was perhaps meant.
    """
    values, places = configs.read_values(path)
    draft = configs.resolve(values, _Draft, overrides, places, str(path))
    for room, schema in ROOMS.items():
        for name, entry in getattr(draft, room).items():
            configs.resolve(
                {room: entry}, schema, (), _places_of(places, room, name), f"{path}: {name}"
            )
    whole = configs.resolve(draft.model_dump(exclude_unset=True), Benchmark, (), places, str(path))
    try:
        chosen = whole.only(only) if only else whole
    except ValueError as error:
        raise UserError(f"--only: {error}") from None
    return chosen.located(path.resolve().parent)


def _places_of(places: dict[Place, str], room: str, name: str) -> dict[Place, str]:
    """Where the keys of one entry stand, as if it were alone."""
    return {
        (room, *place[2:]): where for place, where in places.items() if place[:2] == (room, name)
    }
