"""`vsp manifest apply` put together: the manifest, the weights it names, and the run."""

import hashlib
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from pipeline.cleaning.manifest.apply import Applied, Known, Weights
    from pipeline.plan import Unit
    from pipeline.storage import Store


def apply(
    manifest: str, source: str, out: str, model: str | None, device: str, workers: int, *,
    dry_run: bool,
) -> int:  # fmt: skip
    """Clean a copy of a set; returns the exit code.

    Raises:
        UserError: If the manifest, the weights or the folders do not fit.
        RunError: If the run cannot go on.
    """
    from jobs.cleaning import CleanRequest, run_decided
    from jobs.running import RunFlags
    from pipeline.cleaning.manifest import apply as applying
    from pipeline.cleaning.manifest.read import read_any
    from pipeline.plan import check_apart, find_shards, shard_units
    from pipeline.storage import open_store

    table = read_any(manifest, applying.COLUMNS)
    known = applying.Known(table)
    weights = known.weights()
    if weights is not None:
        _check_weights(weights, model)
    sources = find_shards(source)
    check_apart(sources, out, source)
    if dry_run:
        typer.echo(f"{len(known)} images known by {manifest}; {len(sources)} shards -> {out}")
        return 0
    store = open_store(out)
    applied = _write(store, table, known, shard_units(sources))
    shape = _shape(manifest)
    request = CleanRequest(
        source, out, model=model, seed=weights.seed if weights else 0, calibrate=False,
        device=device, batch_size=shape.get("batch_size"), threads=shape.get("threads"),
    )  # fmt: skip
    summary = run_decided(request, RunFlags(workers=workers))
    _tell(store, applied)
    return summary.exit_code


def _write(store: "Store", table: "pa.Table", known: "Known", units: "Sequence[Unit]") -> "Applied":
    """Make OUT this manifest's and write the tables; no run may be at work there."""
    from pipeline.cleaning.manifest import apply as applying
    from pipeline.cleaning.removal.forget import finish_pending
    from pipeline.locks import run_lock
    from pipeline.plan import make_out
    from pipeline.storage import LocalStore

    if isinstance(store, LocalStore):
        make_out(store.root)
    with run_lock(store):
        applying.claim(store, _digest(table))
        finish_pending(store)
        return applying.write_tables(store, units, known)


def _digest(table: "pa.Table") -> str:
    """What identifies a manifest, however it was cut into files."""
    digest = hashlib.sha256()
    for name in ("sha256", "outcome", "sha256_out"):
        for value in table[name].to_pylist():
            digest.update(f"{value}\n".encode())
    return digest.hexdigest()


def _check_weights(wanted: "Weights", model: str | None) -> None:
    """Refuse other weights than those that the manifest names.

    Raises:
        UserError: One line.
    """
    from pydantic import TypeAdapter

    from jobs.models import model_values
    from pipeline.errors import UserError
    from pipeline.replica import ModelSpec

    adapter: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)
    given = adapter.validate_python(model_values(model))
    if given.sha256 != wanted.sha256:
        raise UserError(
            f"the manifest's faces were restored with {wanted.model} "
            f"(sha256 {wanted.sha256[:16]}), {given.name} is {given.sha256[:16]}; "
            "give the right weights with --model"
        )


def _shape(manifest: str) -> dict[str, int]:
    """Batch and threads that decided the last bits, if the OUT of the manifest is at hand."""
    from pipeline.cleaning.manifest.read import SUFFIX, find
    from pipeline.ledger import Ledger

    if manifest.endswith(SUFFIX):
        return {}
    plan = Ledger(find(manifest)).plan()
    settings = plan.settings if plan else {}
    return {name: settings[name] for name in ("batch_size", "threads") if name in settings}


def _tell(store: "Store", applied: "Applied") -> None:
    """What became of the copy."""
    from pipeline.cleaning.manifest.apply import compare

    for word, count in sorted(applied.counts.items()):
        typer.echo(f"{word:<10} {count}")
    same, other = compare(store, applied)
    if same or other:
        typer.echo(f"restored again: {same} with the manifest's bytes, {other} with others")
    if other:
        typer.echo(
            "other bytes: another device, batch, thread count or torch sums in another order",
            err=True,
        )
