"""What a person decides about rows: checked, written at once, never lost between two tabs."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.cleaning import overrule
from pipeline.cleaning.overrule import Overruled, Overrules, verdict_on
from pipeline.cleaning.tables import OVERRULE
from pipeline.storage import OWN_FOLDER, LocalStore, Stat, Store

NO_PICTURE = ("not_finite", "not_decodable")


class Refused(ValueError):
    """A verdict that cannot be, in one line for the page."""


class Conflict(Refused):
    """Another tab, or the file itself, says otherwise than the page that asks."""


class Verdicts:
    """The overrule file of an output folder; every change reads it again and writes it whole.

    Attributes:
        num_changes: How often it was written since the start.
    """

    def __init__(self, store: Store) -> None:
        """Read nothing yet; the file need not exist."""
        self._store = store
        self._lock = threading.Lock()
        self._read: tuple[Stat | None, Overrules] | None = None
        self.num_changes = 0

    def current(self) -> Overrules:
        """What is overruled now.

        Raises:
            UserError: If somebody damaged the file.
        """
        with self._lock:
            return self._current()

    def _current(self) -> Overrules:
        version = self._store.stat(OVERRULE)
        if self._read is None or self._read[0] != version:
            self._read = version, overrule.load(self._store)
        return self._read[1]

    def write(self, place: tuple[str, str], verdict: Overruled | None, seen: str) -> str:
        """Decide about one record.

        Args:
            place: Shard and key.
            verdict: None takes the verdict back.
            seen: The verdict that the page showed, "" for none.

        Returns:
            The verdict that counts now, "" for none.

        Raises:
            Conflict: If another one stands there by now.
            Refused: If the file decides about this key in every shard, which no row can undo.
            UserError: If somebody damaged the file.
        """
        with self._lock, _alone(self._store):
            overrules = dict(overrule.load(self._store))
            there = verdict_on(overrules, *place) or ""
            if there != seen:
                raise Conflict(f"meanwhile this face got another verdict: {there or 'none'}")
            if verdict is None:
                overrules.pop(place, None)
                if verdict_on(overrules, *place):
                    raise Refused(f"{OVERRULE} names this key for every shard; edit it there")
            else:
                overrules[place] = verdict
            overrule.save(self._store, overrules)
            self.num_changes += 1
            self._read = None
            return verdict or ""


@contextlib.contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Keep a second `vsp review` of this folder out; on an object store nothing does."""
    if not isinstance(store, LocalStore):
        yield
        return
    folder = os.open(store.path(OWN_FOLDER), os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def effect(values: Mapping[str, Any], verdict: Overruled) -> str:
    """What the next run does with a row under a verdict, in one line.

    Args:
        values: The row's manifest columns.
        verdict: Which one.

    Raises:
        Refused: If it cannot do that.
    """
    _check_any(values)
    outcome = values["outcome"]
    if verdict == "reject":
        return "stays left out" if outcome == "rejected" else "leaves this face out"
    if verdict == "keep":
        return {
            "kept": "keeps the original, as now",
            "fallback": "keeps the original, as now",
            "restored": "puts the original back",
        }.get(outcome, "puts the original in, as it is")
    if values["fallback"] in NO_PICTURE:
        raise Refused("its restoration gave no picture that could be taken")
    return {
        "restored": "takes the restored face, as now",
        "fallback": "takes the restored face, whatever was measured",
    }.get(outcome, "restores this face and takes the result unless it is no picture")


def _check_any(values: Mapping[str, Any]) -> None:
    """Refuse every verdict about what holds no face to decide about."""
    if values["outcome"] == "forgotten":
        raise Refused("removed on request; nothing can bring it back")
    if values["status"] != "inspected":
        why = values["note"] or "it holds no image"
        raise Refused(f"there is no picture to decide about: {why}")
