"""The `vsp` program: one table of commands, each in a module of its own.

Only the module of the command that was asked for is imported, and it imports what is heavy inside
its function: `vsp --help` must not wait for torch.
"""

import atexit
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer
from typer.exceptions import TyperException

# Every `jobs.<name>` has a function `command`, whose docstring is the help, and an `EXAMPLE`; or,
# with subcommands, a typer `app`.
COMMANDS = {
    "demo": "Restore a few faces from start to end and draw a before/after picture.",
    "pack": "Put a folder tree, zip or list of images into shards.",
    "degrade": "Degrade clean faces in shards, by the paper's model or others' ranges.",
    "restore": "Restore faces: shards of aligned ones, or those in a folder of photos.",
    "score": "Score restored images, alone and against their truths.",
    "evaluate": "Compare methods: degrade, restore by each, score, report.",
    "report": "Make pages of an evaluation: tables, plots, galleries.",
    "clean": "Clean a data set of faces: score, deduplicate, gate, restore, verify, record.",
    "manifest": "Ask a cleaning run's manifest, export it, apply it to another copy of the set.",
    "review": "Look through what was cleaned and overrule it, in a local page.",
    "forget": "Remove an image, a source or a person, and everything derived from it.",
    "iterate": "Train, clean the training set, train again, and prove what that brought.",
    "status": "Tell how far a run is.",
    "verify": "Check that every record is accounted for, and every checksum.",
    "train": "Train one stage of the model, from shards of clean faces.",
    "weights": "List, add and verify weight files, known by their sha256.",
    "convert": "Turn published checkpoints into one bundle, and back.",
    "info": "Count a model's parameters and operations.",
}
EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 75


def make_app(chosen: str | None) -> typer.Typer:
    """Build the program with the command `chosen` in full and a line for each other."""
    app = typer.Typer(
        name="vsp",
        help="Blind face restoration: shards in, shards out, one row for every record.",
        epilog="Example: vsp restore faces/ restored/",
        rich_markup_mode="markdown",
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for name, line in COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(f"jobs.{name}")
            if hasattr(module, "app"):
                app.add_typer(module.app, name=name)
                continue
            app.command(name, epilog=f"Example: {module.EXAMPLE}")(module.command)
        else:
            app.command(name, help=line)(_not_chosen)
    return app


def _not_chosen() -> None:
    """Stand in the list of commands; it is never called."""
    raise AssertionError("only the chosen command runs")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `vsp`; a user's mistake is one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    code = _run(arguments or ["--help"])
    if argv is None:
        if code not in (EXIT_FAILED, EXIT_STOPPED):
            atexit._run_exitfuncs()  # nothing is at work: what was borrowed is given back
        leave_at_once(code)
    sys.exit(code)


def leave_at_once(code: int) -> NoReturn:
    """End the process with whatever its threads do.

    A run that failed or was stopped in this process leaves its worker at work, and a short command
    the threads of pyarrow; Python's own way out would pull the interpreter from under them, and one
    process in some dozens aborts then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(arguments: list[str]) -> int:
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    try:
        code = make_app(chosen)(arguments, prog_name="vsp", standalone_mode=False)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        program = context.command_path if context else "vsp"
        return _complain(f"{error.format_message()} (see `{program} --help`)", EXIT_USAGE)
    except typer.Abort:
        return EXIT_FAILED
    except Exception as error:
        return _told(error)
    return code if isinstance(code, int) else 0


def _told(error: Exception) -> int:
    """Tell an error that is not a bug in one line; raise any other again."""
    from pipeline.errors import RunError, UserError
    from vsp_model.files import CheckpointError

    if isinstance(error, UserError | CheckpointError):
        return _complain(str(error), EXIT_USAGE)
    if isinstance(error, RunError):
        return _complain(str(error), EXIT_FAILED)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror}", EXIT_FAILED)
    raise error


def _complain(message: str, code: int) -> int:
    typer.echo(f"vsp: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
