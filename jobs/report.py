"""`vsp report`: the pages that people look at, of a finished evaluation."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "vsp report scores/ --single-file"


def command(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder of an evaluation.")],
    compare: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Show what differs from this evaluation.")
    ] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="One page; the worst and best 50 of each gallery.")
    ] = False,
    no_images: Annotated[bool, typer.Option("--no-images", help="Scores only.")] = False,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it goes; OUT/report by default.")
    ] = None,
) -> None:
    """Make pages of results: tables with intervals, plots, galleries with before/after sliders.

    They open from a disk, without a network. An earlier report in the same place is replaced.
    """
    from pipeline.report.build import ReportConfig, write_report

    config = ReportConfig(images=not no_images, single_file=single_file, compare=compare, to=to)
    index = write_report(out, config)
    typer.echo(f"{index} ({index.stat().st_size / 1e6:.2f} MB)")
