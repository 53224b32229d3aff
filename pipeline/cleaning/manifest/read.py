"""Reading a manifest: the parts of a cleaning run's OUT, or a copy that somebody passed on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.cleaning.manifest import parquet
from pipeline.cleaning.tables import MANIFEST, MANIFEST_SCHEMA
from pipeline.errors import UserError
from pipeline.storage import LocalStore, Store, is_remote, open_input, open_store

SUFFIX = ".parquet"


def parts(store: Store) -> list[str]:
    """Names of the manifest's parts in a run's OUT, one a shard, sorted."""
    return sorted(name for name in store.list(MANIFEST) if name.endswith(SUFFIX))


def read_manifest(store: Store, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole manifest of a run's OUT, sorted by shard and index.

    Args:
        store: The OUT.
        columns: Which ones; None for all.

    Raises:
        UserError: If a part is damaged or none.
    """
    return join(batches(store, columns), columns)


def batches(store: Store, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The manifest part by part, so that a large one is never in memory as a whole.

    Raises:
        UserError: If a part is damaged or none.
    """
    for name in parts(store):
        with store.open(name) as file:
            yield _read(file, f"{store.url.rstrip('/')}/{name}", columns)


def read_any(place: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A manifest that somebody names: an OUT, its manifest folder, or one Parquet file.

    Raises:
        UserError: If there is none at that place.
    """
    if place.endswith(SUFFIX):
        try:
            with open_input(place) as file:
                return _read(file, place, columns)
        except FileNotFoundError:
            raise UserError(f"{place}: no such file; give an OUT of `vsp clean`") from None
    return read_manifest(find(place), columns)


def find(place: str) -> Store:
    """The OUT that a place means: itself, or what holds the manifest folder that it names.

    Raises:
        UserError: If no manifest is there.
    """
    here = place.rstrip("/")
    above, _, last = here.rpartition("/")
    for url in (here, (above or ".") if last == MANIFEST else ""):
        if url and parts(store := open_store(url)):
            return store
    raise UserError(f"{place}: no manifest here; give the OUT of a `vsp clean` that ended")


def join(tables: Iterator[pa.Table], columns: Sequence[str] | None = None) -> pa.Table:
    """Parts as one table; without any an empty one."""
    schema = MANIFEST_SCHEMA
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    return pa.concat_tables([schema.empty_table(), *tables])


def scan(store: Store) -> Any:
    """The manifest for a query: what is not asked for is not read where the parts are on a disk."""
    if isinstance(store, LocalStore) and not is_remote(store.url):
        from pyarrow import dataset

        files = [str(store.path(name)) for name in parts(store)]
        return dataset.dataset(files, schema=MANIFEST_SCHEMA, format="parquet")
    return read_manifest(store)


def rows(table: pa.Table) -> Iterator[Mapping[str, Any]]:
    """The rows of a table, in order, without all of them in memory as Python objects."""
    for batch in table.to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


def _read(file: Any, where: str, columns: Sequence[str] | None) -> pa.Table:
    names = MANIFEST_SCHEMA.names if columns is None else list(columns)
    try:
        table = parquet.read(file, names)
    except KeyError as error:
        raise UserError(
            f"{where}: no manifest of a cleaning run: it lacks {error.args[0]}"
        ) from None
    except pa.ArrowException as error:
        raise UserError(f"{where}: not readable as Parquet ({error})") from None
    return table.select(names).cast(pa.schema([MANIFEST_SCHEMA.field(name) for name in names]))
