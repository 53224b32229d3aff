"""`vsp demo`: the whole path on a few faces: degrade, pack, restore, look."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.images import Format, Pixels

EXAMPLE = "vsp demo --faces my-faces/ --out demo/"
MARK = ".vsp-demo"  # a folder that holds this file was made here and may be made anew
# The portrait of Eileen Collins (NASA, public domain) that ships with scikit-image: eyes, nose and
# mouth corners as (x, y) in its 512 x 512 pixels, measured by hand.
PORTRAIT_POINTS = [(203.3, 100.7), (246.7, 102.7), (226.5, 127.0), (205.0, 140.5), (243.5, 141.5)]
NUM_PORTRAITS = 4
MAX_ROWS = 8
SEED = 0


def command(
    faces: Annotated[
        Path | None,
        typer.Option(help="Folder of aligned faces; scikit-image's portrait by default."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Say what would be made, and stop.")
    ] = False,
) -> int:
    """Degrade a few faces, pack them, restore them through one Ray actor and draw a picture."""
    from jobs.config import load_model_config
    from jobs.models import DEFAULT_MODEL
    from jobs.restore import restore
    from pipeline.pack import pack, plan_pack
    from pipeline.plan import make_plan
    from pipeline.stages.restore import RestoreConfig, Untrained

    lq, shards, restored = out / "lq", out / "shards", out / "restored"
    picture = out / "before-after.png"
    if dry_run:
        typer.echo(f"would make {lq}, {shards}, {restored} and {picture}")
        return 0
    model = Untrained(path=DEFAULT_MODEL, config=load_model_config(DEFAULT_MODEL))
    config = RestoreConfig(model=model, seed=SEED)  # so small a model gains nothing by threads
    size = model.config.size
    originals = read_faces(faces, size) if faces else portraits(size)
    prepare(out)
    write_degraded(originals, lq, size)
    tars = pack(plan_pack(lq), shards, records_per_shard=100)
    summary = restore(make_plan(tars, restored, config.provenance.config), restored, config, "ray")
    draw(originals, lq, restored, picture)
    typer.echo(f"shards: {shards}/*.tar, restored: {restored}/*.tar")
    typer.echo(f"sidecars, a row for every record: {restored}/*.parquet")
    typer.echo(f"picture (degraded, restored, original): {picture}")
    return summary.exit_code


def portraits(size: int) -> dict[str, "tuple[Format, Pixels]"]:
    """The aligned portrait under several names: each name draws its own degradation."""
    import skimage.data

    from pipeline.faces.align import align

    face = align(skimage.data.astronaut(), PORTRAIT_POINTS, size)
    return {f"portrait-{number}.png": ("png", face) for number in range(NUM_PORTRAITS)}


def read_faces(folder: Path, size: int) -> dict[str, "tuple[Format, Pixels]"]:
    """Every image below a folder at the model's size, by path; what cannot be read is named."""
    from pipeline import images
    from pipeline.errors import UserError
    from pipeline.pack import plan_pack

    found: dict[str, tuple[Format, Pixels]] = {}
    for _, path in plan_pack(folder).images:
        try:
            header, pixels = images.decode(path.read_bytes())
        except images.ImageFault as fault:
            typer.echo(f"left out {path}: {fault}", err=True)
            continue
        found[path.relative_to(folder).as_posix()] = (header.format, images.resize(pixels, size))
    if not found:
        raise UserError(f"{folder}: no image that can be read; give a folder of faces")
    return found


def prepare(out: Path) -> None:
    """Make the demo's folder empty; a folder that the demo did not make is left alone."""
    from pipeline.errors import UserError
    from pipeline.plan import make_out

    if out.exists():
        if not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: not made by the demo; choose another --out")
        shutil.rmtree(out)
    make_out(out)
    (out / MARK).touch()


def write_degraded(
    originals: "Mapping[str, tuple[Format, Pixels]]", folder: Path, size: int
) -> None:
    """Write every face degraded, under its own name and in its own format."""
    from pipeline import images
    from pipeline.degradation import degrade

    for name, (format, face) in originals.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode(degrade(face, name, SEED, size), format))


def draw(
    originals: "Mapping[str, tuple[Format, Pixels]]", lq: Path, restored: Path, picture: Path
) -> None:
    """Draw a row of degraded, restored and original for each of the first few faces."""
    from pipeline import images
    from pipeline.compare import side_by_side
    from pipeline.pack import plan_pack
    from pipeline.shards import read_shard

    shown = plan_pack(lq).images[:MAX_ROWS]
    wanted = {name for name, _ in shown}
    after = {
        member.name: images.decode(member.data)[1]
        for tar in sorted(restored.glob("*.tar"))
        for sample in read_shard(tar)
        for member in sample.members
        if member.name in wanted
    }
    rows = [
        (
            images.decode(path.read_bytes())[1],
            after[name],
            originals[path.relative_to(lq).as_posix()][1],
        )
        for name, path in shown
        if name in after
    ]
    if rows:
        picture.write_bytes(images.encode(side_by_side(rows), "png"))
