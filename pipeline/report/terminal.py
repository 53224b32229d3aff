"""Results as aligned text, for whoever has just run the command."""

import unicodedata
from collections.abc import Sequence

from pipeline.report.escape import plain
from pipeline.report.grid import ARROWS, BEST, Column, Grid, count, grids, number
from pipeline.results import Results

WIDTH = 96
NAME_WIDTH = 24
GAP = "  "


def table_lines(results: Results) -> list[str]:
    """Each data set's table in at most 96 columns, the best of a metric marked with a star."""
    lines: list[str] = []
    for grid in grids(results):
        lines += ["", f"{plain(grid.dataset.name)}, {grid.dataset.num_images:,} images"]
        for block in _blocks(grid):
            lines += _aligned([row for row in block if any(cell.strip() for cell in row[1:])])
    if any("*" in line for line in lines):
        lines += ["", "* best; n/N: only so many images have a value"]
    notes = dict.fromkeys(f"{cell.metric}: {cell.note}" for cell in results.cells if cell.note)
    lines += [f"note: {plain(note)}" for note in notes]
    lines += [f"warning: {plain(line)}" for line in results.warnings]
    lines += [f"not computed: {plain(line)}" for line in results.missing]
    return lines[1:] if lines and not lines[0] else lines


def _blocks(grid: Grid) -> list[list[list[str]]]:
    """The table cut so that every part fits: rows of cells, methods first."""
    names = ["", *(_cut(plain(method)) for method in grid.methods)]
    columns = [_texts(grid, column) for column in grid.columns]
    room = WIDTH - max(map(_width, names))
    blocks: list[list[list[str]]] = []
    left = 0
    for column in columns:
        needed = max(map(_width, column)) + len(GAP)
        if not blocks or needed > left:
            blocks.append([[name] for name in names])
            left = room
        left -= needed
        for row, cell in zip(blocks[-1], column, strict=True):
            row.append(cell)
    return blocks


def _texts(grid: Grid, column: Column) -> list[str]:
    head = f"{column.info.name} {column.info.unit} {ARROWS[column.info.better]}"
    texts = [plain(head)]
    for method in grid.methods:
        cell = grid.cells.get((method, column.info.name))
        if cell is None:
            texts.append(" ")
            continue
        part = f" {count(cell)}" if cell.value is not None and count(cell) else ""
        star = "*" if column.places.get(method) == BEST else " "
        texts.append(number(cell.value, column.decimals) + part + star)
    return texts


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        GAP.join(
            _padded(cell, width, to_left=i == 0)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _padded(cell: str, width: int, *, to_left: bool) -> str:
    blank = " " * (width - _width(cell))
    return cell + blank if to_left else blank + cell


def _cut(name: str) -> str:
    kept, width = "", 0
    for sign in name:
        width += _width(sign)
        if width > NAME_WIDTH:
            return f"{kept[:-1]}\u2026"
        kept += sign
    return name


def _width(text: str) -> int:
    """Columns that a terminal gives it: two to a wide sign, none to a combining one."""
    return sum(
        0 if unicodedata.combining(sign) else 1 + (unicodedata.east_asian_width(sign) in "WF")
        for sign in text
    )
