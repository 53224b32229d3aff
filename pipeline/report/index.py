"""The first page: every table, the plots, and how it all was computed."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.report import facts, markup, plots, tables
from pipeline.report.compare import Changes
from pipeline.report.escape import name, text
from pipeline.report.faces import Faces
from pipeline.report.grid import Column, Grid, grids
from pipeline.report.plots import Point, Range
from pipeline.report.tables import Link
from pipeline.results import Cell, Results
from pipeline.scoring.aggregate_view import PSEUDO_METHODS

# What stands for quality in the plots against identity: the first of each that is there.
QUALITY = (
    ("lpips-vgg", "lpips-alex", "lpips-squeeze"),
    ("niqe", "niqe-small", "musiq", "topiq"),
    ("fid", "fid-paired", "squeeze-fd"),
)
IDENTITY = ("identity", "identity-angle", "ids-codeformer", "deg-vqfr", "idd-rfpp")
NORMAL_95 = 1.96


def body(
    results: Results,
    faces: Sequence[Faces],
    link: Link,
    changes: tuple[Changes, str] | None = None,
    more: str = "",
) -> str:
    """The page's body.

    Args:
        results: What is shown.
        faces: Every image's scores, for the distributions.
        link: Where galleries are.
        changes: Differences from another evaluation, and what it is called.
        more: A further section, after the results.
    """
    made = grids(results)
    sections = (
        markup.section("results", "Results", _legend(results), *_measured(results, made, link)),
        more,
        markup.section("ranks", "Mean rank", *_ranks(results)),
        markup.section("changes", "Changes", facts.changes(*changes) if changes else ""),
        markup.section("trade-offs", "Quality against identity", *_trade_offs(results, made)),
        markup.section("distributions", "Distributions", *_distributions(results, made, faces)),
        markup.section("differences", "Differences between methods", _differences(results)),
        markup.section("published", "Published numbers", *tables.published(results.published)),
        markup.section("missing", "Not computed", _lines(results.missing)),
        markup.section("methods", "Methods", facts.methods(results)),
        markup.section("metrics", "Metrics", facts.metrics(results)),
        markup.section("provenance", "Provenance", facts.provenance(results)),
    )
    inner = "\n".join(part for part in sections if part)
    return f"{_top(results, inner)}\n{_warnings(results)}\n<main>\n{inner}\n</main>"


def _top(results: Results, inner: str) -> str:
    methods = [info for info in results.methods if info.name not in PSEUDO_METHODS]
    told = {"data set": results.datasets, "method": methods, "metric": results.metrics}
    counts = ", ".join(f"{len(each)} {what}{'s' * (len(each) != 1)}" for what, each in told.items())
    titles = {
        "results": "Results", "galleries": "Galleries", "ranks": "Mean rank", "changes": "Changes",
        "trade-offs": "Trade-offs", "distributions": "Distributions",
        "differences": "Differences", "published": "Published", "missing": "Not computed",
        "methods": "Methods", "metrics": "Metrics", "provenance": "Provenance",
    }  # fmt: skip
    links = "".join(
        f'<a href="#{anchor}">{title}</a>'
        for anchor, title in titles.items()
        if f'<section id="{anchor}"' in inner
    )
    return (
        f"<header><h1>{name(title_of(results))}</h1><p>{counts}</p>"
        f'<nav aria-label="On this page">{links}</nav></header>'
    )


def title_of(results: Results) -> str:
    """What the report is called."""
    return results.title or "Evaluation of face restoration"


def _warnings(results: Results) -> str:
    lines = _lines(results.warnings)
    return f'<aside class="warning" aria-label="Warnings">{lines}</aside>' if lines else ""


def _lines(lines: Iterable[str]) -> str:
    return markup.bullets((text(line) for line in lines), "plain")


def _legend(results: Results) -> str:
    if not results.cells:
        return '<p class="legend">Nothing has been scored yet.</p>'
    trained = any(info.is_loss for info in results.metrics)
    mark = " <sup>\u2020</sup> networks of this project are trained on it." if trained else ""
    return (
        '<p class="legend"><span class="best"><span class="value">Best</span></span>, '
        '<span class="second"><span class="value">second</span></span>; below a value its '
        "95\u00a0% interval over images, or \u00b1 its standard error, and n/N where only n of N "
        f"images have a value.{mark} A click on a heading sorts; a method\u2019s name leads to its "
        "images.</p>"
    )


def _measured(results: Results, made: Iterable[Grid], link: Link) -> list[str]:
    parts = []
    for grid in made:
        dataset = grid.dataset
        told = [f"{dataset.num_images:,} images", f"revision <code>{text(dataset.rev)}</code>"]
        told += [] if dataset.has_truth else ["no truths"]
        told += [text(dataset.note)] if dataset.note else []
        joined = " \u00b7 ".join(told)
        parts += [
            f'<h3>{name(dataset.name)}</h3><p class="note">{joined}</p>',
            tables.measured(grid, link),
            tables.groups(results, grid),
        ]
    return parts


def _ranks(results: Results) -> list[str]:
    parts = []
    datasets = sorted({rank.dataset for rank in results.ranks})
    if datasets[:1] == [""] and len(datasets) == 2:  # all data sets are the one
        datasets = datasets[1:]
    for dataset in datasets:
        title = name(dataset) if dataset else "All data sets"
        ranges = {
            rank.method: Range(
                rank.mean,
                rank.mean if rank.low is None else rank.low,
                rank.mean if rank.high is None else rank.high,
            )
            for rank in results.ranks
            if rank.dataset == dataset
        }
        plot = plots.intervals(ranges, "Mean rank \u2193 95 % interval", colors(results))
        shown = tables.ranks(results, dataset)
        parts.append(f'<h3>{title}</h3><div class="beside">{shown}<figure>{plot}</figure></div>')
    return parts


def _trade_offs(results: Results, made: Iterable[Grid]) -> list[str]:
    parts = []
    for grid in made:
        columns = {column.info.name: column for column in grid.columns}
        identity = next((columns[each] for each in IDENTITY if each in columns), None)
        chosen = (next((columns[q] for q in kind if q in columns), None) for kind in QUALITY)
        drawn = [_scatter(grid, quality, identity, colors(results))
                 for quality in chosen if quality and identity]  # fmt: skip
        parts.append(_figures(grid, [each for each in drawn if each]))
    return parts


def _scatter(grid: Grid, x: Column, y: Column, known: Mapping[str, int]) -> str:
    points = []
    for method in grid.methods:
        pair = (grid.cells.get((method, column.info.name)) for column in (x, y))
        across, up = (_range(cell) for cell in pair)
        if across and up:
            points.append(Point(method, across, up))
    return plots.scatter(x.info, y.info, points, known) if len(points) > 1 else ""


def _range(cell: Cell | None) -> Range | None:
    if cell is None or cell.value is None or not np.isfinite(cell.value):
        return None
    if cell.low is not None and cell.high is not None:
        return Range(cell.value, cell.low, cell.high)
    half = NORMAL_95 * cell.error if cell.error is not None else 0.0
    return Range(cell.value, cell.value - half, cell.value + half)


def _distributions(results: Results, made: Iterable[Grid], faces: Sequence[Faces]) -> list[str]:
    return [
        _figures(grid, [each for info in results.metrics
                        if (each := _distribution(results, grid, faces, info.name))])
        for grid in made
    ]  # fmt: skip


def _distribution(results: Results, grid: Grid, faces: Sequence[Faces], metric: str) -> str:
    info = next(info for info in results.metrics if info.name == metric)
    values = {}
    for each in faces:
        if each.dataset == grid.dataset.name and info.protocol in each.scores:
            numbers = each.scores[info.protocol].values
            values[each.method] = numbers[np.isfinite(numbers)]
    ordered = {method: values[method] for method in grid.methods if method in values}
    return plots.distribution(info, ordered, colors(results))


def _figures(grid: Grid, drawn: Sequence[str]) -> str:
    if not drawn:
        return ""
    figures = "".join(f"<figure>{each}</figure>" for each in drawn)
    return f'<h3>{name(grid.dataset.name)}</h3><div class="plots">{figures}</div>'


def _differences(results: Results) -> str:
    shown = facts.comparisons(results)
    told = (
        '<p class="legend">Method minus the other, image by image, with its 95\u00a0% interval; p '
        "of Wilcoxon\u2019s signed-rank test, corrected after Holm over the pairs of methods. Rows "
        f"with p \u2265 {facts.ALPHA:g} are faint.</p>"
    )
    return told + shown if shown else ""


def colors(results: Results) -> dict[str, int]:
    """Method -> number of its colour, the same in every plot."""
    methods = dict.fromkeys(info.name for info in results.methods)
    methods |= dict.fromkeys(cell.method for cell in results.cells)
    methods |= dict.fromkeys(rank.method for rank in results.ranks)
    return {method: number % plots.NUM_COLORS for number, method in enumerate(methods)}
