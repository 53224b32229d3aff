"""What a cleaning run found about identities, and who is in two sets."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cleaning.manifest import parquet
from pipeline.cleaning.tables import (
    EMBEDDING_DIM,
    IDENTITIES,
    INSPECT,
    INSPECTED,
    PRIVATE,
    as_matrix,
)
from pipeline.errors import UserError
from pipeline.storage import Store, load_json

Rows = list[Sequence[Any]]


def findings(store: Store) -> Iterator[tuple[str, Sequence[str], Rows]]:
    """Images that are not of their person, and persons who are one: title, names, rows.

    Args:
        store: The OUT of a cleaning run.

    Raises:
        UserError: If no identities were compared there.
    """
    try:
        facts = load_json(store, IDENTITIES)
    except FileNotFoundError:
        raise UserError(f"{store.url}: no identities were compared; `vsp clean` needs an identity "
                        "network for that (`vsp weights list`)") from None  # fmt: skip
    yield ("not the person that they are said to be", ("shard", "key", "person", "likeness"),
           _rows(facts.get("outliers"), lowest=True))  # fmt: skip
    yield ("one person under two names", ("person", "other", "likeness"),
           _rows(facts.get("merges"), lowest=False))  # fmt: skip


def _rows(value: object, *, lowest: bool) -> Rows:
    """Rows whose last cell is a likeness, the clearest first."""
    rows: Rows = value if isinstance(value, list) else []
    return sorted(rows, key=lambda row: row[-1] if lowest else -row[-1])


def shared_people(ours: Store, theirs: Store) -> tuple[Sequence[str], Rows]:
    """Faces of one person in two sets, the likest first: names of the columns, rows.

    Args:
        ours: The OUT of a run with --keep-embeddings.
        theirs: Another.

    Raises:
        UserError: If one of them holds no embeddings.
    """
    from pipeline.cleaning.persons.identities import IdentityConfig, overlaps

    one, vectors = _faces(ours)
    two, others = _faces(theirs)
    found = overlaps(vectors, others, IdentityConfig())
    rows: Rows = [[*one[a], *two[b], likeness] for a, b, likeness in found]
    head = ("shard", "key", "person", "their shard", "their key", "their person", "likeness")
    return head, sorted(rows, key=lambda row: -row[-1])


def _faces(store: Store) -> tuple[list[tuple[str, str, str | None]], NDArray[np.float32]]:
    """Shard, key and person of every face with an embedding, and (N, 128) of them."""
    names: list[tuple[str, str, str | None]] = []
    packed: list[bytes] = []
    for part in sorted(store.list(f"{INSPECT}/{PRIVATE}")):
        shard = part.rpartition("/")[2].removesuffix(".parquet")
        with store.open(part) as file:
            identities = parquet.read(file, ["identity"])["identity"].to_pylist()
        with store.open(f"{INSPECT}/{INSPECTED}/{shard}.parquet") as file:
            seen = parquet.read(file, ["key", "person"]).to_pylist()
        for row, identity in zip(seen, identities, strict=True):
            if identity is not None:
                names.append((shard, row["key"], row["person"]))
                packed.append(identity)
    if not packed:
        raise UserError(f"{store.url}: no embeddings; run `vsp clean` there with --keep-embeddings")
    return names, as_matrix(packed, np.float32, EMBEDDING_DIM)
