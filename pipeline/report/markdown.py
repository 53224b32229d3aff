"""Results as GitHub's tables."""

from collections.abc import Iterable, Sequence

from pipeline.metrics.ranks import half_up
from pipeline.report.escape import markdown as escaped
from pipeline.report.grid import (
    ARROWS,
    BEST,
    COSTS,
    SECOND,
    Column,
    Grid,
    cost,
    count,
    grids,
    number,
    spread,
    without_value,
)
from pipeline.results import MetricInfo, PublishedCell, Rank, Results

LEGEND = (
    "Bold is the best, underlined the second. In brackets the 95 % interval over images, after "
    "\u00b1 the standard error. n/N: only n of N images have a value. "
    "\u2020: networks of this project are trained on this metric."
)


def markdown(results: Results) -> str:
    """Every table; measured and published numbers never share one."""
    blocks = [f"# {escaped(results.title or 'Evaluation')}", LEGEND]
    for grid in grids(results):
        blocks += _measured(grid)
    if results.ranks:
        blocks += ["## Mean rank", _table(*_ranks(results.ranks))]
    for title in dict.fromkeys(cell.table for cell in results.published):
        blocks += _published(title, [cell for cell in results.published if cell.table == title])
    if any(info.cost for info in results.methods):
        blocks += ["## What methods cost", _table(*_costs(results))]
    if results.missing:
        blocks += ["## Not computed", _list(results.missing)]
    if results.warnings:
        blocks += ["## Warnings", _list(results.warnings)]
    facts = [(escaped(key), escaped(value)) for key, value in results.provenance.items()]
    if facts:
        blocks += ["## Provenance", _table(("", ""), facts)]
    return "\n\n".join(blocks) + "\n"


def _measured(grid: Grid) -> list[str]:
    notes: dict[str, int] = {}
    rows = [
        [escaped(method), *(_cell(grid, method, column, notes) for column in grid.columns)]
        for method in grid.methods
    ]
    head = ["Method", *(_head(column.info) for column in grid.columns)]
    told = [escaped(grid.dataset.note)] if grid.dataset.note else []
    remarks = "\n".join(f"{mark}. {escaped(note)}" for note, mark in notes.items())
    told_after = [remarks] if remarks else []
    title = f"## {escaped(grid.dataset.name)}"
    return [title, *told, _table(head, rows), *told_after, _caption(grid)]


def _caption(grid: Grid) -> str:
    protocols = ", ".join(_protocol(column.info) for column in grid.columns)
    images = f"{grid.dataset.num_images:,} images, revision {escaped(grid.dataset.rev)}"
    lacking = "; ".join(
        f"{escaped(metric)}: {escaped(reason)}" for metric, reason in without_value(grid).items()
    )
    told = f" Images without a value, all methods together: {lacking}." if lacking else ""
    return f"{images}. Protocols: {protocols}.{told}"


def _head(info: MetricInfo) -> str:
    unit = f" ({escaped(info.unit)})" if info.unit else ""
    trained = " \u2020" if info.is_loss else ""
    return f"{escaped(info.name)}{unit}{trained} {ARROWS[info.better]}"


def _protocol(info: MetricInfo) -> str:
    return f"{escaped(info.name)} = {escaped(info.protocol)}"


def _cell(grid: Grid, method: str, column: Column, notes: dict[str, int]) -> str:
    cell = grid.cells.get((method, column.info.name))
    if cell is None:
        return ""
    value = number(cell.value, column.decimals)
    place = column.places.get(method)
    marked = {BEST: f"**{value}**", SECOND: f"<ins>{value}</ins>"}.get(place or 0, value)
    parts = [marked, spread(cell, column.decimals), count(cell)]
    if cell.note:
        parts.append(f"<sup>{notes.setdefault(cell.note, len(notes) + 1)}</sup>")
    return " ".join(part for part in parts if part)


def _ranks(ranks: Iterable[Rank]) -> tuple[list[str], list[list[str]]]:
    head = ["Data set", "Method", "Mean rank \u2193", "95 % interval", "P(first)"]
    rows = [
        [
            escaped(rank.dataset) or "all",
            escaped(rank.method),
            half_up(rank.mean),
            f"[{number(rank.low, 2)}, {number(rank.high, 2)}]" if rank.low is not None else "",
            number(rank.p_first, 2),
        ]
        for rank in ranks
    ]
    return head, rows


def _costs(results: Results) -> tuple[list[str], list[list[str]]]:
    keys = list(dict.fromkeys(key for info in results.methods for key in info.cost))
    rows = [
        [escaped(info.name), *(cost(info.cost.get(key)) for key in keys)]
        for info in results.methods
        if info.cost
    ]
    return ["Method", *(escaped(COSTS.get(key, key)) for key in keys)], rows


def _published(title: str, cells: Sequence[PublishedCell]) -> list[str]:
    columns = list(dict.fromkeys(cell.column for cell in cells))
    methods = list(dict.fromkeys(cell.method for cell in cells))
    texts = {(cell.method, cell.column): escaped(cell.text) for cell in cells}
    rows = [
        [escaped(method), *(texts.get((method, column), "") for column in columns)]
        for method in methods
    ]
    sources = "; ".join(dict.fromkeys(escaped(cell.source) for cell in cells))
    return [
        f"## Published: {escaped(title)}",
        _table(["Method", *map(escaped, columns)], rows),
        f"As printed, not measured here. Source: {sources}.",
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)
