"""Judge what `make demo` left: every packed key has its row and its image, and there is a picture.

Reads with tarfile, pyarrow and Pillow, not with the project's own readers.
"""

import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image


def members(folder: Path) -> dict[str, list[str]]:
    """Member names of every tar in a folder, by the tar's name."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found[path.stem] = tar.getnames()
    return found


def check(demo: Path) -> int:
    """Return the number of restored records.

    Raises:
        AssertionError: At the first thing that is missing.
    """
    packed, restored = members(demo / "shards"), members(demo / "restored")
    assert packed, f"{demo}: no shard was packed"
    assert restored == packed, f"packed {packed}, restored {restored}"
    num_records = 0
    for shard, names in packed.items():
        rows = pq.read_table(demo / "restored" / f"{shard}.parquet").to_pylist()
        found = [(row["key"], row["member"], row["status"]) for row in rows]
        wanted = [(name.rsplit(".", 1)[0], name, "restored") for name in names]
        assert found == wanted, f"sidecar of {shard}: {found}, wanted {wanted}"
        num_records += len(rows)
    (photo,) = pq.read_table(demo / "photos-restored" / "_vsp" / "records").to_pylist()
    decisions = [face["decision"] for face in photo["faces"]]
    assert decisions == ["restored"], f"the photo's faces: {decisions}"
    assert Image.open(demo / "photos-restored" / "portrait.jpg").size == (320, 320)
    picture = Image.open(demo / "before-after.png").convert("L")
    darkest, lightest = picture.getextrema()
    assert lightest - darkest > 100, f"the picture is blank ({darkest} to {lightest})"
    return num_records


if __name__ == "__main__":
    num_restored = check(Path(sys.argv[1]))
    sys.stdout.write(f"demo: {num_restored} records, all with their row and their image\n")
