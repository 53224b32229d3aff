"""Tables of numbers: measured ones, and published ones apart from them."""

from collections.abc import Callable, Iterable, Sequence

from pipeline.metrics.ranks import half_up
from pipeline.report import markup
from pipeline.report.escape import name, text
from pipeline.report.grid import (
    ARROWS,
    BEST,
    DIRECTIONS,
    SECOND,
    Column,
    Grid,
    count,
    make_grid,
    number,
    reasons,
    spread,
    without_value,
)
from pipeline.results import Cell, MetricInfo, PublishedCell, Rank, Results
from pipeline.scoring.aggregate_view import PSEUDO_METHODS

Link = Callable[[str, str], str]
"""(data set, method) -> address of its gallery, or ""."""
_MARKS = {BEST: "best", SECOND: "second"}


def measured(grid: Grid, link: Link) -> str:
    """One data set's table; the best of a column bold, the second underlined."""
    notes: dict[str, int] = {}
    rows = [
        markup.row(
            _linked(method, link(grid.dataset.name, method)),
            [_value(grid, method, column, notes) for column in grid.columns],
            kind="faint" if method in PSEUDO_METHODS else "",
            value=text(method),
        )
        for method in grid.methods
    ]
    head = [_method_head(), *(_metric_head(column.info) for column in grid.columns)]
    label = f"Results on {text(grid.dataset.name)}"
    lacking = (f"{name(m)}: {text(reason)}" for m, reason in without_value(grid).items())
    caption = "; ".join(lacking)
    caption = f"Images without a value, all methods together: {caption}." if caption else ""
    return markup.table(label, head, rows, caption=_notes(notes) + caption, kind="numbers sortable")


def groups(results: Results, whole: Grid) -> str:
    """The same by group of images, best and second within each group; "" without groups."""
    made = [(g, make_grid(results, whole.dataset, g)) for g in whole.dataset.groups]
    made = [(group, grid) for group, grid in made if grid.columns]
    infos = [column.info for column in whole.columns]
    infos = [i for i in infos if any(i.name in _names(grid) for _, grid in made)]
    notes: dict[str, int] = {}
    rows = [
        _group_row(group, grid, method, infos, notes)
        for group, grid in made
        for method in grid.methods
    ]
    head = [_method_head(), markup.heading("Group", order="text", first="asc")]
    head += [_metric_head(info) for info in infos]
    label = f"Results by group on {text(whole.dataset.name)}"
    shown = markup.table(label, head, rows, caption=_notes(notes), kind="numbers sortable")
    return markup.details(f"By group ({len(made)})", shown) if rows else ""


def _group_row(
    group: str, grid: Grid, method: str, infos: Sequence[MetricInfo], notes: dict[str, int]
) -> str:
    columns = {column.info.name: column for column in grid.columns}
    cells = [markup.cell(name(group), kind="text", value=text(group))]
    for info in infos:
        column = columns.get(info.name)
        cells.append(_value(grid, method, column, notes) if column else markup.cell(""))
    return markup.row(name(method), cells, value=text(method))


def _names(grid: Grid) -> set[str]:
    return {column.info.name for column in grid.columns}


def _linked(method: str, address: str) -> str:
    return f'<a href="{text(address)}">{name(method)}</a>' if address else name(method)


def _method_head() -> str:
    return markup.heading("Method", order="text", first="asc")


def _metric_head(info: MetricInfo) -> str:
    unit = f' <span class="unit">{text(info.unit)}</span>' if info.unit else ""
    trained = "<sup>\u2020</sup>" if info.is_loss else ""
    arrow = f'<span role="img" aria-label="{DIRECTIONS[info.better]}">{ARROWS[info.better]}'
    # "zero" has no direction of numbers in which best comes first; the script takes sizes then.
    first = {"higher": "desc", "lower": "asc", "zero": "size"}[info.better]
    told = text(f"{info.protocol}; {DIRECTIONS[info.better]}; {info.source}")
    content = f"{name(info.name)}{trained}{unit} {arrow}</span>"
    return markup.heading(content, order="number", first=first, title=told)


