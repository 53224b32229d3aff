"""`vsp review`: a local page to look through what was cleaned, and to overrule it."""

import os
import sys
import webbrowser
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.review.application import Application

EXAMPLE = "vsp review cleaned/"


def command(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder of a `vsp clean`.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where the page is; 0 for a free one.")
    ] = 0,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.")
    ] = True,
) -> int:
    """Show before and after, the most doubtful first; keep, accept or leave out by keyboard.

    The page is for this machine alone, at an address with a token. Verdicts go at once to
    OUT/_vsp/overrule.csv, and nothing else is written; running the same `vsp clean` again applies
    them. Ctrl-C ends it.
    """
    from pipeline.review.application import Application
    from pipeline.review.server import Server
    from pipeline.storage import open_store

    application = Application(open_store(out))
    with Server(application, port) as server:
        typer.echo(f"{server.url}\nCtrl-C ends the review.")
        if open_browser and _has_window_system():
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo()
    typer.echo(_farewell(application))
    return 0


def _has_window_system() -> bool:
    """Whether a browser would have a window: one in this terminal would take the terminal."""
    windows = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in windows)


def _farewell(application: "Application") -> str:
    """How many verdicts were given, and what applies them."""
    given, there = application.verdicts.num_changes, len(application.verdicts.current())
    written = f"{given} {'verdict' if given == 1 else 'verdicts'} written"
    if not there:
        return f"{written}; none stands, so there is nothing to apply"
    return (
        f"{written}, {there} in the file; to apply them, run the cleaning again with its "
        f"options:\n  {application.command()}"
    )
