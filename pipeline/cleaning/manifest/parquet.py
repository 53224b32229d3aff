"""Reading tables so that a short command ends well."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def read(file: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, in this thread alone.

    pyarrow's own threads abort now and then a process that ends soon after it has read ("terminate
    called without an active exception": once in forty times); these tables are small.

    Args:
        file: An open file.
        columns: Which ones; None for all.

    Raises:
        pyarrow.ArrowException: If it is no Parquet.
        KeyError: If it lacks a column.
    """
    parquet = pq.ParquetFile(file)
    missing = sorted(set(columns or ()) - set(parquet.schema_arrow.names))
    if missing:
        raise KeyError(", ".join(missing))
    return parquet.read(columns=None if columns is None else list(columns), use_threads=False)
