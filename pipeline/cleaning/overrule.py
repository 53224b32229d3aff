"""What a person decided against the program: a CSV of keys, kept beside the run.

Columns: `key`, `verdict`, and, where a key stands in several shards, `shard`. Others are kept out.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from pipeline.cleaning.tables import OVERRULE
from pipeline.errors import UserError
from pipeline.storage import Store

Overruled = Literal["accept", "keep", "reject"]
"""Take the restored face whatever the verification says; keep the original; leave it out."""
WITHDRAWN = "none"  # in a user's file: the program decides again
VERDICTS: tuple[Overruled, ...] = get_args(Overruled)
COLUMNS = ("shard", "key", "verdict")
# (shard, key); the shard is "" for a key in whatever shard.
Overrules = Mapping[tuple[str, str], Overruled]


def load(store: Store) -> dict[tuple[str, str], Overruled]:
    """What was overruled so far; nothing where no file lies.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        text = store.read(OVERRULE).decode()
    except FileNotFoundError:
        return {}
    return parse(text, f"{store.url}/{OVERRULE}")


def save(store: Store, overrules: Overrules) -> None:
    """Write the file anew, sorted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([*place, verdict] for place, verdict in sorted(overrules.items()))
    store.write(OVERRULE, out.getvalue().encode())


def read_file(path: Path) -> "Mapping[tuple[str, str], Overruled | None]":
    """Read a user's own file; None for a verdict that is withdrawn.

    Raises:
        UserError: Naming the line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a CSV of keys and verdicts") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; give a CSV of keys and verdicts") from None
    return _rows(text, str(path), (*VERDICTS, WITHDRAWN))


def parse(text: str, where: str) -> dict[tuple[str, str], Overruled]:
    """Read the CSV's text; the last line about a key counts.

    Raises:
        UserError: Naming the line that is wrong.
    """
    return {place: word for place, word in _rows(text, where, VERDICTS).items() if word}


def _rows(text: str, where: str, words: Sequence[str]) -> dict[tuple[str, str], Overruled | None]:
    """Every verdict, None for a withdrawn one.

    Raises:
        UserError: Naming the line that is wrong.
    """
    rows = csv.DictReader(io.StringIO(text))
    names = rows.fieldnames or ()
    if "key" not in names or "verdict" not in names:
        raise UserError(f"{where}:1: expected the columns key,verdict (and shard, if need be)")
    found: dict[tuple[str, str], Overruled | None] = {}
    for row in rows:
        word = (row["verdict"] or "").strip()
        verdict = next((each for each in VERDICTS if each == word), None)
        if word not in words or not row["key"]:
            wanted = ", ".join(words)
            raise UserError(f"{where}:{rows.line_num}: verdict {word!r}: expected {wanted}")
        found[row.get("shard") or "", row["key"]] = verdict
    return found


def joined(
    there: Overrules, more: Mapping[tuple[str, str], Overruled | None]
) -> dict[tuple[str, str], Overruled]:
    """What holds after a user's file was read: its verdicts go before those that are there."""
    both: dict[tuple[str, str], Overruled | None] = {**there, **more}
    return {place: verdict for place, verdict in both.items() if verdict}


def verdict_on(overrules: Overrules, shard: str, key: str) -> Overruled | None:
    """What was decided about one record, if anything was."""
    return overrules.get((shard, key)) or overrules.get(("", key))
