"""The proof of a removal: every file of an output folder is read again and looked through.

Looked for are sha256 of what was removed (of every tar's members, and as text), keys, persons and
sources that nobody else has, shard/key, rows that are not blank, and embeddings. What is known only
by keyed hash, after a crash, is compared as whole values; else texts are searched too.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.cleaning.manifest import parquet
from pipeline.cleaning.removal.chosen import Plain
from pipeline.cleaning.removal.pending import PENDING, Removal
from pipeline.cleaning.removal.rewrite import BY_INDEX
from pipeline.cleaning.removal.tombstones import Tombstones
from pipeline.cleaning.tables import (
    EMBEDDING_DIM,
    MANIFEST_SCHEMA,
    TOMBSTONES,
    CopyKind,
    FallbackReason,
    Outcome,
    Reason,
    Verdict,
)
from pipeline.plan import Plan, Unit
from pipeline.sample import split_name
from pipeline.sidecar import SCHEMA, Status, sha256
from pipeline.storage import OWN_FOLDER, Store
from pipeline.tar import TarFault, read_tar

SAME_EMBEDDING = 1e-6
EMBEDDING_BYTES = 4 * EMBEDDING_DIM
_WORDS = (Status, Verdict, Reason, Outcome, FallbackReason, CopyKind)
VOCABULARY = frozenset(
    [word for words in _WORDS for word in get_args(words)]
    + [name for schema in (MANIFEST_SCHEMA, SCHEMA) for name in schema.names]
    + [each.name for record in (Plan, Unit) for each in fields(record)]
)
"""What these files say of any image."""


@dataclass(slots=True)
class Report:
    """What a scan read and found.

    Attributes:
        num_files: Files read.
        num_bytes: Their bytes.
        remains: One line for each file that still knows something.
    """

    num_files: int = 0
    num_bytes: int = 0
    remains: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sought:
    """What nobody may find any more.

    Attributes:
        removal: Keyed hashes and places.
        stones: What hashes are keyed by.
        plain: The same as text, and embeddings, as far as known.
    """

    removal: Removal
    stones: Tombstones
    plain: Plain = field(default_factory=Plain)

    def value(self, text: str, column: str = "") -> str:
        """What a whole value gives away, or "".

        A key, person or source of digits alone, or one that is a word of these files, tells nothing
        by itself: it counts where such stand.
        """
        digest = self.stones.keyed(text)
        removal = self.removal
        if digest in removal.images or digest in removal.made:
            return "holds the sha256 of an image"
        tells = _tells(text)
        if digest in removal.names or (digest in removal.keys and (tells or column == "key")):
            return "names the key"
        if digest in removal.persons and (tells or column == "person"):
            return "names the person"
        is_source = digest in removal.sources and (tells or column == "source")
        return "names the source" if is_source else ""

    def text(self, text: str, column: str = "") -> str:
        """What a text gives away, as a whole or somewhere in it, or ""."""
        found = self.value(text, column)
        searched = () if found else self._patterns
        return next((what for what, pattern in searched if pattern.search(text)), found)

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        return list(_patterns(self.plain))

    def bytes(self, data: bytes) -> str:
        """What the bytes of a member or cell give away, or ""."""
        digest = self.stones.keyed(sha256(data))
        if digest in self.removal.images or digest in self.removal.made:
            return "holds an image"
        if len(data) == EMBEDDING_BYTES and len(self.plain.identities):
            return "holds an embedding" if self._is_known(np.frombuffer(data, np.float32)) else ""
        return ""

    def _is_known(self, vector: NDArray[np.float32]) -> bool:
        return bool((np.abs(self.plain.identities - vector).max(axis=1) < SAME_EMBEDDING).any())


def _tells(text: str) -> bool:
    """Whether a text stands for somebody wherever it stands."""
    return not text.isdigit() and text not in VOCABULARY


def _patterns(plain: Plain) -> Iterator[tuple[str, re.Pattern[str]]]:
    """What is searched for in texts, and what it means to find it.

    A number or a plain word is a key only where it stands alone. A person or source counts within
    a sentence, not within a path or address, which may be of somebody else.
    """
    keys = {key for key in plain.keys if not key.isalpha() and not key.isdigit()}
    persons, sources = ({each for each in group if each and _tells(each)}
                        for group in (plain.persons, plain.sources))  # fmt: skip
    for what, words, before, after in (
        ("holds the sha256 of an image", plain.digests, r"[\w-]", r"[\w-]"),
        ("names the key", keys | plain.names, r"[\w-]", r"[\w-]"),
        ("names the person", persons, r"[\w/-]", r"[\w/-]"),
        ("names the source", sources, r"[\w/-]", r"[.?&#=%]*[\w/-]"),
    ):
        if words:
            longest_first = sorted(words, key=lambda word: (-len(word), word))
            any_of = "|".join(map(re.escape, longest_first))
            yield what, re.compile(rf"(?<!{before})(?:{any_of})(?!{after})")


def scan(store: Store, sought: Sought) -> Report:
    """Read every file of an output folder, and say what still knows of what was removed.

    Args:
        store: The cleaning run's OUT.
        sought: What is looked for.
    """
    report = Report()
    for name in _all_files(store):
        stat = store.stat(name)
        if stat is None or name in (PENDING, TOMBSTONES):
            continue
        report.num_files += 1
        report.num_bytes += stat.size_bytes
        found = sought.text(name) or next(filter(None, _look(store, name, sought)), "")
        if found:
            report.remains.append(f"{store.url.rstrip('/')}/{name}: {found}")
    return report


def _all_files(store: Store) -> Iterator[str]:
    yield from store.list()
    yield from store.list(OWN_FOLDER)


def _look(store: Store, name: str, sought: Sought) -> Iterator[str]:
    if name.endswith(".tar"):
        return _look_at_tar(store, name, sought)
    if name.endswith(".parquet"):
        return _look_at_table(store, name, sought)
    return _look_at_text(store.read(name), sought)


def _look_at_tar(store: Store, name: str, sought: Sought) -> Iterator[str]:
    shard = PurePosixPath(name).stem
    gone = sought.removal.rows.get(shard, frozenset())
    try:
        with store.open(name) as file:
            for entry in read_tar(file):
                found = split_name(entry.name)
                key = found[0] if found else entry.name
                yield sought.bytes(entry.data) or sought.value(f"{shard}/{key}")
                yield sought.value(key, "key") or sought.text(entry.name)
                if entry.name.endswith((".json", ".txt")):
                    yield from _look_at_text(entry.data, sought)
                number = PurePosixPath(entry.name).name.partition(".")[0]
                if name.startswith(BY_INDEX) and number.isdigit() and int(number) in gone:
                    yield "holds a picture made of an image"
    except TarFault:
        yield "is a broken tar, which could not be looked through"


def _look_at_table(store: Store, name: str, sought: Sought) -> Iterator[str]:
    try:
        with store.open(name) as file:
            table = parquet.read(file)
    except pa.ArrowException:
        yield "is a broken table, which could not be looked through"
        return
    shard = PurePosixPath(name).stem
    for column in table.schema:
        values = table[column.name]
        if pa.types.is_string(column.type) and column.name != "shard":
            texts = pc.unique(pc.drop_null(values)).to_pylist()
            yield from (sought.text(text, column.name) for text in texts)
            if column.name == "key":
                yield from (sought.value(f"{shard}/{key}") for key in texts)
        elif pa.types.is_binary(column.type):
            yield from (sought.bytes(cell) for cell in pc.drop_null(values).to_pylist())
    for text in (table.schema.metadata or {}).values():
        yield from _look_at_text(text, sought)


def _look_at_text(data: bytes, sought: Sought) -> Iterator[str]:
    """Look through a text, and through the values of JSON and of JSON lines."""
    yield sought.bytes(data)
    text = data.decode("utf-8", "replace")
    yield sought.text(text)
    for line in (text, *text.splitlines()):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            cells = re.split(r"[,\t\n]", line) if line is not text else []
            yield from (sought.value(cell.strip('" ')) for cell in cells)
            continue
        yield from (sought.text(each) for each in _strings(value))
        if line is text:
            return


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _strings(each)
