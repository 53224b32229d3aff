"""The data of a benchmark: the names in it, images made into shards, and what a set is."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from pipeline import images
from pipeline.errors import UserError
from pipeline.gather import PackPlan, plan_pack, unspelled
from pipeline.images import Pixels
from pipeline.pack import pack
from pipeline.plan import find_shards
from pipeline.replica import canonical
from pipeline.sample import IMAGE_SUFFIXES, split_name
from pipeline.scoring.sources import Found, read_place
from pipeline.stages.degrade import DegradeConfig
from pipeline.storage import Store, is_remote, open_input
from pipeline.tar import TarFault, walk_tar
from vsp_model.files import whole_or_absent

RECORDS_PER_SHARD = 250
NUM_PORTRAITS = 4
_SUFFIXES = {"jpeg": "jpg", "tiff": "tif"}
_REVISION_DIGITS = 16


def is_folder_of_images(source: str) -> bool:
    """Whether a source has to be packed before it can go through the engine."""
    path = Path(source)
    return not is_remote(source) and path.is_dir() and not any(path.glob("*.tar"))


def keys_of(source: str, limit: int = 0) -> tuple[str, ...]:
    """Keys of the first `limit` records of a folder of images or of shards, in stored order.

    Raises:
        UserError: If there is none.
    """
    if is_folder_of_images(source):
        names = (record[0].name for record in plan_pack(Path(source)).records)
        keys: Iterator[str] = (unspelled(split[0]) for name in names if (split := split_name(name)))
    else:
        keys = _keys_of_shards(source)
    return tuple(islice(keys, limit or None))


def _keys_of_shards(source: str) -> Iterator[str]:
    for shard in find_shards(source):
        last = ""
        # The engine has a row for what a broken shard has lost; here it has no name.
        with open_input(shard) as file, suppress(TarFault):
            for place in walk_tar(file):
                split = split_name(place.name)
                if split and split[0] != last:
                    last = split[0]
                    yield unspelled(last)


def is_stored_as_jpeg(source: str) -> bool:
    """Whether the first image of shards is a JPEG: what restores it stores its own as one, too."""
    for shard in find_shards(source):
        with open_input(shard) as file, suppress(TarFault):
            for place in walk_tar(file):
                suffix = place.name.rpartition(".")[2].lower()
                if suffix in IMAGE_SUFFIXES:
                    return suffix in ("jpg", "jpeg")
    return False


def pack_images(source: Path, out: Path, limit: int = 0) -> None:
    """Put a folder of images into shards, so that it can go through the engine; resumes.

    Raises:
        UserError: If an image cannot be read: a benchmark without it would be another one.
    """
    plan = plan_pack(source)
    plan = replace(plan, records=plan.records[: limit or None])
    _refuse_left_out(plan)
    packed = pack(plan, out, RECORDS_PER_SHARD)
    if packed.left_out:
        row = packed.left_out[0]
        raise UserError(f"{source}/{row.name}: {row.reason}; a benchmark needs every image")


def _refuse_left_out(plan: PackPlan) -> None:
    if plan.left_out:
        row = plan.left_out[0]
        raise UserError(f"{plan.source}/{row.name}: {row.reason}; a benchmark needs every image")


def pick(found: Found, keys: Iterable[str], out: Path) -> None:
    """Copy the images of some keys into a folder, each under its key; others are removed there.

    Raises:
        UserError: If one is no image.
    """
    written = set()
    for key in keys:
        data = read_place(found[key])
        try:
            format = images.read_header(data).format
        except images.ImageFault as fault:
            raise UserError(f"{found[key].path}: {key}: {fault}") from None
        target = out / f"{key}.{_SUFFIXES.get(format, format)}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_absent(target) as file:
            file.write(data)
        written.add(target)
    for path in out.rglob("*"):  # of a larger limit, or in another format
        if path.is_file() and path not in written:
            path.unlink()


def write_portraits(out: Path, size: int) -> None:
    """Write scikit-image's portrait, aligned, under several names: each is degraded its own way."""
    data = images.encode(portrait(size), "png")
    out.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PORTRAITS):
        target = out / f"portrait-{number}.png"
        if not target.is_file():  # written again, it would be another input to who packs it
            with whole_or_absent(target) as file:
                file.write(data)


def portrait(size: int) -> Pixels:
    """The face of a photo that is free to use, aligned: (size, size, 3)."""
    import skimage.data

    from pipeline.faces.align import align
    from pipeline.faces.detect import DetectConfig, FaceDetector

    photo = skimage.data.astronaut()
    return align(photo, FaceDetector(DetectConfig()).find(photo)[0].points, size)


def revision(degraded: Store, config: DegradeConfig) -> tuple[str, str]:
    """What a synthetic data set is: hash of the clean faces, the degradation and the seed.

    Args:
        degraded: Folder of the degraded shards.
        config: How they were made.

    Returns:
        That hash; and beside it that of the degraded faces, which another JPEG library changes.
    """
    rows = sorted(_rows(degraded))
    how = canonical(config.model_dump(mode="json", include={"size", "seed", "ranges"}))
    return (
        _hash([how, *(f"{key}:{before}" for key, before, _ in rows)]),
        _hash(f"{key}:{after}" for key, _, after in rows),
    )


def _rows(degraded: Store) -> Iterator[tuple[str, str, str]]:
    columns = ["key", "sha256_in", "sha256_out"]
    for name in degraded.list():
        if name.endswith(".parquet"):
            with degraded.open(name) as file:
                table = pq.read_table(file, columns=columns)
            for key, before, after in zip(*(table[c].to_pylist() for c in columns), strict=True):
                yield key, before or "", after or ""


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()[:_REVISION_DIGITS]
