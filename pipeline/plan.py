"""From what the user typed to a list of shards to do, refusing what would lose or mix data."""

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import shards
from pipeline.errors import UserError
from pipeline.stage import OWN_FOLDER, Task


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of one run: what is left to do, and what an earlier run has finished."""

    pending: tuple[Task, ...]
    finished: tuple[Task, ...]


def find_shards(pattern: str) -> tuple[Path, ...]:
    """Find the tars that `pattern` names, sorted: a tar, a folder of tars, braces, wildcards.

    Raises:
        UserError: If a named file is missing, nothing is found, or two shards share a name.
    """
    # An existing path is taken as it is, so that braces and brackets in real names do no harm.
    words = [pattern] if Path(pattern).exists() else list(expand_braces(pattern))
    found = sorted({path for word in words for path in _tars(word)})
    by_name: dict[str, Path] = {}
    for path in found:
        if path.stem in by_name:
            raise UserError(
                f"{path}: another shard is called {path.stem} too ({by_name[path.stem]}); "
                "restore the two folders in two runs"
            )
        by_name[path.stem] = path
    return tuple(found)


def _tars(word: str) -> list[Path]:
    path = Path(word)
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
        if not tars:
            raise UserError(f"{word}: no .tar in this folder; make shards with `vsp pack`")
        return tars
    if path.is_file():
        if path.suffix != ".tar":
            raise UserError(f"{word}: not a .tar; make shards of images with `vsp pack`")
        return [path]
    matches = [Path(match) for match in glob.glob(word) if match.endswith(".tar")]
    if not matches:
        raise UserError(f"{word}: no such shard; give a .tar, a folder of them, or a pattern")
    return matches


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand `{000..011}` (zeros kept) and `{a,b}` as a shell does, first brace outermost."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, words = match.groups()
    if words is None:
        choices = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        choices = words.split(",")
    for choice in choices:
        yield from expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def make_plan(sources: Sequence[Path], out: Path, config: str, root: Path | None = None) -> Plan:
    """Divide the input shards into pending and finished. Nothing is written.

    Args:
        sources: Input tars, each with a name of its own.
        out: Output folder; it may be absent.
        config: Canonical JSON of what decides the output's bytes.
        root: The folder the user named as input, if it was one.

    Raises:
        UserError: If `out` is an input's folder, lies in `root`, holds foreign files, or shards
            that were written under another configuration.
    """
    _check_apart(sources, out, root)
    _check_own(out)
    pending, finished = [], []
    for source in sources:
        task = Task(shard=source.stem, source=source.resolve(), out=out.resolve())
        if not (out / f"{task.shard}.tar").exists():
            pending.append(task)
            continue
        _check_config(out / f"{task.shard}.parquet", config)
        finished.append(task)
    return Plan(tuple(pending), tuple(finished))


def make_out(out: Path) -> None:
    """Make the output folder.

    Raises:
        UserError: If it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; choose another OUT") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"{out}: no permission to write; choose another OUT or change its mode")


def _check_apart(sources: Sequence[Path], out: Path, root: Path | None) -> None:
    place = out.resolve()
    if place in {source.resolve().parent for source in sources}:
        raise UserError(f"{out}: holds the input; choose another OUT")
    if root is not None and root.resolve() in place.parents:
        raise UserError(f"{out}: lies in the input folder {root}; choose another OUT")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; OUT must be a folder")


def _check_own(out: Path) -> None:
    """A tar without its sidecar, or anything but tars and sidecars, was not written by us."""
    if not out.exists():
        return
    for path in sorted(out.iterdir()):
        sidecar = path.with_suffix(".parquet")
        ours = path.suffix == ".parquet" or (path.suffix == ".tar" and sidecar.exists())
        if path.name != OWN_FOLDER and not ours:
            raise UserError(f"{path}: foreign file in the output folder; choose an empty OUT")


def _check_config(sidecar: Path, config: str) -> None:
    there = shards.read_config(sidecar)
    if there is None:
        raise UserError(f"{sidecar}: not written by `vsp restore`; choose an empty OUT")
    if there != config:
        raise UserError(
            f"{sidecar}: written with other settings ({_difference(there, config)}); "
            "choose another OUT, or delete this one to start over"
        )


def _difference(there: str, here: str) -> str:
    """Every field that differs, as `name: old, now new`."""
    old, new = _flat(json.loads(there)), _flat(json.loads(here))
    changed = sorted(name for name in old | new if old.get(name) != new.get(name))
    return "; ".join(f"{name}: {old.get(name)}, now {new.get(name)}" for name in changed)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat
