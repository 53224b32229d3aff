"""Hostile input: images, tars and photo folders that are broken, odd or malicious.

    python tests/hostile.py make FOLDER        writes the corpus: FOLDER/shards, FOLDER/photos
    python tests/hostile.py run FOLDER REPORT  also restores it, with a model that gives back its
                                               input; the report holds what came out, as JSON

Every case says what must become of it. The tars are made here, byte by byte, so that the writer
under test vouches for nothing.
"""

import bz2
import gzip
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from hostile_pictures import (
    REFUSED,
    RESTORED,
    SIZE,
    all_pictures,
    changed,
    good,
)

from jobs.running import Job, RunFlags, run_job
from pipeline.ledger import Ledger
from pipeline.plan import find_photos, find_shards, photo_units, shard_units
from pipeline.replica import Bundle
from pipeline.sample import IMAGE_SUFFIXES
from pipeline.stages.photos import PhotosConfig, PhotosStage
from pipeline.stages.restore import RestoreConfig, RestoreStage
from pipeline.storage import open_store
from pipeline.verify import verify

COPIED, TRUNCATED = "copied", "truncated"
MEMBER_BUDGET = 256 * 2**20
PICTURES_PER_SHARD = 30


@dataclass(frozen=True)
class Shard:
    """One tar; `rows` are the statuses in order.

    `hole` zero bytes follow the first `hole_at` bytes of `data`: a large member that costs no disk.
    """

    name: str
    data: bytes
    rows: tuple[str, ...]
    hole_at: int = 0
    hole: int = 0


def header(
    name: bytes, size: int, kind: bytes = b"0", size_field: bytes = b"", link: bytes = b""
) -> bytes:
    block = bytearray(512)
    block[: min(100, len(name))] = name[:100]
    block[100:108] = b"0000644\0"
    block[124:136] = size_field or b"%011o\0" % size
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def file(name: bytes | str, data: bytes, kind: bytes = b"0") -> bytes:
    name = name.encode() if isinstance(name, str) else name
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def pax(kind: bytes = b"x", **records: bytes) -> bytes:
    body = b""
    for key, value in records.items():
        rest = b" " + key.replace("_", ".").encode() + b"=" + value + b"\n"
        length = len(rest) + len(str(len(rest)))
        length += len(str(length)) - len(str(len(rest)))
        body += str(length).encode() + rest
    return file(b"pax", body, kind)


END = bytes(1024)


@cache
def ok(name: str = "good") -> bytes:
    return file(f"{name}.png", good("png"))


def cut_shards() -> Iterator[Shard]:
    """Every block's end, and some places between."""
    first, second, data = ok("a"), file("a.json", b"{}"), file("b.png", good("png"))
    whole = first + second + data + END
    images_end = (len(first), len(first + second + data))
    for length in (*range(0, len(whole), 512), 1, 100, 511, 513, 700, len(whole) - 1):
        done = sum(end <= length for end in images_end)
        yield Shard(f"cut-{length}", whole[:length], (*[RESTORED] * done, TRUNCATED))


def broken_shards() -> Iterator[Shard]:
    broken = (RESTORED, TRUNCATED)
    middle = ok("b")
    for name, at in {"checksum": 150, "name": 3, "kind": 156, "magic": 258}.items():
        yield Shard(f"flipped-{name}", ok("a") + changed(middle, at) + ok("c") + END, broken)
    for name, field in {"letters": b"0000000zzzz\0", "negative": b"\xff" * 12,
                        "minus": b"-0000000001\0",
                        "8-gib": b"77777777777\0", "2-to-60": b"\x80" + (2**60).to_bytes(11, "big"),
                        "2-to-87": b"\x80\x7f" + b"\xff" * 10}.items():  # fmt: skip
        yield Shard(f"size-{name}", ok("a") + header(b"b.png", 0, b"0", field) + END, broken)
    noise = np.random.default_rng(3).bytes(4096)
    yield Shard("noise-between", ok("a") + noise + ok("b") + END, broken)
    yield Shard("no-end", ok("a"), broken)
    yield Shard("one-end-block", ok("a") + bytes(512), broken)
    yield Shard("end-in-the-middle", ok("a") + bytes(512) + ok("b") + END, broken)
    yield Shard("garbage-behind", ok("a") + END + b"garbage", broken)
    yield Shard("second-tar-behind", ok("a") + END + ok("b") + END, broken)
    yield Shard("padded", ok("a") + END + bytes(9216), (RESTORED,))
    yield Shard("empty-tar", END, ())
    whole = ok("a") + ok("b") + END
    others = {"gzip": gzip.compress(whole, mtime=0), "bzip2": bz2.compress(whole),
              "text": b"text\n" * 500,
              "png": good("png"), "zip": b"PK\5\6" + bytes(18), "ones": b"\xff" * 2048}  # fmt: skip
    for name, data in others.items():
        yield Shard(f"really-{name}", data, (TRUNCATED,))
    too_large = header(b"b.png", 0, b"0", b"%011o\0" % (MEMBER_BUDGET + 512))
    data = ok("a") + too_large
    yield Shard("member-over-budget", data + ok("c") + END, (REFUSED, RESTORED, RESTORED),
                len(data), MEMBER_BUDGET + 512)  # fmt: skip


def odd_order() -> Iterator[Shard]:
    json_of = {name: file(f"{name}.json", b"{}") for name in "ab"}
    yield Shard("apart", ok("a") + ok("b") + json_of["a"] + END, (RESTORED, RESTORED, REFUSED))
    yield Shard("no-image", json_of["a"] + ok("b") + END, (COPIED, RESTORED))
    yield Shard("same-key", ok("a") + ok("b") + ok("a") + END, (RESTORED, RESTORED, REFUSED))
    yield Shard("same-name", ok("a") + ok("a") + ok("b") + END, (RESTORED, REFUSED, RESTORED))
    upper = file("a.PNG", good("png"))
    yield Shard("same-by-case", ok("a") + upper + ok("b") + END, (RESTORED, REFUSED, RESTORED))
    keys = ok("a") + file("A.png", good("png")) + END
    yield Shard("keys-by-case", keys, (RESTORED, RESTORED))
    yield Shard("json-first", json_of["a"] + ok("a") + END, (RESTORED,))
    yield Shard("two-images", ok("a") + file("a.jpg", good("jpg")) + END, (RESTORED,))
    yield Shard("empty-members", file("a.png", b"") + file("b.json", b"") + ok("c") + END,
                (REFUSED, COPIED, RESTORED))  # fmt: skip


def odd_members() -> Iterator[Shard]:
    """One odd member between two good records."""
    image = good("png")
    names = {
        "absolute": (b"/opt/vsp-hostile.png", REFUSED), "up": (b"../../vsp-hostile.png", REFUSED),
        "up-inside": (b"x/../../vsp-hostile.png", REFUSED), "up-only": (b"..", REFUSED),
        "dot": (b"./x.png", RESTORED), "no-suffix": (b"x", REFUSED), "no-key": (b".png", REFUSED),
        "no-key-in-folder": (b"x/.png", RESTORED), "no-name": (b"", REFUSED),
        "backslash": (b"..\\..\\vsp-hostile.png", REFUSED),
        "drive": (b"C:\\vsp-hostile.png", RESTORED),
        "latin-1": (b"caf\xe9.png", REFUSED), "bytes": (b"\xff\xfe\xfd.png", REFUSED),
        "newline": (b"x\ny.png", RESTORED), "escape": (b"\x1b[2Jx.png", RESTORED),
        "emoji": ("\U0001f600.png".encode(), RESTORED),
        "right-to-left": ("x\u202egnp.png".encode(), RESTORED),
        "quotes": (b"'\"$(touch x)`.png", RESTORED), "percent": (b"%s%n%00.png", RESTORED),
        "100-bytes": (b"x" * 96 + b".png", RESTORED), "device-name": (b"CON.png", RESTORED),
        "dots": (b"x....png", RESTORED), "blank": (b" .png", RESTORED),
        "own": (b"_vsp/plan.png", RESTORED),
    }  # fmt: skip
    odd = {name: (file(raw, image), status) for name, (raw, status) in names.items()}
    for kind, name in {b"1": "hard-link", b"2": "soft-link", b"3": "character-device", b"6": "fifo",
                       b"4": "block-device", b"S": "sparse", b"Z": "unknown-kind", b"V": "volume",
                       b"D": "dump-folder"}.items():  # fmt: skip
        odd[name] = (file(b"x.png", b"", kind), REFUSED)
    for kind, name in {b"1": "hard-link-out", b"2": "soft-link-out"}.items():
        odd[name] = (header(b"x.png", 0, kind, link=b"../../etc/hostname"), REFUSED)
    odd["folder"] = (file(b"x.png", b"", b"5"), "")
    long = {"300": 300, "5000": 5000, "70000": 70000}
    for name, length in long.items():
        raw = b"d/" * 20 + b"x" * length + b".png"
        odd[f"pax-name-{name}"] = (pax(path=raw) + file(b"x", image), RESTORED)
        odd[f"gnu-name-{name}"] = (file(b"L", raw + b"\0", b"L") + file(b"x", image), RESTORED)
    for name, raw in {"zero": b"x\0y.png", "up": b"../x.png", "bytes": b"\xff.png"}.items():
        odd[f"pax-{name}"] = (pax(path=raw) + file(b"x.png", image), REFUSED)
    odd["pax-sparse"] = (pax(GNU_sparse_major=b"1") + file(b"x.png", image), REFUSED)
    odd["pax-global"] = (pax(b"g", comment=b"x"), "")
    odd["pax-size"] = (pax(size=b"%d" % len(image)) + header(b"x.png", 0) + file(b"", image)[512:],
                       RESTORED)  # fmt: skip
    odd["pax-many"] = (pax(comment=b"x") * 200 + file(b"x.png", image), RESTORED)
    for name, (data, status) in odd.items():
        rows = (RESTORED, *[status] * bool(status), RESTORED)
        # An unusable member does not end the record around it, whose row follows.
        rows = (REFUSED, RESTORED, RESTORED) if status == REFUSED else rows
        yield Shard(f"member-{name}", ok("a") + data + ok("z") + END, rows)
    broken = {
        "size": pax(size=b"none"), "size-4g": pax(size=b"99999999999999999999"),
        "records": file(b"p", b"99999 path=x\n", b"x"), "length": file(b"p", b"-1 path=x\n", b"x"),
        "no-length": file(b"p", b"path=x\n", b"x"),
        "large": header(b"p", 2**21, b"x") + bytes(2**21),
        "nothing-behind": pax(path=b"x.png") + END,
    }  # fmt: skip
    for name, data in broken.items():
        yield Shard(f"pax-broken-{name}", ok("a") + data + file(b"x.png", image) + END,
                    (RESTORED, TRUNCATED))  # fmt: skip


@cache
def all_shards() -> tuple[Shard, ...]:
    makers = (cut_shards, broken_shards, odd_order, odd_members)
    return tuple(shard for maker in makers for shard in maker())


def picture_shards() -> Iterator[Shard]:
    """The pictures as records with a companion each, a good record behind every one."""
    pictures = all_pictures()
    for start in range(0, len(pictures), PICTURES_PER_SHARD):
        data, rows = b"", []
        for picture in pictures[start : start + PICTURES_PER_SHARD]:
            key = f"{picture.name}-{picture.suffix}"
            data += file(f"{key}.{picture.suffix}", picture.data) + file(f"{key}.json", b"{}")
            data += ok(f"good-{key}")
            rows += [picture.status, RESTORED]
        yield Shard(f"pictures-{start:03d}", data + END, tuple(rows))


# ------------------------------------------------------------------------------------ folders


def make(folder: Path) -> dict[str, dict]:
    """Write the corpus; returns the expected statuses of shards and of photos."""
    (folder / "shards").mkdir(parents=True)
    shards = [*all_shards(), *picture_shards()]
    for shard in shards:
        with (folder / "shards" / f"{shard.name}.tar").open("wb") as out:
            out.write(shard.data[: shard.hole_at])
            out.seek(shard.hole, os.SEEK_CUR)
            out.write(shard.data[shard.hole_at :])
    return {"shards": {s.name: s.rows for s in shards}, "photos": make_photos(folder)}


