"""What stands around the numbers: comparisons, what is missing, how everything was computed."""

from collections.abc import Iterable

from pipeline.report import markup
from pipeline.report.compare import Change, Changes
from pipeline.report.escape import name, text
from pipeline.report.grid import ARROWS, COSTS, cost, decimals, number
from pipeline.results import Comparison, MethodInfo, MetricInfo, Results

ALPHA = 0.05


def comparisons(results: Results) -> str:
    """Pairs of methods on the same images, folded, a table for each data set."""
    infos = {info.name: info for info in results.metrics}
    folded = []
    for dataset in dict.fromkeys(each.dataset for each in results.comparisons):
        mine = [each for each in results.comparisons if each.dataset == dataset]
        rows = [_comparison_row(each, infos[each.metric]) for each in mine]
        head = [
            *(markup.heading(each, order="text", first="asc") for each in _PAIR),
            markup.heading("Difference", order="number"),
            markup.heading("p (Holm)", order="number", first="asc"),
            markup.heading("Images", order="number"),
        ]
        label = f"Differences between methods on {text(dataset)}"
        shown = markup.table(label, head, rows, kind="numbers sortable")
        folded.append(markup.details(f"{name(dataset)}: {len(rows):,} differences", shown))
    return "\n".join(folded)


_PAIR = ("Metric", "Method", "minus")


def _comparison_row(each: Comparison, info: MetricInfo) -> str:
    digits = max(decimals(info, [each.difference, each.low, each.high]), 3)
    low, high = number(each.low, digits), number(each.high, digits)
    shown = f'<span class="value">{number(each.difference, digits)}</span>'
    cells = [
        markup.cell(name(each.method), kind="text", value=text(each.method)),
        markup.cell(name(each.other), kind="text", value=text(each.other)),
        markup.cell(f"{shown}<small>[{low},\u00a0{high}]</small>", value=repr(each.difference)),
        markup.cell(_p_value(each.p_holm), value=repr(each.p_holm)),
        markup.cell(f"{each.num_images:,}", value=str(each.num_images)),
    ]
    label = f"{name(info.name)} {ARROWS[info.better]}"
    kind = "" if each.p_holm < ALPHA else "faint"
    return markup.row(label, cells, kind=kind, value=text(info.name))


def _p_value(p: float) -> str:
    return "&lt;\u00a00.0001" if p < 1e-4 else f"{p:.4f}"


def changes(found: Changes, other: str) -> str:
    """What is different from another evaluation."""
    rows = [_change_row(change) for change in found.matched]
    head = [
        *(markup.heading(each, order="text", first="asc") for each in _CELL),
        *(markup.heading(each, order="number") for each in ("Here", "There", "Difference")),
        markup.heading("Beyond both intervals"),
    ]
    shown = markup.table("Differences from the other evaluation", head, rows,
                         kind="numbers sortable")  # fmt: skip
    lines = markup.bullets((text(line) for line in found.unmatched), "plain")
    summary = f"Not compared ({len(found.unmatched):,})"
    return (
        f"<p>Against {name(other)}: cells of the same protocol on the same revision of a data set. "
        "A difference counts as beyond the intervals where it is larger than the root of the sum "
        f"of their squared halves.</p>{shown}{markup.details(summary, lines)}"
    )


_CELL = ("Data set", "Method", "Metric")
_VERDICTS = {
    (True, True): ("better", "better"),
    (True, False): ("worse", "worse"),
}


def _change_row(change: Change) -> str:
    info, new, old = change.info, change.new.value, change.old.value
    assert new is not None
    assert old is not None
    digits = decimals(info, [new, old])
    if change.is_beyond is None:
        verdict, kind = "no interval", ""
    else:
        verdict, kind = _VERDICTS.get((change.is_beyond, change.is_better), ("no", ""))
    metric = f"{name(info.name)} {ARROWS[info.better]}"
    cells = [
        markup.cell(name(change.new.method), kind="text", value=text(change.new.method)),
        markup.cell(metric, kind="text", value=text(info.name)),
        markup.cell(number(new, digits), value=repr(new)),
        markup.cell(number(old, digits), value=repr(old)),
        markup.cell(number(change.delta, digits), value=repr(change.delta)),
        markup.cell(verdict, kind=kind),
    ]
    row_kind = "" if kind else "faint"
    return markup.row(
        name(change.new.dataset), cells, kind=row_kind, value=text(change.new.dataset)
    )


def methods(results: Results) -> str:
    """Each method's cost, terms and revision."""
    costs = list(dict.fromkeys(key for info in results.methods for key in info.cost))
    head = ["Method", *(text(COSTS.get(key, key)) for key in costs), "Notice", "Revisions"]
    rows = [_method_row(info, costs) for info in results.methods]
    cells = [markup.heading(each) for each in head]
    return markup.table("Methods", cells, rows, kind="facts")


def _method_row(info: MethodInfo, costs: Iterable[str]) -> str:
    cells = [markup.cell(cost(info.cost.get(key)), kind="number") for key in costs]
    revisions = ", ".join(
        f"{name(dataset)}\u00a0{_code(rev)}" for dataset, rev in info.revs.items()
    )
    return markup.row(name(info.name), [*cells, markup.cell(text(info.notice)),
                                        markup.cell(revisions)])  # fmt: skip


def metrics(results: Results) -> str:
    """What each metric is: protocol, source, library, weight files."""
    head = [markup.heading(each) for each in ("Metric", "Protocol", "Source", "Computed by",
                                              "Weights, sha256")]  # fmt: skip
    rows = [_metric_row(info) for info in results.metrics]
    caption = ""
    if any(info.is_loss for info in results.metrics):
        caption = (
            "\u2020 Networks of this project are trained on this metric, so it may be gamed: "
            "look at others beside it."
        )
    return markup.table("Metrics", head, rows, caption=caption, kind="facts")


def _metric_row(info: MetricInfo) -> str:
    trained = "<sup>\u2020</sup>" if info.is_loss else ""
    unit = f' <span class="unit">{text(info.unit)}</span>' if info.unit else ""
    weights = "<br>".join(f"{name(file)} {_code(sha)}" for file, sha in info.weights.items())
    cells = [
        markup.cell(_code(info.protocol)),
        markup.cell(text(info.source)),
        markup.cell(text(info.library)),
        markup.cell(weights),
    ]
    return markup.row(f"{name(info.name)}{trained}{unit} {ARROWS[info.better]}", cells)


def provenance(results: Results) -> str:
    """Command, commit, configuration, hardware."""
    rows = [
        markup.row(name(key), [markup.cell(_code(value))])
        for key, value in results.provenance.items()
    ]
    return markup.table("Provenance", [], rows, kind="facts")


def _code(value: object) -> str:
    return f"<code>{text(value)}</code>"