def _value(grid: Grid, method: str, column: Column, notes: dict[str, int]) -> str:
    cell = grid.cells.get((method, column.info.name))
    if cell is None:
        return markup.cell("")
    mark = _MARKS.get(column.places.get(method, 0), "")
    shown = f'<span class="value">{number(cell.value, column.decimals)}</span>'
    if mark:
        shown += f'<span class="unseen"> ({mark})</span>'
    if cell.note:
        shown += f"<sup>{notes.setdefault(cell.note, len(notes) + 1)}</sup>"
    small = _smallprint(cell, column.decimals)
    value = "" if cell.value is None else repr(cell.value)
    return markup.cell(shown + small, kind=mark, value=value)


def _smallprint(cell: Cell, decimals: int) -> str:
    interval = spread(cell, decimals).replace(" ", "\u00a0")
    small = f"<small>{interval}</small>" if interval else ""
    if num := count(cell):
        small += f'<small title="{text(reasons([cell]))}">{num}</small>'
    return small


def _notes(notes: dict[str, int]) -> str:
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f'<ol class="notes">{items}</ol>' if items else ""


def ranks(results: Results, dataset: str) -> str:
    """Mean ranks over the columns that every method has."""
    chosen = sorted((r for r in results.ranks if r.dataset == dataset), key=lambda r: r.mean)
    head = [
        _method_head(),
        markup.heading("Mean rank \u2193", order="number", first="asc"),
        markup.heading("P(first) \u2191", order="number"),
        markup.heading("Ties averaged \u2193", order="number", first="asc"),
    ]
    columns = dict.fromkeys(column for rank in chosen for column in rank.columns)
    told = [name(column.removeprefix(f"{dataset} ")) for column in columns]
    caption = f"Over {', '.join(told)}." if told else ""
    caption += "".join(
        f" {text(note)}." for note in dict.fromkeys(r.note for r in chosen if r.note)
    )
    label = f"Mean ranks, {text(dataset) or 'all data sets'}"
    rows = [_rank_row(rank, is_first=rank.mean == chosen[0].mean) for rank in chosen]
    return markup.table(label, head, rows, caption=caption, kind="numbers sortable")


def _rank_row(rank: Rank, *, is_first: bool) -> str:
    bounds = ""
    if rank.low is not None and rank.high is not None:
        bounds = f"<small>[{number(rank.low, 2)},\u00a0{number(rank.high, 2)}]</small>"
    shown = f'<span class="value">{half_up(rank.mean)}</span>{bounds}'
    cells = [
        markup.cell(shown, kind="best" if is_first else "", value=repr(rank.mean)),
        markup.cell(number(rank.p_first, 2), value=_sortable(rank.p_first)),
        markup.cell(half_up(rank.mean_average), value=repr(rank.mean_average)),
    ]
    return markup.row(name(rank.method), cells, value=text(rank.method))


def _sortable(value: float | None) -> str:
    return "" if value is None else repr(value)


def published(cells: Iterable[PublishedCell]) -> list[str]:
    """What papers printed, each table by itself."""
    kept = list(cells)
    return [
        _published(title, [cell for cell in kept if cell.table == title])
        for title in dict.fromkeys(cell.table for cell in kept)
    ]


def _published(title: str, cells: Sequence[PublishedCell]) -> str:
    columns = list(dict.fromkeys(cell.column for cell in cells))
    texts = {(cell.method, cell.column): text(cell.text) for cell in cells}
    rows = [
        markup.row(name(m), [markup.cell(texts.get((m, column), "")) for column in columns])
        for m in dict.fromkeys(cell.method for cell in cells)
    ]
    head = [markup.heading("Method"), *(markup.heading(name(column)) for column in columns)]
    sources = "; ".join(dict.fromkeys(text(cell.source) for cell in cells))
    caption = f"As printed in {sources}; not measured here."
    shown = markup.table(f"Published: {text(title)}", head, rows, caption=caption, kind="numbers")
    return f"<h3>{name(title)}</h3>{shown}"