def make_photos(folder: Path) -> dict[str, str]:
    """The pictures as photos, and what else a folder may hold under a photo's name."""
    root, outside = folder / "photos", folder / "outside"
    root.mkdir()
    outside.mkdir()
    expected = {}
    for picture in all_pictures():
        name = f"{picture.name}.{picture.suffix}"
        (root / name).write_bytes(picture.data)
        expected[name] = picture.photo or picture.status
    names = {
        "folder.jpg/inner.jpg": "", "-rf.jpg": "", "new\nline.jpg": "", "\U0001f600.JPG": "",
        "x" * 251 + ".jpg": "", "a.png.jpg": "", " .jpg": "", "%s.jpg": "", "$(touch x).jpg": "",
        "deep/" * 40 + "x.jpg": "", "caf\udce9.jpg": "caf\\udce9.jpg",
    }  # fmt: skip
    for name, key in names.items():
        path = Path(os.fsdecode(os.fsencode(root / name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(good("jpg"))
        expected[key or name] = RESTORED
    (outside / "secret.jpg").write_bytes(good("jpg"))
    (root / "linked-folder").symlink_to(outside)
    links = {"link.jpg": "../outside/secret.jpg", "dangling.jpg": "nothing", "loop.jpg": "loop.jpg",
             "zeros.jpg": "/dev/zero"}  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
        expected[name] = RESTORED if name == "link.jpg" else REFUSED
    os.mkfifo(root / "fifo.jpg")
    (root / "locked.jpg").write_bytes(good("jpg"))
    (root / "locked.jpg").chmod(0)
    (root / ".hidden.jpg").write_bytes(good("jpg"))
    return expected | {
        "fifo.jpg": REFUSED,
        "locked.jpg": RESTORED if os.geteuid() == 0 else REFUSED,
    }


# ---------------------------------------------------------------------------------------- run


class Model:
    """Gives back its input, and no picture for some keys."""

    size = SIZE

    def restore(self, lq, keys, *, seed=0, noise="seeded"):
        restored = lq.clone()
        for slot, key in enumerate(keys):
            if key.startswith("model-gives-"):
                value = next(v for v in ("-inf", "inf", "nan") if f"gives-{v}" in key)
                restored[slot, 1, 3, 3] = float(value)
        return restored


def load(config) -> Model:
    return Model()


def peak_bytes() -> int:
    """The most memory this process has held; unlike `ru_maxrss` it knows nothing of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def tree(folder: Path) -> set[tuple[str, str]]:
    """Everything beside the corpus and in it, but not in an output folder."""
    found = set()
    for place, folders, files in os.walk(folder.parent):
        folders[:] = [name for name in folders if not name.startswith("out-")]
        for path in (Path(place, name) for name in (*folders, *files)):
            there = path.lstat()
            size = there.st_size if path.is_file() else 0
            time = 0 if path == folder else there.st_mtime_ns  # output folders are made there
            found.add((str(path), f"{there.st_mode} {size} {time}"))
    return found


def restore(job: Job) -> dict:
    """Restore through the whole engine, then verify."""
    summary = run_job(job, RunFlags(pool="local", as_json=True))
    ledger = Ledger(open_store(job.out))
    problems = verify(ledger, ledger.plan()).problems
    return {"exit_code": summary.exit_code, "errors": summary.errors, "problems": problems,
            "counts": summary.counts, "notes": summary.notes}  # fmt: skip


def jobs(folder: Path) -> Iterator[Job]:
    shared = {"model": Bundle(path=Path("identity.safetensors"), sha256="0" * 64),
              "batch_size": 4, "threads": 1, "quarantine": True}  # fmt: skip
    shards = RestoreConfig(**shared)
    units = shard_units(find_shards(str(folder / "shards")))
    yield Job("restore", partial(RestoreStage, shards, load), shards.provenance, units,
              str(folder / "out-shards"))  # fmt: skip
    photos, root = PhotosConfig(**shared, aligned=True, compare=True), folder / "photos"
    units = photo_units(root, find_photos(root, IMAGE_SUFFIXES), 64)
    yield Job("restore", partial(PhotosStage, photos, load), photos.provenance, units,
              str(folder / "out-photos"), str(root))  # fmt: skip


def main(what: str, folder: Path, report: Path | None = None) -> None:
    torch.set_num_threads(1)
    expected = make(folder)
    if what == "run":
        files, before = tree(folder), peak_bytes()
        found = [restore(job) for job in jobs(folder)]
        grown = peak_bytes() - before
        facts = {
            "expected": expected,
            "runs": dict(zip(("shards", "photos"), found, strict=True)),
            "grown_bytes": grown,
            "touched": sorted({path for path, _ in files ^ tree(folder)}),
        }
        report.write_text(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
