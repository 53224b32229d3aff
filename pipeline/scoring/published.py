"""Numbers that papers printed, shipped as CSV files; they never share a cell with measured ones."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.results import PublishedCell


def load_published(folder: Path, tables: Sequence[str]) -> tuple[PublishedCell, ...]:
    """Read published tables.

    A table is `<name>.csv`: a line `# source`, then a header whose first column is `method`. The
    text of a number is kept as printed; an empty cell is no number.

    Args:
        folder: Where they are.
        tables: Names, as "table-1".

    Raises:
        UserError: If a table is not there, or is no such file.
    """
    return tuple(cell for name in tables for cell in _cells(folder / f"{name}.csv"))


def _cells(path: Path) -> Iterator[PublishedCell]:
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        there = ", ".join(sorted(each.stem for each in path.parent.glob("*.csv"))) or "none"
        raise UserError(f"{path}: no such published table; there are: {there}") from None
    except ValueError:
        raise UserError(f"{path}: empty or not UTF-8") from None
    rows = csv.DictReader(lines)
    if not first.startswith("# ") or "method" not in (rows.fieldnames or ()):
        raise UserError(f"{path}:1: expected a line '# source', then a header 'method,...'")
    for number, row in enumerate(rows, start=3):
        if None in row or None in row.values():
            raise UserError(f"{path}:{number}: as many columns as the header expected")
        method = row.pop("method")
        for column, text in row.items():
            if text:
                yield PublishedCell(
                    table=path.stem, method=method, column=column, text=text, source=first[2:]
                )
