"""`vsp restore`: faces in shards, or in photos, restored; with a record of every image."""

import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.models import (
    asked_model,
    check_wishes,
    default_batch_size,
    default_codec_threads,
    default_workers,
    num_cores,
    pick_device,
    tell_terms,
    wishes,
)
from jobs.options import (
    AsJson,
    BatchSize,
    Device,
    DryRun,
    Estimate,
    Fidelity,
    GpusPerWorker,
    Guidance,
    ModelName,
    OnlyFailed,
    Patience,
    Pool,
    Quality,
    Quarantine,
    RayAddress,
    Replicas,
    Restart,
    Steps,
)

if TYPE_CHECKING:
    from jobs.running import Job

EXAMPLE = "vsp restore 'shards/{000000..000011}.tar' restored/ --seed 1"
PHOTOS_PER_CHUNK = 8


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Shards (a tar, a folder or pattern, s3://...), a folder of photos, or one.",
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the output.")],
    model: ModelName = None,
    quality: Quality = None,
    guidance: Guidance = 1.0,
    fidelity: Fidelity = None,
    steps: Steps = None,
    estimate: Estimate = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything random.")] = 0,
    blend: Annotated[
        float, typer.Option(min=0, max=1, help="1 the restored face, 0 the input's.")
    ] = 1.0,
    keep_size: Annotated[
        bool, typer.Option("--keep-size", help="Shards: give faces back at the input's size.")
    ] = False,
    photos: Annotated[
        bool, typer.Option("--photos", help="Find the faces, whatever IN looks like.")
    ] = False,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="Photos are aligned faces: no detection.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Photos: restore faces larger than the model, too.")
    ] = False,
    faces: Annotated[
        str, typer.Option(help="Photos: all, largest, center, or numbers as 0,2, left to right.")
    ] = "all",
    min_face: Annotated[
        float, typer.Option(min=1, help="Photos: leave faces whose box is smaller, in pixels.")
    ] = 20.0,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Photos: least confidence of the detector.")
    ] = 0.7,
    max_faces: Annotated[
        int | None, typer.Option(min=1, help="Photos: restore at most N faces, the largest first.")
    ] = None,
    detector: Annotated[
        str, typer.Option(help="Photos: yunet, or the path of facexlib RetinaFace weights.")
    ] = "yunet",
    compare: Annotated[
        bool, typer.Option("--compare", help="Also write before/after pictures.")
    ] = False,
    quarantine: Quarantine = False,
    limit: Annotated[int, typer.Option(min=0, help="Only the first N images; 0 for all.")] = 0,
    only_failed: OnlyFailed = False,
    restart: Restart = False,
    device: Device = "auto",
    batch_size: BatchSize = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Torch threads of a worker; all cores by default.")
    ] = None,
    codec_threads: Annotated[
        int | None,
        typer.Option(min=1, max=24, help="Threads of a worker that decode and encode."),
    ] = None,
    workers: Replicas = None,
    pool: Pool = "auto",
    ray_address: RayAddress = "",
    gpus_per_worker: GpusPerWorker = 1.0,
    patience: Patience = 600.0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, as noise=mean."),
    ] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> int:
    """Restore faces: shards of aligned ones, or the faces in a folder of photos.

    Shards: every OUT/NAME.tar gets a NAME.parquet with one row per input record. Photos: the same
    tree and names, rows in OUT/_vsp/records. A bad image costs its own row. Run the same command
    again to finish what is missing; see `vsp status OUT` and `vsp verify OUT`.

    Exit code: 0 all restored or kept as asked, 3 done, but some records refused or failed, 1 the
    run failed, 2 wrong usage, 75 stopped by a signal: run it again to go on.
    """
    from jobs.running import RunFlags, existing_settings, run_job

    there = {} if restart else existing_settings(out)
    device = pick_device(device, elsewhere=bool(ray_address))
    workers = workers or default_workers(device, gpus_per_worker)
    values: dict[str, Any] = {
        "model": asked_model(model, wishes(quality, guidance, fidelity, steps), estimate),
        "seed": seed,
        "blend": blend,
        "quarantine": quarantine,
        "limit": limit,
        # What decides the last bits stays as the run was begun, unless it is asked for otherwise.
        "batch_size": batch_size or there.get("batch_size") or default_batch_size(device),
        "threads": threads or there.get("threads") or max(1, num_cores() // workers),
        "runtime": {"device": device},
    }
    if photos or aligned or is_photos(source):
        values |= {"force": force, "compare": compare, "aligned": aligned}
        values["detect"] = detect_values(detector, faces, min_face, min_score, max_faces)
        job = photos_job(source, out, values, overrides or ())
    else:
        values |= {"keep_size": keep_size}
        job = shards_job(source, out, values, overrides or ())
    flags = RunFlags(
        pool=pool,
        workers=workers,
        ray_address=ray_address,
        gpus_per_worker=gpus_per_worker if device.startswith("cuda") else 0.0,
        threads=values["threads"],
        codec_threads=codec_threads or default_codec_threads(device),
        patience_s=patience,
        restart=restart,
        only_failed=only_failed,
        dry_run=dry_run,
        as_json=as_json,
    )
    summary = run_job(job, flags)
    return summary.exit_code if summary else 0


def shards_job(source: str, out: str, values: dict[str, Any], overrides: Sequence[str]) -> "Job":
    """Restoring shards of aligned faces.

    Raises:
        UserError: If a setting is wrong or no shard is found.
    """
    from jobs import config as configs
    from jobs.running import Job, versions
    from pipeline.plan import find_shards, limited, shard_units
    from pipeline.stages.restore import RestoreConfig, RestoreStage

    config = configs.resolve(values, RestoreConfig, overrides)
    check_wishes(config.model)
    tell_terms(config.model)
    units = limited(shard_units(find_shards(source)), config.limit)
    root = source if Path(source).is_dir() else None
    stage = partial(RestoreStage, config)
    return Job("restore", stage, config.provenance, units, out, root, versions())


def photos_job(source: str, out: str, values: dict[str, Any], overrides: Sequence[str]) -> "Job":
    """Restoring the faces in photos.

    Raises:
        UserError: If a setting is wrong or no photo is found.
    """
    from jobs import config as configs
    from jobs.running import Job, versions
    from pipeline.plan import find_photos, photo_units
    from pipeline.sample import IMAGE_SUFFIXES
    from pipeline.stages.photos import PhotosConfig, PhotosStage

    path = Path(source)
    root = path if path.is_dir() else path.parent
    files = find_photos(path, IMAGE_SUFFIXES) if path.is_dir() else (path.name,)
    config = configs.resolve(values, PhotosConfig, overrides)
    check_wishes(config.model)
    tell_terms(config.model)
    units = photo_units(root, files[: config.limit or None], PHOTOS_PER_CHUNK)
    stage = partial(PhotosStage, config)
    outer = source if path.is_dir() else None
    return Job("restore", stage, config.provenance, units, out, outer, versions())


def detect_values(
    detector: str, faces: str, min_face: float, min_score: float, max_faces: int | None
) -> dict[str, Any]:
    """How faces are found, as the settings want it.

    Raises:
        UserError: If `faces` is no choice, or the detector's file is missing.
    """
    from pipeline.errors import UserError
    from vsp_model.files import sha256_of

    values: dict[str, Any] = {"min_face_px": min_face, "min_score": min_score,
                              "max_faces": max_faces, "which": faces}  # fmt: skip
    if faces not in ("all", "largest", "center"):
        numbers = faces.split(",")
        if not all(number.strip().isdigit() for number in numbers):
            raise UserError(f"--faces {faces}: use all, largest, center, or numbers as 0,2")
        values["which"] = [int(number) for number in numbers]
    if detector != "yunet":
        if not Path(detector).is_file():
            raise UserError(f"--detector {detector}: no such file; give RetinaFace weights")
        digest = sha256_of(detector)
        values |= {"detector": "retinaface", "weights": detector, "sha256": digest}
    return values


def is_photos(source: str) -> bool:
    """Whether IN is a photo or a folder with no shard in it.

    Raises:
        UserError: If it is a path that does not exist.
    """
    from pipeline.errors import UserError
    from pipeline.sample import IMAGE_SUFFIXES
    from pipeline.storage import is_remote

    if is_remote(source) or source.endswith(".tar") or any(c in source for c in "*?{["):
        return False
    path = Path(source)
    if not path.exists():
        raise UserError(f"{source}: no such file or folder{near(path)}")
    if path.is_dir():
        return not any(path.glob("*.tar"))
    if path.suffix[1:].lower() not in IMAGE_SUFFIXES:
        wanted = ", ".join(f".{suffix}" for suffix in ("tar", *IMAGE_SUFFIXES))
        raise UserError(f"{source}: neither shard nor photo (known: {wanted})")
    return True


def near(path: Path) -> str:
    """A hint at what a mistyped path may have meant."""
    there = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
