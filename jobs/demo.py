"""`vsp demo`: the whole path on a few faces: a photo, and shards; degrade, restore, look."""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jobs.running import Job
    from pipeline.images import Format, Pixels
    from pipeline.replica import ReplicaConfig

EXAMPLE = "vsp demo --faces my-faces/ --out demo/"
MARK = ".vsp-demo"  # a folder that holds this file was made here and may be made anew
NUM_PORTRAITS = 4
MAX_ROWS = 8
SEED = 0
PHOTO_PX, PHOTO_DETAIL_PX, PHOTO_QUALITY = 320, 160, 75  # a poor photo: twice enlarged, small file


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
    """Degrade a few faces, pack and restore them, restore a photo, and draw a picture."""
    from jobs.models import model_size, model_values, tell_terms
    from jobs.running import RunFlags, run_job
    from pipeline.gather import plan_pack
    from pipeline.pack import pack
    from pipeline.replica import ReplicaConfig

    lq, shards, restored = out / "lq", out / "shards", out / "restored"
    picture = out / "before-after.png"
    if dry_run:
        typer.echo(f"would make {lq}, {shards}, {restored}, {out / 'photos'} and {picture}")
        return 0
    replica = ReplicaConfig.model_validate({"model": model_values(None), "seed": SEED})
    tell_terms(replica.model)
    size = model_size(replica.model)
    originals = read_faces(faces, size) if faces else portraits(size)
    prepare(out)
    write_degraded(originals, lq, size)
    tars = pack(plan_pack(lq), shards, records_per_shard=100).tars
    summary = run_job(shards_job(replica, tars, restored), RunFlags(pool="ray"))
    assert summary
    write_photo(out / "photos")
    run_job(photo_job(replica, out / "photos", out / "photos-restored"), RunFlags())
    draw(originals, lq, restored, picture)
    typer.echo(f"shards: {shards}/*.tar, restored: {restored}/*.tar")
    typer.echo(f"sidecars, a row for every record: {restored}/*.parquet")
    typer.echo(f"a photo, restored: {out / 'photos-restored'}")
    typer.echo(f"picture (degraded, restored, original): {picture}")
    return summary.exit_code


def shards_job(replica: "ReplicaConfig", tars: "Sequence[Path]", out: Path) -> "Job":
    """Restoring the packed faces."""
    from jobs.running import Job
    from pipeline.plan import shard_units
    from pipeline.stages.restore import RestoreConfig, RestoreStage

    config = RestoreConfig.model_validate(replica.model_dump())
    units = shard_units([str(tar) for tar in tars])
    return Job("restore", partial(RestoreStage, config), config.provenance, units, str(out))


def photo_job(replica: "ReplicaConfig", folder: Path, out: Path) -> "Job":
    """Restoring the faces in a folder of photos."""
    from jobs.running import Job
    from pipeline.plan import find_photos, photo_units
    from pipeline.sample import IMAGE_SUFFIXES
    from pipeline.stages.photos import PhotosConfig, PhotosStage

    config = PhotosConfig.model_validate(replica.model_dump() | {"compare": True})
    units = photo_units(folder, find_photos(folder, IMAGE_SUFFIXES), per_chunk=8)
    return Job("restore", partial(PhotosStage, config), config.provenance, units, str(out))


def write_photo(folder: Path) -> None:
    """Write the portrait as the photo of a poor camera."""
    import cv2
    import skimage.data

    small, large = (PHOTO_DETAIL_PX, PHOTO_DETAIL_PX), (PHOTO_PX, PHOTO_PX)
    photo = cv2.resize(skimage.data.astronaut(), small, interpolation=cv2.INTER_AREA)
    photo = cv2.resize(photo, large, interpolation=cv2.INTER_LINEAR)
    quality = [cv2.IMWRITE_JPEG_QUALITY, PHOTO_QUALITY]
    _, data = cv2.imencode(".jpg", photo[:, :, ::-1], quality)
    folder.mkdir(parents=True)
    (folder / "portrait.jpg").write_bytes(data.tobytes())


def portraits(size: int) -> dict[str, "tuple[Format, Pixels]"]:
    """The portrait's face, aligned, under several names: each name draws its own degradation."""
    import skimage.data

    from pipeline.faces.align import align
    from pipeline.faces.detect import DetectConfig, FaceDetector

    photo = skimage.data.astronaut()
    detection = FaceDetector(DetectConfig()).find(photo)[0]
    face = align(photo, detection.points, size)
    return {f"portrait-{number}.png": ("png", face) for number in range(NUM_PORTRAITS)}


def read_faces(folder: Path, size: int) -> dict[str, "tuple[Format, Pixels]"]:
    """Every image below a folder at the model's size, by path; what cannot be read is named."""
    from pipeline import images
    from pipeline.errors import UserError
    from pipeline.plan import find_photos
    from pipeline.sample import IMAGE_SUFFIXES

    found: dict[str, tuple[Format, Pixels]] = {}
    for name in find_photos(folder, IMAGE_SUFFIXES):
        try:
            header, pixels = images.decode((folder / name).read_bytes())
        except images.ImageFault as fault:
            typer.echo(f"left out {folder / name}: {fault}", err=True)
            continue
        found[name] = (header.format, images.resize(pixels, size))
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
    from pipeline.gather import plan_pack
    from pipeline.shards import read_shard

    shown = plan_pack(lq).images[:MAX_ROWS]
    wanted = {name for name, _ in shown}
    after = {
        member.name: images.decode(member.data)[1]
        for tar in sorted(restored.glob("*.tar"))
        for sample in read_shard(str(tar))
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
