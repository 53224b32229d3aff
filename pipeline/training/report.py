"""`report.md` of a finished run: what was computed, from what, with what, and how well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import images
from pipeline.storage import Store
from pipeline.training.curves import curves
from pipeline.training.log import GRIDS, read_figures, read_sittings, seconds_worked

REPORT, CURVES = "report.md", "curves.png"


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What the log does not know.

    Attributes:
        title: Stage and kind.
        rows: What stands in the first table, by its name.
        best: Figure that names the best checkpoint.
        best_images: Images seen at that checkpoint, None if none was kept.
        files: Files of the result with what they are.
    """

    title: str
    rows: Mapping[str, str]
    best: str
    best_images: int | None
    files: Mapping[str, str]


def write_report(store: Store, facts: ReportFacts) -> None:
    """Write the report and its curves into the run's folder.

    Raises:
        StoreTrouble: If there is no room for them.
    """
    lines = read_figures(store)
    parts = [f"# {facts.title}", "", *_facts(store, facts)]
    validation = [line for line in lines if any(name.startswith("val/") for name in line)]
    if validation:
        parts += ["", "## Validation", "", *_figures(validation, facts)]
    if lines:
        store.write(CURVES, images.encode(curves(lines), "png"))
        parts += ["", "## Curves", "", f"![figures against images seen]({CURVES})"]
    grids = sorted(store.list(GRIDS))
    if grids:
        parts += ["", "## Samples", "", f"![samples at the end]({grids[-1]})"]
    store.write(REPORT, ("\n".join(parts) + "\n").encode())


def _facts(store: Store, facts: ReportFacts) -> list[str]:
    sittings = read_sittings(store)
    hours = f"{seconds_worked(store) / 3600:.2f} in {len(sittings)} sitting(s)"
    hardware = list(dict.fromkeys(str(each.get("hardware", "")) for each in sittings))
    torch = list(dict.fromkeys(str(each.get("torch", "")) for each in sittings))
    commits = list(dict.fromkeys(str(each.get("commit", "")) for each in sittings))
    rows = {
        **facts.rows,
        "commit": ", then ".join(commits),
        "hardware": ", then ".join(hardware),
        "torch": ", then ".join(torch),
        "hours": hours,
        **facts.files,
    }
    return table(("", ""), [(name, value) for name, value in rows.items() if value])


def _figures(lines: Sequence[Mapping[str, Any]], facts: ReportFacts) -> list[str]:
    """The last validation beside the one of the best checkpoint."""
    last = lines[-1]
    best = next((line for line in lines if line["images"] == facts.best_images), None)
    names = sorted(name for name in last if name.startswith("val/"))
    head = [f"{facts.best} decides", f"last, {last['images']:,} images"]
    columns = [last]
    if best:
        head.append(f"best checkpoint, {best['images']:,} images")
        columns.append(best)
    rows = [[name.removeprefix("val/"), *[_number(c.get(name)) for c in columns]] for name in names]
    return table(head, rows)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, a line each."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines]
