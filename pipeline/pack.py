"""From a folder tree of images to shards, as a function of names and bytes alone."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.plan import make_out
from pipeline.sample import IMAGE_SUFFIXES
from pipeline.tar import MEMBER_BUDGET_BYTES, TarWriter
from vsp_model.files import sha256_of, whole_or_absent

MANIFEST = "manifest.json"
# A dot would end the key there; the other two must be spelled for the spelling to stay unique.
SPELLED = str.maketrans({"%": "%25", ".": "%2E", "~": "%7E"})


@dataclass(frozen=True, slots=True)
class PackPlan:
    """What to pack: member names and their files in order, and what stays outside."""

    images: tuple[tuple[str, Path], ...]
    num_left_out: int


def plan_pack(source: Path) -> PackPlan:
    """Find the images below a folder, sorted by path, hidden files and folders left out.

    Raises:
        UserError: If `source` is no folder, holds no image, or an image cannot be taken.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give a folder of images")
    files = sorted(_files(source), key=lambda path: path.relative_to(source).parts)
    images = [path for path in files if path.suffix[1:].lower() in IMAGE_SUFFIXES]
    if not images:
        wanted = ", ".join(f".{suffix}" for suffix in IMAGE_SUFFIXES)
        raise UserError(f"{source}: no image in this folder (looked for {wanted})")
    for path in images:
        _check(path)
    names = member_names([path.relative_to(source) for path in images])
    return PackPlan(tuple(zip(names, images, strict=True)), len(files) - len(images))


def _files(source: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(source):
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _check(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{os.fsencode(path)!r}: name is not UTF-8; rename the file") from None
    if path.stat().st_size > MEMBER_BUDGET_BYTES:
        raise UserError(f"{path}: over {MEMBER_BUDGET_BYTES} bytes; leave it out of the folder")


def member_names(paths: Sequence[Path]) -> list[str]:
    """Name the tar members of relative image paths so that no two share a key.

    A tar's key ends at the first dot of the file's name: `IMG_1.0.jpg` and `IMG_1.1.jpg` would
    merge, so dots inside a stem are spelled `%2E`. Files that differ in the suffix alone, `a.jpg`
    and `a.png`, keep it in the key: `a~jpg.jpg`, `a~png.png`.
    """
    keys = [path.with_name(path.stem.translate(SPELLED)).as_posix() for path in paths]
    shared = {key for key, count in Counter(keys).items() if count > 1}
    return [
        f"{key}{'~' + path.suffix[1:] if key in shared else ''}{path.suffix}"
        for key, path in zip(keys, paths, strict=True)
    ]


def pack(plan: PackPlan, out: Path, records_per_shard: int) -> list[Path]:
    """Write the images as shards of `records_per_shard`, and last a manifest with their sha256.

    Raises:
        UserError: If `out` holds anything already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: not an empty folder; choose another OUT")
    make_out(out)
    starts = range(0, len(plan.images), records_per_shard)
    tars = [out / f"{number:06d}.tar" for number in range(len(starts))]
    entries = [
        _write_shard(tar, plan.images[start : start + records_per_shard])
        for tar, start in zip(tars, starts, strict=True)
    ]
    text = json.dumps({"num_records": len(plan.images), "shards": entries}, indent=1) + "\n"
    with whole_or_absent(out / MANIFEST) as file:
        file.write(text.encode())
    return tars


def _write_shard(tar: Path, images: Sequence[tuple[str, Path]]) -> dict[str, str | int]:
    with whole_or_absent(tar) as file:
        writer = TarWriter(file)
        for name, path in images:
            writer.add(name, path.read_bytes())
        writer.finish()
    return {
        "name": tar.name,
        "num_records": len(images),
        "num_bytes": tar.stat().st_size,
        "sha256": sha256_of(tar),
    }
