"""`vsp pack`: a folder tree of images -> shards with a manifest of checksums."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "vsp pack photos/ shards/ --per-shard 500"


def command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder tree of JPEG and PNG.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder for the shards.")],
    per_shard: Annotated[int, typer.Option("--per-shard", min=1, help="Records per shard.")] = 1000,
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Say what would be packed, and stop.")
    ] = False,
) -> None:
    """Put a folder tree of images into shards, sorted, with bytes that depend on the input alone.

    A record's key is the image's path without its suffix; dots in a name are spelled %2E, because
    a dot ends the key. OUT/manifest.json holds the sha256 of every shard.
    """
    from pipeline.pack import MANIFEST, pack, plan_pack

    plan = plan_pack(source)
    left = f", {plan.num_left_out} other files left out" if plan.num_left_out else ""
    num_shards = -(-len(plan.images) // per_shard)
    what = f"{len(plan.images)} images in {num_shards} shards{left}"
    if dry_run:
        typer.echo(f"would pack {what} -> {out}")
        return
    pack(plan, out, per_shard)
    typer.echo(f"packed {what} -> {out}, checksums in {out / MANIFEST}")
