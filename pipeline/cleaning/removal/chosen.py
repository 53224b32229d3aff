"""Which images a removal request means, and what of them is left in the set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.cleaning import tables
from pipeline.cleaning.manifest import parquet
from pipeline.cleaning.removal.pending import Places, Removal, keyed
from pipeline.cleaning.removal.tombstones import Tombstones, digest_of, digest_of_face
from pipeline.errors import UserError
from pipeline.shards import read_shard
from pipeline.sidecar import read_rows
from pipeline.storage import Store

GROUP_PREFIX = "group:"
_SEEN = ("index", "key", "sha256", "source", "person")
_DECIDED = ("group", "identity_group")
_SCHEMA = pa.schema(
    [("shard", pa.string()), ("index", pa.int64())]
    + [(name, pa.string()) for name in ("key", "sha256", "source", "person")]
    + [(name, pa.int64()) for name in _DECIDED]
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asks to have removed; exactly one of key, source and person.

    Attributes:
        key: A record's name.
        shard: The shard it is meant in; "" where the name stands in one only.
        source: Where images are from; with a slash at its end everything below.
        person: Who is on them, or `group:N` for an identity cluster.
        copies: Near copies of what is found go along.
    """

    key: str = ""
    shard: str = ""
    source: str = ""
    person: str = ""
    copies: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """One record that goes, or might: its place, and the sha256 of its image."""

    shard: str
    index: int
    key: str
    sha256: str | None

    @property
    def name(self) -> str:
        """Shard and key."""
        return f"{self.shard}/{self.key}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a request comes to.

    Attributes:
        images: What goes, sorted by shard and index.
        exact: Those among them that are there for having the same bytes as one that was meant.
        near: Near copies of them that stay.
        lone_keys: Their keys that no other record has.
        lone_persons: Their persons of whom nothing is left.
        lone_sources: Their sources that nothing is left of.
    """

    images: tuple[Image, ...]
    exact: tuple[Image, ...]
    near: tuple[Image, ...]
    lone_keys: frozenset[str]
    lone_persons: frozenset[str]
    lone_sources: frozenset[str]

    @property
    def rows(self) -> Places:
        """Indices by shard."""
        found: dict[str, set[int]] = {}
        for image in self.images:
            found.setdefault(image.shard, set()).add(image.index)
        return {shard: frozenset(indices) for shard, indices in found.items()}


@dataclass(frozen=True, slots=True)
class Plain:
    """What the proof looks for; never written anywhere.

    Attributes:
        keys: Keys that nobody else has.
        names: Shard and key.
        digests: sha256 of images and of what was made of them.
        persons: Those of whom nothing is left.
        sources: Those that nothing is left of.
        identities: (N, 128) float32, embeddings as far as they were kept.
    """

    keys: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()
    persons: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    identities: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, tables.EMBEDDING_DIM), np.float32)
    )


def choose(store: Store, request: Request) -> Chosen:
    """Find what a request means.

    Raises:
        UserError: If nothing fits, or a key stands in several shards.
    """
    everything = _everything(store)
    meant = _meant(everything, request)
    if not pc.any(meant).as_py():
        raise UserError(_nothing(store, request))
    exact = _like(everything, meant, "sha256")
    grown = pc.or_(meant, exact)
    near = pc.and_not(_like(everything, grown, "group"), grown)
    if request.copies:
        grown = pc.or_(grown, near)
        grown = pc.or_(grown, _like(everything, grown, "sha256"))
        near = pc.and_(near, pa.scalar(False))
    gone, left = everything.filter(grown), everything.filter(pc.invert(grown))
    return Chosen(
        images=_images(gone),
        exact=_images(everything.filter(pc.and_not(exact, meant))),
        near=_images(everything.filter(near)),
        lone_keys=_lone(gone, left, "key"),
        lone_persons=_lone(gone, left, "person"),
        lone_sources=_lone(gone, left, "source"),
    )


def _meant(everything: pa.Table, request: Request) -> Any:
    """A mask of the rows that the request names."""
    live = pc.not_equal(everything["key"], "")
    if request.key:
        found = pc.equal(everything["key"], request.key)
        shards = sorted(set(everything.filter(found)["shard"].to_pylist()))
        if len(shards) > 1 and not request.shard:
            raise UserError(f"--key {request.key}: stands in {len(shards)} shards "
                            f"({', '.join(shards[:3])}); say which one with --shard")  # fmt: skip
        if request.shard:
            found = pc.and_(found, pc.equal(everything["shard"], request.shard))
    elif request.source.endswith("/"):
        found = pc.starts_with(everything["source"], request.source)
    elif request.source:
        found = pc.equal(everything["source"], request.source)
    elif request.person.startswith(GROUP_PREFIX):
        number = request.person.removeprefix(GROUP_PREFIX)
        if not number.isdigit():
            raise UserError(f"--person {request.person}: expected a number, as in group:17")
        found = pc.equal(everything["identity_group"], int(number))
    else:
        found = pc.equal(everything["person"], request.person)
    return pc.and_(live, pc.fill_null(found, False))


def _nothing(store: Store, request: Request) -> str:
    named = [(n, getattr(request, n)) for n in ("key", "source", "person") if getattr(request, n)]
    what = " ".join(f"--{name} {value}" for name, value in named)
    return f"{what}: no image of {store.url} fits; ask `vsp manifest query` what there is"


def _like(everything: pa.Table, chosen: Any, column: str) -> Any:
    """A mask of the rows that share a value with a chosen one."""
    values = pc.unique(pc.drop_null(everything.filter(chosen)[column]))
    return pc.is_in(everything[column], value_set=values, skip_nulls=True)


def _lone(gone: pa.Table, left: pa.Table, column: str) -> frozenset[str]:
    """Values of a column that only those have which go."""
    values = pc.unique(pc.drop_null(gone[column]))
    stay = pc.unique(pc.drop_null(left[column]))
    alone = values.filter(pc.invert(pc.is_in(values, value_set=stay)))
    return frozenset(alone.to_pylist())


def _images(table: pa.Table) -> tuple[Image, ...]:
    columns = (table[name].to_pylist() for name in ("shard", "index", "key", "sha256"))
    return tuple(Image(*values) for values in zip(*columns, strict=True))


# -------------------------------------------------------------------------------------- tables


def _everything(store: Store) -> pa.Table:
    """Every record of the run, sorted: what was seen, and which group it is in."""
    shards = {_stem(name) for name in _files(store, f"{tables.INSPECT}/{tables.INSPECTED}")}
    shards |= {_stem(name) for name in _files(store, tables.MANIFEST)}
    parts = [_of_shard(store, shard) for shard in sorted(shards)]
    if not parts:
        raise UserError(f"{store.url}: no cleaning run has looked at anything here; "
                        "give the OUT of `vsp clean`")  # fmt: skip
    return pa.concat_tables(parts)


def _of_shard(store: Store, shard: str) -> pa.Table:
    manifest = f"{tables.MANIFEST}/{shard}.parquet"
    seen = _columns(store, (f"{tables.INSPECT}/{tables.INSPECTED}/{shard}.parquet", manifest),
                    _SEEN)  # fmt: skip
    decided = _columns(store, (f"{tables.DECISIONS}/{shard}.parquet", manifest), _DECIDED)
    assert seen is not None, "one of the two was listed"
    columns = {name: seen[name] for name in _SEEN} | {"shard": [shard] * len(seen)}
    for name in _DECIDED:
        columns[name] = decided[name] if decided is not None else [None] * len(seen)
    return pa.table({name: columns[name] for name in _SCHEMA.names}, schema=_SCHEMA)


def _columns(store: Store, names: Sequence[str], columns: Sequence[str]) -> pa.Table | None:
    """Columns of the first table that is there."""
    for name in names:
        try:
            with store.open(name) as file:
                return parquet.read(file, columns)
        except FileNotFoundError:
            continue
    return None


def _files(store: Store, folder: str) -> Iterator[str]:
    return (name for name in store.list(folder) if name.endswith(".parquet"))


def _stem(name: str) -> str:
    return PurePosixPath(name).name.removesuffix(".parquet")


# ------------------------------------------------------------------------------------- removal


def plain_of(store: Store, chosen: Chosen) -> Plain:
    """What must not be found any more, of images that are still there."""
    rows = chosen.rows
    made: set[str] = set()
    identities: list[bytes] = []
    for shard, indices in rows.items():
        out = _columns(store, (f"{tables.MANIFEST}/{shard}.parquet",), ("index", "sha256_out"))
        made |= set(_picked(out, "sha256_out", indices))
        private = f"{tables.INSPECT}/{tables.PRIVATE}/{shard}.parquet"
        identities += _picked(_columns(store, (private,), ("index", "identity")), "identity",
                              indices)  # fmt: skip
    images = {image.sha256 for image in chosen.images if image.sha256}
    return Plain(
        keys=chosen.lone_keys,
        names=frozenset(image.name for image in chosen.images),
        digests=frozenset(images | made),
        persons=chosen.lone_persons,
        sources=chosen.lone_sources,
        identities=tables.as_matrix(identities, np.float32, tables.EMBEDDING_DIM),
    )


def _picked(table: pa.Table | None, column: str, indices: frozenset[int]) -> list[Any]:
    if table is None:
        return []
    wanted = pc.is_in(table["index"], value_set=pa.array(sorted(indices), pa.int64()))
    return [value for value in table.filter(wanted)[column].to_pylist() if value is not None]


def removal_of(store: Store, chosen: Chosen, plain: Plain, stones: Tombstones) -> Removal:
    """The request as it is written down: places and keyed hashes."""
    images = {digest_of(image.shard, image.key, image.sha256) for image in chosen.images}
    photos, faces, places = _photos(store, chosen)
    return Removal(
        rows=chosen.rows,
        photos=photos,
        faces=faces,
        names=keyed(stones, plain.names),
        keys=keyed(stones, plain.keys),
        persons=keyed(stones, chosen.lone_persons),
        sources=keyed(stones, chosen.lone_sources),
        images=keyed(stones, images | places),
        made=keyed(stones, plain.digests - images),
    )


def _photos(
    store: Store, chosen: Chosen
) -> tuple[dict[str, frozenset[int]], dict[str, list[list[int]]], set[str]]:
    """Where crops were cut: photos of which nothing stays, and single faces of others.

    Returns:
        Indices of whole photos by shard; [photo, number] of faces by shard; sha256 of whole photos,
        and of every face's place, so that it is not cut out again with other settings.
    """
    whole: dict[str, frozenset[int]] = {}
    single: dict[str, list[list[int]]] = {}
    digests: set[str] = set()
    for shard in chosen.rows:
        name = f"{tables.ALIGNED}/{shard}"
        if store.stat(f"{name}.parquet") is None:
            continue
        with store.open(f"{name}.parquet") as file:
            photos = {row.key: row for row in read_rows(file) if row.key}
        gone = {image.key for image in chosen.images if image.shard == shard}
        keys = {sample.key for sample in read_shard(f"{store.url.rstrip('/')}/{name}.tar")}
        left = {key.rpartition("_")[0] for key in keys - gone}
        touched = sorted({key.rpartition("_")[0] for key in gone} & photos.keys())
        whole[shard] = frozenset(photos[key].index for key in touched if key not in left)
        digests |= {photos[key].sha256_in or "" for key in touched if key not in left}
        faces = [(photos[key.rpartition("_")[0]], key.rpartition("_")) for key in sorted(gone)]
        single[shard] = [[row.index, int(number)] for row, (of, _, number) in faces if of in left]
        digests |= {digest_of_face(row.sha256_in or "", int(number)) for row, (*_, number) in faces}
    return whole, single, digests - {""}
