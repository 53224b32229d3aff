"""A folder of images whose names are hard to pack, and what its shards hold."""

from pathlib import Path

from pipeline.shards import read_shard

TREE = {
    "IMG_1.0.jpg": b"0", "IMG_1.1.jpg": b"1", "IMG_1%2E1.jpg": b"2", "a.jpg": b"3", "a.png": b"4",
    "a~png.png": b"5", "d.e/a.jpg": b"6", "Ä ö.JPG": b"7", "x/deep/y.jpeg": b"8",
}  # fmt: skip


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def make_tree(folder: Path) -> Path:
    """The images of `TREE`, and what is no image of the set."""
    return fill(folder, TREE | {"notes.md": b"", ".hidden.jpg": b"", ".git/x.jpg": b""})


def samples(tars):
    return [sample for tar in tars for sample in read_shard(str(tar))]


def members(tars):
    return {member.name: member.data for sample in samples(tars) for member in sample.members}


def reasons(plan_or_packed):
    return {row.name: row.reason for row in plan_or_packed.left_out}


class Stop(Exception):
    pass


def stop_after(num_records):
    def tell(progress):
        if progress.num_records == num_records:
            raise Stop

    return tell
