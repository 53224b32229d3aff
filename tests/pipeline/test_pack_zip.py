"""`vsp pack` of a zip archive: the bytes of its folder, and every way to be wrong."""

import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from packed_tree import TREE, Stop, make_tree, members, reasons, stop_after

from pipeline.archive import ZipArchive, ZipFault, ZipLimits
from pipeline.errors import UserError
from pipeline.gather import plan_pack
from pipeline.pack import pack


def make_zip(path: Path, files: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_a_zip_gives_the_bytes_of_its_folder(tmp_path):
    tree = make_tree(tmp_path / "src")
    files = TREE | {"x/": b"", "__MACOSX/a.jpg": b"", ".git/x.jpg": b"", "big.png": b"x" * 3000}
    (tree / "big.png").write_bytes(b"x" * 3000)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        source = make_zip(tmp_path / f"{method}.zip", files, method)
        packed = pack(plan_pack(source), tmp_path / str(method), 4)
        assert not packed.left_out
    pack(plan_pack(tree), tmp_path / "folder", 4)
    for tar in (tmp_path / "folder").glob("*.tar"):
        assert tar.read_bytes() == (tmp_path / "0" / tar.name).read_bytes()
        assert tar.read_bytes() == (tmp_path / "8" / tar.name).read_bytes()


def test_a_zip_is_taken_up_again_and_a_changed_one_refused(tmp_path):
    source = make_zip(tmp_path / "a.zip", TREE)
    with pytest.raises(Stop):
        pack(plan_pack(source), tmp_path / "out", 2, stop_after(5))
    assert pack(plan_pack(source), tmp_path / "out", 2).progress.num_skipped == 2
    make_zip(source, TREE | {"a.jpg": b"!"})
    with pytest.raises(UserError, match="1 changed"):
        pack(plan_pack(source), tmp_path / "out", 2)


def entry(name: bytes, data: bytes, *, size=None, crc=None, method=8, flags=0, mode=0, packed=None,
          system=3):  # fmt: skip
    """One entry as its author wants it: (local header and content, what the directory says)."""
    if packed is None:
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = deflate.compress(data) + deflate.flush() if method == 8 else data
    crc = zlib.crc32(data) if crc is None else crc
    size = len(data) if size is None else size
    common = (20, flags, method, 0, 0, crc, len(packed), size, len(name), 0)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", *common) + name + packed
    return local, (struct.pack("<4s6H3L2H", b"PK\1\2", system << 8 | 20, *common), mode, name)


def forge(path: Path, *entries, offsets=None, count=None) -> Path:
    body, directory = b"", b""
    for number, (local, (head, mode, name)) in enumerate(entries):
        at = len(body) if offsets is None else offsets[number]
        directory += head + struct.pack("<3H2L", 0, 0, 0, mode << 16, at) + name
        body += local
    count = len(entries) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path


GOOD = entry(b"good.jpg", b"good " * 50)
BAD = {
    "absolute name": entry(b"/etc/x.jpg", b"x"),
    "absolute name ": entry(b"C:\\x.jpg", b"x", system=0),
    "through '..'": entry(b"a/../../x.jpg", b"x"),
    "through '..' ": entry(b"..\\x.jpg", b"x", system=0),
    "backslash": entry(b"a\\x.jpg", b"x"),
    "zero byte": entry(b"a\0b.jpg", b"x"),
    "not UTF-8": entry(b"\xff.jpg", b"x", flags=0x800),
    "encrypted": entry(b"x.jpg", b"x", flags=1),
    "symbolic link": entry(b"x.jpg", b"good.jpg", mode=0o120777),
    "not a plain file": entry(b"x.jpg", b"", mode=0o010644),
    "compression method 14": entry(b"x.jpg", b"x", method=14),
    "damaged": entry(b"x.jpg", b"x" * 99, packed=b"\xff\xff\xff\xff"),
    "checksum differs": entry(b"x.jpg", b"x" * 99, crc=1),
    "more than the 10 bytes": entry(b"x.jpg", b"x" * 2**22, size=10),
    "holds 99 bytes where 100": entry(b"x.jpg", b"x" * 99, size=100),
    "over 100:1": entry(b"x.jpg", b"\0" * 2**22),
    "over 268435456 for one file": entry(b"x.jpg", b"x", size=2**29),
    "appears again": entry(b"good.jpg", b"other"),
}


@pytest.mark.parametrize("told", BAD)
def test_a_bad_entry_costs_itself_alone(tmp_path, told):
    source = forge(tmp_path / "a.zip", GOOD, BAD[told])
    packed = pack(plan_pack(source), tmp_path / "out", 10)
    assert members(packed.tars) == {"good.jpg": b"good " * 50}
    (reason,) = reasons(packed).values()
    assert told.strip() in reason
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "out"}


def test_what_is_left_out_stays_in_the_manifest_when_its_shard_is_skipped(tmp_path):
    source = forge(tmp_path / "a.zip", GOOD, BAD["checksum differs"])
    first = pack(plan_pack(source), tmp_path / "out", 1)
    kept = (tmp_path / "out" / "manifest.json").read_bytes()
    again = pack(plan_pack(source), tmp_path / "out", 1)
    assert again.left_out == first.left_out
    assert (tmp_path / "out" / "manifest.json").read_bytes() == kept


def test_overlapping_entries_are_refused(tmp_path):
    """The trick of the small bomb of terabytes: many entries share one content."""
    kernel = entry(b"a.jpg", b"\0" * 1000)
    shared = forge(tmp_path / "a.zip", kernel, kernel, GOOD, offsets=[0, 0, 2 * len(kernel[0])])
    packed = pack(plan_pack(shared), tmp_path / "out", 10)
    assert list(members(packed.tars)) == ["good.jpg"]
    nested = entry(b"outer.jpg", b"x", method=0, packed=GOOD[0], size=len(GOOD[0]))
    inner_at = len(nested[0]) - len(GOOD[0])
    forge(tmp_path / "b.zip", nested, GOOD, offsets=[0, inner_at])
    with (tmp_path / "b.zip").open("rb") as file:
        outer, _ = ZipArchive(file).entries
    assert outer.fault == "overlaps another entry"


def bombs():
    many = [entry(b"%d.jpg" % n, b"\0" * 2**20) for n in range(80)]
    yield "looks like a bomb", lambda path: forge(path, *many), ZipLimits()
    yield "looks like a bomb", lambda path: forge(path, GOOD), ZipLimits(total_bytes=100)
    yield "80 entries, over 10", lambda path: forge(path, *many), ZipLimits(num_entries=10)
    yield "over 10 entries", lambda path: forge(path, *many, count=1), ZipLimits(num_entries=10)
    yield "directory of", lambda path: forge(path, *many), ZipLimits(directory_bytes=100)
    yield "not a zip archive", lambda path: path.write_bytes(b"PK\3\4 and no end"), ZipLimits()
    yield "not a zip archive", lambda path: path.write_bytes(b""), ZipLimits()


@pytest.mark.parametrize(("told", "make_it", "limits"), list(bombs()))
def test_an_archive_over_a_limit_is_refused_before_anything_is_inflated(
    tmp_path, told, make_it, limits
):
    make_it(tmp_path / "a.zip")
    with (tmp_path / "a.zip").open("rb") as file, pytest.raises(ZipFault, match=told):
        ZipArchive(file, limits)


def test_a_zip_cut_anywhere_never_passes_for_whole(tmp_path):
    whole = forge(tmp_path / "a.zip", GOOD, entry(b"b.jpg", b"b" * 40)).read_bytes()
    for length in range(0, len(whole), 3):
        (tmp_path / "cut.zip").write_bytes(whole[:length])
        with (tmp_path / "cut.zip").open("rb") as file, pytest.raises(ZipFault):
            ZipArchive(file)


def test_a_damaged_byte_is_never_packed_as_it_is(tmp_path):
    whole = forge(tmp_path / "a.zip", GOOD).read_bytes()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 0x41
        (tmp_path / "bad.zip").write_bytes(data)
        try:
            with (tmp_path / "bad.zip").open("rb") as file:
                archive = ZipArchive(file)
                got = [archive.read(e) for e in archive.entries if e.name == "good.jpg"]
        except ZipFault:
            continue
        assert got in ([], [b"good " * 50]), at


def test_what_other_programs_write_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("streamed.jpg", "w", force_zip64=True) as file:
            file.write(b"x" * 5000)
        archive.writestr("ä/ö.png", b"y")
        archive.comment = b"a comment"
    plain = (tmp_path / "w.zip").read_bytes()
    (tmp_path / "w.zip").write_bytes(b"#!/bin/sh of an installer\n" + plain)
    with (tmp_path / "w.zip").open("rb") as file:
        archive = ZipArchive(file)
        assert {e.name: archive.read(e) for e in archive.entries} == {
            "streamed.jpg": b"x" * 5000,
            "ä/ö.png": b"y",
        }


@pytest.mark.slow
def test_more_entries_than_the_old_format_can_count(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(2**16 + 5):
            archive.writestr(f"{number}.jpg", b"")
    with (tmp_path / "many.zip").open("rb") as file:
        assert len(ZipArchive(file).entries) == 2**16 + 5
