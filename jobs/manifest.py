"""`vsp manifest`: ask the manifest of a cleaning run, export it, clean another copy of the set."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jobs.options import DryRun

if TYPE_CHECKING:
    from pipeline.cleaning.manifest.query import Answer

EXAMPLE = "vsp manifest show cleaned/"
MAX_ROWS = 100
MAX_CELL = 60  # characters
What = Literal["decisions", "clean", "changes"]
Out = Annotated[str, typer.Argument(metavar="OUT", help="Output folder of `vsp clean`.")]

app = typer.Typer(
    help="""Ask, export and apply the manifest of a cleaning run: one row for every image of IN.

    It lies in OUT/manifest as Parquet, one part a shard; docs/manifest.md has its columns.
    `show OUT`, `query OUT SQL [--csv | --json]`,
    `export OUT FILE [--what decisions | clean | changes]`,
    `apply MANIFEST IN OUT [--model WEIGHTS]`, `identities OUT [--against OTHER]`""",
    epilog=f"Example: {EXAMPLE}",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)


@app.command("show", epilog=f"Example: {EXAMPLE}")
def show_command(out: Out) -> None:
    """Show what became of the images, why, and what their quality was and is."""
    from pipeline.cleaning.manifest.read import find
    from pipeline.cleaning.manifest.summary import summarise

    for title, head, rows in summarise(find(out)):
        typer.echo(title)
        for line in aligned([head, *rows]):
            typer.echo(f"    {line}")


@app.command(
    "query",
    epilog='Example: vsp manifest query OUT "select outcome, count(*) from manifest group by all"',
)
def query_command(
    out: Out,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One select statement.")],
    as_csv: Annotated[bool, typer.Option("--csv", help="The answer as CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as JSON lines.")] = False,
) -> None:
    """Ask in SQL: the tables are `manifest`, and `changes` (images that are not as they were).

    DuckDB answers. It reaches no file, no network and no extension, and takes at most 2 GB of
    memory and 4 threads.
    """
    from pipeline.cleaning.manifest.export import write_csv
    from pipeline.cleaning.manifest.query import ask
    from pipeline.cleaning.manifest.read import find, scan

    answer = ask(scan(find(out)), sql)
    if as_csv:
        write_csv(sys.stdout.buffer, answer.columns, answer.rows)
    elif as_json:
        for row in answer.rows:
            values = dict(zip(answer.columns, row, strict=True))
            typer.echo(json.dumps(values, default=str))
    else:
        for line in _answer_lines(answer):
            typer.echo(line)


@app.command("export", epilog="Example: vsp manifest export cleaned/ keep.csv --what clean")
def export_command(
    out: Out,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The CSV to write.")],
    what: Annotated[
        What,
        typer.Option(
            help="decisions: every image; clean: sha256 and key of what stays; changes: what was "
            "changed, with author and licence."
        ),
    ] = "decisions",
) -> None:
    """Write a list as CSV, whole or not at all; a file of that name is replaced.

    A cell that begins with = + - or @ gets an apostrophe before it, so that no spreadsheet runs it.
    """
    from pipeline.cleaning.manifest import export
    from pipeline.cleaning.manifest.read import batches, find
    from vsp_model.files import whole_or_absent

    store = find(out)
    _check_outside(file, store.url)
    with whole_or_absent(file) as stream:
        tables = batches(store, export.columns_of(what))
        number = export.export(tables, what, stream)
    typer.echo(f"{file}: {number} lines")


def _check_outside(file: Path, out: str) -> None:
    """Refuse to write into OUT, where every file is accounted for, and a missing folder.

    Raises:
        UserError: One line.
    """
    from pipeline.errors import UserError

    if not file.resolve().parent.is_dir():
        raise UserError(f"{file}: no such folder")
    if file.is_dir():
        raise UserError(f"{file}: is a folder; give the name of a file")
    if "://" not in out and Path(out).resolve() in file.resolve().parents:
        raise UserError(f"{file}: lies in {out}, which `vsp verify` accounts for; choose another")


@app.command("apply", epilog="Example: vsp manifest apply theirs.parquet mirror/ cleaned/")
def apply_command(
    manifest: Annotated[
        str,
        typer.Argument(metavar="MANIFEST", help="An OUT, its manifest folder, or one .parquet."),
    ],
    source: Annotated[str, typer.Argument(metavar="IN", help="Your copy of the set, in shards.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the cleaned copy.")],
    model: Annotated[
        str | None, typer.Option(help="The weights that the manifest names; by default ours.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Replicas of the model.")] = 1,
    dry_run: DryRun = False,
) -> int:
    """Clean your copy of a set as somebody's manifest says; an image is known by its sha256.

    Shards and keys may differ. What was kept is kept, what was left out is left out, what was
    restored is restored again with the same weights and compared. What the manifest does not know
    stays and is counted.

    Exit code: as of `vsp clean`.
    """
    from jobs.manifest_apply import apply

    return apply(manifest, source, out, model, device, workers, dry_run=dry_run)


@app.command("identities", epilog="Example: vsp manifest identities cleaned/ --against other/")
def identities_command(
    out: Out,
    against: Annotated[
        str, typer.Option(metavar="OTHER", help="Another OUT: people who are in both.")
    ] = "",
) -> None:
    """Show images that are not who they are said to be, and persons under two names.

    With --against also faces of people in both sets; both runs need --keep-embeddings.
    """
    from pipeline.cleaning.manifest.read import find
    from pipeline.cleaning.persons.who import findings, shared_people

    store = find(out)
    for title, head, rows in findings(store):
        typer.echo(f"{title}: {len(rows)}")
        _rows_of(head, rows)
    if against:
        head, rows = shared_people(store, find(against))
        typer.echo(f"of the same person in {against}: {len(rows)}")
        _rows_of(head, rows)


def _rows_of(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        for line in aligned([head, *rows[:MAX_ROWS]]):
            typer.echo(f"    {line}")
    if len(rows) > MAX_ROWS:
        typer.echo(f"    and {len(rows) - MAX_ROWS} more")


def _answer_lines(answer: "Answer") -> Iterator[str]:
    """The first rows as an aligned table; the rest is counted."""
    rows: list[Sequence[Any]] = []
    more = 0
    for row in answer.rows:
        if len(rows) < MAX_ROWS:
            rows.append(row)
        else:
            more += 1
    yield from aligned([answer.columns, *rows])
    if more:
        yield f"and {more} rows more; --csv and --json give all"


def aligned(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Rows of cells as lines: numbers to the right, text to the left, no control characters."""
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[place]) for row in texts) for place in range(len(texts[0]))]
    is_number = [
        all(isinstance(row[place], int | float) or row[place] is None for row in rows[1:])
        for place in range(len(widths))
    ]
    return [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in texts
    ]


def _cell(value: Any) -> str:
    from pipeline.report.escape import plain

    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else plain(value)
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 3]}..."
