"""Questions to a manifest in SQL, by DuckDB, which sees the manifest and nothing else.

External access is off (no file, no address, no extension), Python's variables are out of reach, the
configuration is locked, memory and threads are bounded, nothing goes to a disk. Only questions are
taken: one statement that selects.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError

MEMORY = "2GB"
MAX_THREADS = 4
MAX_MESSAGE = 300  # characters
INSTALL = "queries need duckdb; pip install 'vsp-restore[clean]'"
CHANGES = """
    create view changes as select * from manifest
    where sha256_out is not null and (outcome = 'restored' or operations like '%"align"%')
"""
"""Images of the cleaned set that are not as they were."""
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "temp_directory": "",
    "memory_limit": MEMORY,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows that a question came to.

    Attributes:
        columns: Their names.
        rows: Batches of rows; to be taken once.
    """

    columns: tuple[str, ...]
    rows: Iterator[Sequence[Any]]


def ask(manifest: Any, sql: str) -> Answer:
    """Answer one question.

    Args:
        manifest: An Arrow table or data set; the query knows it as `manifest`, and what of it was
            changed as `changes`.
        sql: One statement that selects.

    Raises:
        UserError: If duckdb is missing, or the statement is none, is wrong or may not be.
    """
    try:
        import duckdb
    except ImportError:
        raise UserError(INSTALL) from None
    connection = duckdb.connect(":memory:", config=_SETTINGS | {"threads": _threads()})
    try:
        connection.register("manifest", manifest)
        connection.execute(CHANGES)
        connection.execute("set lock_configuration = true")
        _check(duckdb, connection, sql)
        result = connection.execute(sql)
    except duckdb.Error as error:
        raise UserError(_line(error)) from None
    names = tuple(column[0] for column in result.description)
    return Answer(names, _rows(duckdb, connection, result))


def _check(duckdb: Any, connection: Any, sql: str) -> None:
    """Take one question and nothing that writes, sets, loads or attaches."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise UserError(f"expected one statement, not {len(statements)}")
    kind = statements[0].type
    if kind not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise UserError(f"{str(kind).rpartition('.')[2]}: only questions (select ...) are taken")


def _rows(duckdb: Any, connection: Any, result: Any) -> Iterator[Sequence[Any]]:
    """All rows; the connection lives until they are taken."""
    try:
        while batch := result.fetchmany(1000):
            yield from batch
    except duckdb.Error as error:
        raise UserError(_line(error)) from None
    finally:
        connection.close()


def _line(error: Exception) -> str:
    """DuckDB's message without the picture of the statement and the advice that follow it."""
    text = " ".join(str(error).partition("\n\nLINE ")[0].split())
    return f"query: {text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + ' ...'}"


def _threads() -> int:
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else MAX_THREADS
    return min(MAX_THREADS, there)
