"""`vsp forget`: remove images and all that was made of them from a cleaning run's OUT."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import DryRun

if TYPE_CHECKING:
    from pipeline.cleaning.removal.chosen import Chosen, Image, Request
    from pipeline.cleaning.removal.scan import Report
    from pipeline.storage import Store

EXAMPLE = "vsp forget cleaned/ --person 'Jane Doe'"
EXIT_FAILED = 1
MAX_LINES = 20


def command(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of `vsp clean`.")],
    key: Annotated[str, typer.Option(help="The image of this key.")] = "",
    shard: Annotated[str, typer.Option(help="The shard that --key is meant in.")] = "",
    source: Annotated[
        str, typer.Option(help="All images from there; with a / at its end all below it.")
    ] = "",
    person: Annotated[
        str, typer.Option(help="All images of a person, or of an identity cluster: group:17.")
    ] = "",
    copies: Annotated[
        bool, typer.Option("--copies", help="Near copies of these images go along.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
) -> int:
    """Remove images and everything derived from them: shards, tables, embeddings, verdicts, notes.

    Exact copies go along. A keyed hash of each image stays, so that `vsp verify` can count it and
    the next `vsp clean` passes it over. Then every file of OUT is read and looked through. IN is
    never touched, and trained weights still know what they were trained on.

    Exit code: 0 nothing is left, 1 something is (named), 2 nothing fits.
    """
    from pipeline.cleaning.removal.chosen import Request, choose
    from pipeline.cleaning.removal.forget import is_pending
    from pipeline.locks import run_lock
    from pipeline.storage import open_store

    store = _cleaned(out)
    request = _checked(Request(key, shard, source, person, copies))
    if dry_run:
        if is_pending(store):
            typer.echo("a removal was interrupted; the next run ends it first", err=True)
        _tell(store, request, choose(store, request))
        return 0
    with run_lock(store):
        return _forget(open_store(out), request, ask=not yes)


def _cleaned(out: str) -> "Store":
    """The OUT of a cleaning run.

    Raises:
        UserError: If it is none.
    """
    from pipeline.cleaning.manifest.apply import APPLIED
    from pipeline.cleaning.tables import INSPECT
    from pipeline.errors import UserError
    from pipeline.ledger import Ledger
    from pipeline.storage import open_store

    store = open_store(out)
    plan = Ledger(store).plan()
    begun = Ledger(open_store(f"{out.rstrip('/')}/{INSPECT}")).plan()
    has_begun = plan or begun or store.stat(APPLIED)
    if not has_begun or (plan is not None and plan.job != "clean"):
        raise UserError(f"{out}: no run of `vsp clean` has begun here; give its OUT")
    return store


def _checked(request: "Request") -> "Request":
    from pipeline.errors import UserError

    if sum(map(bool, (request.key, request.source, request.person))) != 1:
        raise UserError("say what is to go: exactly one of --key, --source, --person")
    if request.shard and not request.key:
        raise UserError("--shard: goes with --key only")
    return request


def _forget(store: "Store", request: "Request", *, ask: bool) -> int:
    """Choose, ask, remove, prove; the lock is held."""
    from pipeline.cleaning.removal import forget as forgetting
    from pipeline.cleaning.removal.chosen import choose, plain_of, removal_of
    from pipeline.cleaning.removal.tombstones import Tombstones

    pending = forgetting.finish_pending(store)
    if pending is not None:
        typer.echo("ended a removal that was interrupted", err=True)
        if _show(pending):
            return EXIT_FAILED
    chosen = choose(store, request)
    _tell(store, request, chosen)
    if ask:
        _confirm(len(chosen.images))
    stones = Tombstones.load(store)
    plain = plain_of(store, chosen)
    removal = removal_of(store, chosen, plain, stones)
    report = forgetting.forget(store, removal, stones, plain)
    num_stones = len(Tombstones.load(store))
    typer.echo(f"forgotten: {_images(len(chosen.images))}; tombstones in OUT: {num_stones}")
    return _show(report)


def _confirm(num_images: int) -> None:
    """Ask on a terminal; without one the user must have said yes.

    Raises:
        UserError: If nobody can be asked.
        Abort: If the answer is no.
    """
    from pipeline.errors import UserError

    if not sys.stdin.isatty():
        raise UserError("nobody to ask here; look at it with --dry-run, then say --yes")
    typer.confirm(f"Remove {_images(num_images)} for good?", abort=True)


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def _tell(store: "Store", request: "Request", chosen: "Chosen") -> None:
    """What goes, what stays, and what nobody but the user can remove."""
    exact = set(chosen.exact)
    typer.echo(f"{_images(len(chosen.images))} of {store.url}, and what was made of them:")
    _list([f"{image.name}{' (the same bytes)' if image in exact else ''}"
           for image in chosen.images])  # fmt: skip
    if chosen.near:
        typer.echo(f"{_images(len(chosen.near))} like them: stay, unless you give --copies:")
        _list([image.name for image in chosen.near])
    typer.echo("the originals are not touched; remove them yourself:")
    _list(list(_originals(store, chosen.images)))
    for line in _weights(store):
        typer.echo(line)


def _list(lines: list[str]) -> None:
    from pipeline.report.escape import plain

    for line in lines[:MAX_LINES]:
        typer.echo(f"    {plain(line)}")
    if len(lines) > MAX_LINES:
        typer.echo(f"    and {len(lines) - MAX_LINES} more")


def _originals(store: "Store", images: "tuple[Image, ...]") -> Iterator[str]:
    """Where the images lie in IN, as the plans name it."""
    from pipeline.cleaning.tables import ALIGNED, INSPECT
    from pipeline.ledger import Ledger
    from pipeline.storage import open_store

    url = store.url.rstrip("/")
    cut, seen = (Ledger(open_store(f"{url}/{folder}")).plan() for folder in (ALIGNED, INSPECT))
    plan = cut or seen or Ledger(store).plan()
    places = {unit.shard: unit.source for unit in plan.units} if plan else {}
    for image in images:
        key = image.key.rpartition("_")[0] if cut else image.key  # crops are KEY_NUMBER
        yield f"{places.get(image.shard, f'{image.shard}.tar')}: {key}"


def _weights(store: "Store") -> Iterator[str]:
    """Weights that may know the images: nothing can be taken out of them."""
    from pipeline.cleaning.manifest.read import read_manifest

    found: set[tuple[str, str]] = set()
    for text in set(read_manifest(store, ["operations"])["operations"].to_pylist()):
        found |= {
            (str(each.get("model", "")), str(each["model_sha256"]))
            for each in json.loads(text)
            if each.get("model_sha256")
        }
    for name, digest in sorted(found):
        typer.echo(f"restored with {name} (sha256 {digest[:16]}), which stays as it is")
    typer.echo("not forgotten: weights that were trained on this set, here or elsewhere, still "
               "know the images; train them anew without")  # fmt: skip
    loop = Path(store.url).resolve().parent.parent
    if "://" not in store.url and (loop / "_steps").is_dir():
        trained = sorted(loop.glob("**/*.safetensors"))
        yield f"`vsp iterate` trained on it in {loop}: {len(trained)} files of weights"
        yield from (f"    {path}" for path in trained[:MAX_LINES])


def _show(report: "Report") -> int:
    """Tell what the proof read and found; returns the exit code."""
    for line in report.remains:
        typer.echo(f"vsp: {line}", err=True)
    state = f"{len(report.remains)} still know of it" if report.remains else "none knows of it"
    typer.echo(
        f"looked through {report.num_files} files ({report.num_bytes / 1e6:.1f} MB): {state}"
    )
    return EXIT_FAILED if report.remains else 0
