"""`vsp pack`: a folder tree, zip or list of images -> shards with a manifest of checksums."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.gather import PackPlan
    from pipeline.pack import Packed, PackProgress

EXAMPLE = "vsp pack photos/ shards/ --per-shard 500"
EXIT_SOME_BAD = 3
NUM_TOLD = 10  # reasons on the screen; all of them stand in the manifest
EVERY_S = {True: 0.2, False: 10.0}  # a terminal's line is drawn anew, a log's is kept


def command(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder tree, .zip, or list (.txt, .csv, .jsonl).")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder for the shards.")],
    per_shard: Annotated[int, typer.Option("--per-shard", min=1, help="Records per shard.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Tell the result as JSON.")] = False,
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Say what would be packed, and stop.")
    ] = False,
) -> int:
    """Put images into shards, with bytes that depend on names and contents alone.

    A record's key is the image's path without its suffix; dots in a name are spelled %2E, because
    a dot ends the key. Beside an image, files of its name with .json, .txt or .cls go into its
    record. In a list, paths are relative to the list; other columns of a .csv or .jsonl than
    `path` become KEY.json.

    OUT/manifest.json holds the sha256 of every shard and what was left out, with reasons. Run the
    same command again to finish what is missing.

    Exit code: 0 all packed, 3 some left out, 1 failed, 2 wrong usage.
    """
    from pipeline.gather import plan_pack
    from pipeline.pack import check_out, pack

    plan = plan_pack(source)
    if dry_run:
        check_out(plan, out, per_shard)
        _tell(
            _planned(plan, per_shard), f"would pack {_counted(plan, per_shard)} -> {out}", as_json
        )
        _tell_left_out(plan.left_out)
        return EXIT_SOME_BAD if plan.left_out else 0
    start_s = time.monotonic()
    with _progress() as tell:
        packed = pack(plan, out, per_shard, tell)
    seconds = time.monotonic() - start_s
    _tell_left_out(packed.left_out)
    _tell(_result(packed, out, seconds), _told(plan, packed, per_shard, out, seconds), as_json)
    return EXIT_SOME_BAD if packed.left_out else 0


def _counted(plan: "PackPlan", per_shard: int) -> str:
    num_shards = -(-len(plan.records) // per_shard)
    ignored = sum(plan.ignored.values())
    text = f"{len(plan.records)} images in {num_shards} shards"
    text += f", {ignored} other files left out" if ignored else ""
    return text + (f", {len(plan.left_out)} images or their files refused" if plan.left_out else "")


def _planned(plan: "PackPlan", per_shard: int) -> dict[str, Any]:
    return {
        "num_records": len(plan.records),
        "num_shards": -(-len(plan.records) // per_shard),
        "num_bytes": plan.num_bytes,
        "left_out": [{"name": row.name, "reason": row.reason} for row in plan.left_out],
        "ignored": dict(plan.ignored),
    }


def _result(packed: "Packed", out: Path, seconds: float) -> dict[str, Any]:
    from pipeline.pack import MANIFEST

    return {
        "num_records": packed.num_records,
        "num_shards": packed.progress.num_shards,
        "num_shards_skipped": packed.progress.num_skipped,
        "num_bytes_read": packed.progress.num_bytes,
        "left_out": [{"name": row.name, "reason": row.reason} for row in packed.left_out],
        "manifest": str(out / MANIFEST),
        "seconds": round(seconds, 3),
    }


def _told(plan: "PackPlan", packed: "Packed", per_shard: int, out: Path, seconds: float) -> str:
    from pipeline.pack import MANIFEST

    if packed.progress.num_skipped == packed.progress.num_shards:
        return f"nothing to do: {_counted(plan, per_shard)} are packed already -> {out}"
    skipped = packed.progress.num_skipped
    earlier = f" ({skipped} shards from an earlier run)" if skipped else ""
    rate = packed.progress.num_bytes / 1e6 / max(seconds, 1e-3)
    what = f"{_counted(plan, per_shard)}{earlier} in {seconds:.1f} s, {rate:.0f} MB/s"
    return f"packed {what} -> {out}, checksums in {out / MANIFEST}"


def _tell(values: Mapping[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(values, indent=1) if as_json else text)


def _tell_left_out(rows: Any) -> None:
    for row in rows[:NUM_TOLD]:
        typer.echo(f"left out {row.name}: {row.reason}", err=True)
    if len(rows) > NUM_TOLD:
        typer.echo(f"left out {len(rows) - NUM_TOLD} more; see the manifest", err=True)


@contextmanager
def _progress() -> Iterator[Callable[["PackProgress"], None]]:
    """Yields a function that shows progress on stderr: one line drawn anew, or lines in a log."""
    is_terminal = sys.stderr.isatty()
    start_s = last_s = time.monotonic()

    def tell(progress: "PackProgress") -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s < EVERY_S[is_terminal]:
            return
        last_s = now_s
        rate = progress.num_bytes / 1e6 / (now_s - start_s)
        text = (
            f"{progress.num_done}/{progress.num_shards} shards, {progress.num_records} records, "
            f"{rate:.0f} MB/s"
        )
        typer.echo(f"\r\x1b[K{text}" if is_terminal else text, err=True, nl=not is_terminal)

    yield tell
    if is_terminal and last_s > start_s:
        typer.echo("\r\x1b[K", err=True, nl=False)
