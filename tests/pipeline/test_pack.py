import hashlib
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import pytest

from pipeline.archive import ZipArchive, ZipFault, ZipLimits
from pipeline.errors import RunError, UserError
from pipeline.gather import member_names, plan_pack
from pipeline.pack import pack
from pipeline.sample import split_name
from pipeline.shards import read_shard

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture
def tree(tmp_path):
    outside = {"notes.md": b"", ".hidden.jpg": b"", ".git/x.jpg": b""}
    return fill(tmp_path / "src", TREE | outside)


def samples(tars):
    return [sample for tar in tars for sample in read_shard(str(tar))]


def members(tars):
    return {member.name: member.data for sample in samples(tars) for member in sample.members}


def reasons(plan_or_packed):
    return {row.name: row.reason for row in plan_or_packed.left_out}


# ------------------------------------------------------------------------------------- folder


def test_no_two_files_share_a_key_and_every_byte_arrives(tree, tmp_path):
    plan = plan_pack(tree)
    tars = pack(plan, tmp_path / "out", records_per_shard=4).tars
    assert [tar.name for tar in tars] == ["000000.tar", "000001.tar", "000002.tar"]
    found = samples(tars)
    assert not any(sample.fault for sample in found)
    assert len({sample.key for sample in found}) == len(found)
    assert sorted(sample.image.data for sample in found) == sorted(TREE.values())
    assert plan.ignored == {"md": 1}
    assert not plan.left_out


def test_names_are_spelled_so_that_nothing_merges():
    paths = [PurePosixPath(name) for name in sorted(TREE)]
    named = dict(zip(sorted(TREE), member_names(paths), strict=True))
    assert named["IMG_1.0.jpg"] == "IMG_1%2E0.jpg"
    assert named["a.png"] == "a~png.png"
    assert named["d.e/a.jpg"] == "d.e/a.jpg"
    assert len({split_name(name)[0] for name in named.values()}) == len(TREE)


def test_the_bytes_depend_on_the_tree_alone_and_the_manifest_holds(tree, tmp_path):
    other = tmp_path / "other" / "place"
    fill(other, dict(reversed(TREE.items())) | {"notes.md": b""})
    pack(plan_pack(tree), tmp_path / "x", records_per_shard=5)
    pack(plan_pack(other), tmp_path / "y", records_per_shard=5)
    text = (tmp_path / "x" / "manifest.json").read_text()
    assert text == (tmp_path / "y" / "manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["num_records"] == len(TREE)
    for entry in manifest["shards"]:
        data = (tmp_path / "x" / entry["name"]).read_bytes()
        assert data == (tmp_path / "y" / entry["name"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["num_bytes"] == len(data)


def test_companions_go_into_the_record_of_their_image(tmp_path):
    files = {
        "a.jpg": b"image", "a.json": b"{}", "a.TXT": b"text", "a.cls": b"7", "a.md": b"",
        "b.1.jpg": b"B", "b.1.json": b"1", "c.jpg": b"c", "c.png": b"C", "c.txt": b"whose?",
        "alone.json": b"",
    }  # fmt: skip
    plan = plan_pack(fill(tmp_path / "src", files))
    found = samples(pack(plan, tmp_path / "out", 10).tars)
    by_key = {sample.key: [member.name for member in sample.members] for sample in found}
    assert by_key["a"] == ["a.jpg", "a.cls", "a.json", "a.txt"]
    assert by_key["b%2E1"] == ["b%2E1.jpg", "b%2E1.json"]
    assert by_key["c~jpg"] == ["c~jpg.jpg"]
    assert "is not clear" in reasons(plan)["c.txt"]
    assert plan.ignored == {"json": 1, "md": 1}


def test_what_is_no_plain_file_is_named_and_the_rest_packed(tmp_path):
    source = fill(tmp_path / "src", {"a.jpg": b"a", "sub/b.jpg": b"b"})
    os.mkfifo(source / "pipe.jpg")
    (source / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (source / "folder").symlink_to(source / "sub")
    (source / "link.jpg").symlink_to(source / "a.jpg")
    (source / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    with (source / "huge.jpg").open("wb") as file:
        file.truncate(2**28 + 1)
    packed = pack(plan_pack(source), tmp_path / "out", 10)
    assert members(packed.tars) == {"a.jpg": b"a", "link.jpg": b"a", "sub/b.jpg": b"b"}
    told = reasons(packed)
    assert told["pipe.jpg"] == "not a plain file"
    assert told["gone.jpg"] == "a link to nothing"
    assert told["folder"] == "a link to a folder"
    assert "not UTF-8" in told["\\udcff.jpg"]
    assert "268435457 bytes" in told["huge.jpg"]
    assert json.loads((tmp_path / "out/manifest.json").read_text())["left_out"][0]["reason"]


def test_a_wrong_source_or_output_is_refused(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.rar").touch()
    fill(tmp_path / "foreign", {"mine.txt": b""})
    for source, told in [("empty", "no image in it"), ("missing", "no such folder"),
                         ("odd.rar", "expected a folder")]:  # fmt: skip
        with pytest.raises(UserError, match=told):
            plan_pack(tmp_path / source)
    for out, told in [(tmp_path / "foreign", "not an empty folder"), (tree, "lies in the input"),
                      (tree / "sub" / "out", "lies in the input")]:  # fmt: skip
        with pytest.raises(UserError, match=told):
            pack(plan_pack(tree), out, records_per_shard=5)


# ---------------------------------------------------------------------------------- run again


class Stop(Exception):
    pass


def stop_after(num_records):
    def tell(progress):
        if progress.num_records == num_records:
            raise Stop

    return tell


def test_a_stopped_run_goes_on_and_touches_nothing_finished(tree, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Stop):
        pack(plan_pack(tree), out, 2, stop_after(5))
    assert sorted(path.name for path in out.glob("*.tar")) == ["000000.tar", "000001.tar"]
    assert not (out / "manifest.json").exists()
    before = (out / "000000.tar").stat()
    (out / ".000002.tar.4711.tmp").write_bytes(b"left by a killed run")
    packed = pack(plan_pack(tree), out, 2)
    assert (packed.progress.num_skipped, packed.progress.num_records) == (2, 5)
    assert (out / "000000.tar").stat() == before
    assert not list(out.glob(".*.tmp"))
    pack(plan_pack(tree), tmp_path / "whole", 2)
    for path in (tmp_path / "whole").glob("*.*"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    again = pack(plan_pack(tree), out, 2)
    assert again.progress.num_skipped == again.progress.num_shards


@pytest.mark.slow
def test_kill_9_at_any_moment_costs_nothing_but_time(tmp_path):
    source = fill(tmp_path / "src", {f"{n:04d}.jpg": bytes([n % 251]) * 5000 for n in range(3000)})
    code = f"""
from pathlib import Path
from pipeline.gather import plan_pack
from pipeline.pack import pack
print("begun", flush=True)
pack(plan_pack(Path({str(source)!r})), Path({str(tmp_path / "out")!r}), 20)
"""
    kills = 0
    for delay_s in (0.0, 0.02, 0.05, 0.1, 0.15, 30.0):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout.readline() == b"begun\n"
        try:
            assert process.wait(delay_s) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        process.stdout.close()
    assert kills
    pack(plan_pack(source), tmp_path / "whole", 20)
    for path in (tmp_path / "whole").glob("*.*"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_second_packer_is_refused_while_the_first_is_at_work(tree, tmp_path):
    def second(progress):
        with pytest.raises(RunError):
            pack(plan_pack(tree), tmp_path / "out", 2)

    pack(plan_pack(tree), tmp_path / "out", 2, second)


def test_a_shard_that_is_gone_or_cut_is_written_again(tree, tmp_path):
    out = tmp_path / "out"
    pack(plan_pack(tree), out, 2)
    kept = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    (out / "000001.tar").unlink()
    with (out / "000003.tar").open("ab") as file:
        file.truncate(700)
    assert pack(plan_pack(tree), out, 2).progress.num_skipped == 3
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == kept


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda src: (src / "a.jpg").write_bytes(b"longer"),
            r"as a~jpg.jpg \(1 bytes, now 6",
        ),
        (lambda src: (src / "d.e/a.jpg").unlink(), "1 gone, as d.e/a.jpg"),
        (lambda src: (src / "new.png").write_bytes(b"n"), "1 new, as new.png"),
        (lambda src: os.utime(src / "a.jpg", (1, 1)), "written again"),
    ],
)
def test_changed_inputs_are_refused_with_the_difference(tree, tmp_path, change, told):
    pack(plan_pack(tree), tmp_path / "out", 2)
    change(tree)
    with pytest.raises(UserError, match=told):
        pack(plan_pack(tree), tmp_path / "out", 2)


def test_another_shard_size_and_foreign_files_are_refused(tree, tmp_path):
    pack(plan_pack(tree), tmp_path / "out", 2)
    with pytest.raises(UserError, match="--per-shard 2, now 3"):
        pack(plan_pack(tree), tmp_path / "out", 3)
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"mine\.txt: foreign file"):
        pack(plan_pack(tree), tmp_path / "out", 2)


def test_a_file_that_changes_while_it_is_packed_stops_the_run(tree, tmp_path):
    plan = plan_pack(tree)
    (tree / "d.e/a.jpg").write_bytes(b"longer")
    with pytest.raises(RunError, match="changed while it was packed"):
        pack(plan, tmp_path / "out", 100)
    assert not list((tmp_path / "out").glob("*.tar"))


# --------------------------------------------------------------------------------------- list


def test_a_list_keeps_its_order_and_names_what_it_cannot_use(tmp_path):
    fill(tmp_path, {"lists/b.jpg": b"b", "lists/sub/a.png": b"a", "away/c.jpg": b"c"})
    away = tmp_path / "away" / "c.jpg"
    lines = [
        "b.jpg",
        "",
        "sub/a.png",
        "b.jpg",
        "../away/c.jpg",
        str(away),
        "no.jpg",
        "x.md",
        "\0.jpg",
    ]
    source = tmp_path / "lists" / "faces.txt"
    source.write_text("\r\n".join(lines))
    packed = pack(plan_pack(source), tmp_path / "out", 10)
    assert list(members(packed.tars).items()) == [
        ("b.jpg", b"b"),
        ("sub/a.png", b"a"),
        (str(away)[1:], b"c"),
    ]
    told = reasons(packed)
    assert told["line 4: b.jpg"] == "listed again; line 1 counts"
    assert "'..'" in told["line 5: ../away/c.jpg"]
    assert told["line 7: no.jpg"] == "no such file"
    assert told["line 8: x.md"] == "not the name of an image"
    assert len(told) == 5


def test_columns_of_a_list_become_json(tmp_path):
    fill(tmp_path, {"a.jpg": b"a", "b.jpg": b"b", "a.json": b"of the folder: not listed"})
    (tmp_path / "l.csv").write_text('name,path,note\n"Ä, B",a.jpg,x\n,b.jpg\n')
    (tmp_path / "l.jsonl").write_text('{"path": "b.jpg"}\n{"path": "a.jpg", "age": 3}\n[1]\n{nope')
    found = members(pack(plan_pack(tmp_path / "l.csv"), tmp_path / "o1", 9).tars)
    assert found == {"a.jpg": b"a", "a.json": '{"name": "Ä, B", "note": "x"}\n'.encode()}
    plan = plan_pack(tmp_path / "l.jsonl")
    assert list(members(pack(plan, tmp_path / "o2", 9).tars).items()) == [
        ("b.jpg", b"b"), ("a.jpg", b"a"), ("a.json", b'{"age": 3}\n'),
    ]  # fmt: skip
    assert set(reasons(plan)) == {"line 3", "line 4"}
    (tmp_path / "bad.csv").write_text("file\na.jpg\n")
    with pytest.raises(UserError, match=r"bad\.csv:1: no column `path`; found: file"):
        plan_pack(tmp_path / "bad.csv")


# ---------------------------------------------------------------------------------------- zip


def make_zip(path: Path, files: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_a_zip_gives_the_bytes_of_its_folder(tree, tmp_path):
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
