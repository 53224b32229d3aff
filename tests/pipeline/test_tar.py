import io
import os
import tarfile

import pytest

from pipeline.tar import TarFault, TarWriter, read_tar

LONG = "folder/" * 30 + "face.jpg"


def read(data: bytes):
    return list(read_tar(io.BytesIO(data)))


def stdlib_tar(members, **options) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def info(name: str, **fields) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


MEMBERS = {"a.jpg": b"x" * 700, "a.json": b"", "Gesicht ä.png": b"y" * 512, LONG: b"z"}


def test_what_is_written_is_read_back(make):
    entries = read(make.tar_bytes(MEMBERS))
    assert {entry.name: entry.data for entry in entries} == MEMBERS
    assert not any(entry.fault for entry in entries)


def test_tarfile_and_webdataset_read_what_is_written(make, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(make.tar_bytes(MEMBERS))
    with tarfile.open(path) as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == MEMBERS
        assert all((m.mtime, m.uid, m.gid, m.mode) == (0, 0, 0, 0o644) for m in tar)
    from webdataset.tariterators import tar_file_expander

    with path.open("rb") as stream:
        found = tar_file_expander([{"url": "a.tar", "stream": stream}])
        assert {m["fname"]: m["data"] for m in found if "fname" in m} == MEMBERS


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_is_read(kind):
    name = "a" * 80 + "/" + "b" * 90 + ".jpg"
    data = stdlib_tar([(info(name, mtime=1.5), b"one"), (info("ü.png"), b"two")], format=kind)
    assert [(e.name, e.data) for e in read(data)] == [(name, b"one"), ("ü.png", b"two")]


def test_bytes_depend_on_names_and_bodies_alone(make):
    assert make.tar_bytes(MEMBERS) == make.tar_bytes(dict(MEMBERS))
    assert make.tar_bytes(MEMBERS) != make.tar_bytes(MEMBERS | {"a.json": b" "})


def test_a_tar_cut_at_any_block_is_told_with_its_byte(make):
    data = make.tar_bytes(MEMBERS)
    whole = read(data)
    for end in range(0, len(data), 256):
        before = []
        with pytest.raises(TarFault, match=f"truncated at byte {end}$"):
            before.extend(read_tar(io.BytesIO(data[:end])))
        assert before == whole[: len(before)]


def test_any_damaged_header_byte_is_told(make):
    data = make.tar_bytes({"a.jpg": b"x", "b.jpg": b"y"})
    for at in range(0, 500, 7):
        broken = bytearray(data)
        broken[1024 + at] ^= 0x15
        with pytest.raises(TarFault, match="broken header at byte 1024"):
            read(bytes(broken))


def test_one_end_block_or_data_after_the_end_is_told(make):
    data = make.tar_bytes({"a.jpg": b"x"})
    with pytest.raises(TarFault, match=f"truncated at byte {len(data) - 512}"):
        read(data[:-512])
    with pytest.raises(TarFault, match="one end block instead of two at byte 1024"):
        read(data[:1536] + data)
    with pytest.raises(TarFault, match=f"data after the end blocks at byte {len(data)}"):
        read(data + data)
    assert len(read(data + bytes(10240))) == 1


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        (info("a.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a symbolic link"),
        (info("a.jpg", type=tarfile.LNKTYPE, linkname="b.jpg"), "a hard link"),
        (info("a.jpg", type=tarfile.CHRTYPE), "a character device"),
        (info("a.jpg", type=tarfile.BLKTYPE), "a block device"),
        (info("a.jpg", type=tarfile.FIFOTYPE), "a named pipe"),
        (info("a.jpg", type=tarfile.CONTTYPE), ""),
        (info("/abs/a.jpg"), "absolute name"),
        (info("x/../../a.jpg"), "leaves the archive"),
        (info(""), "empty name"),
        (info("x\udcff.jpg"), "not UTF-8"),
    ],
)
def test_an_entry_that_may_not_be_used_says_why(member, fault):
    data = stdlib_tar([(member, b""), (info("ok.jpg"), b"ok")], format=tarfile.GNU_FORMAT)
    bad, good = read(data)
    assert fault in bad.fault
    assert bool(bad.fault) == bool(fault)
    assert (good.name, good.data, good.fault) == ("ok.jpg", b"ok", "")


def test_folders_are_no_entries():
    data = stdlib_tar([(info("a", type=tarfile.DIRTYPE), b""), (info("a/b.jpg"), b"x")])
    assert [entry.name for entry in read(data)] == ["a/b.jpg"]


def test_a_member_over_the_budget_is_skipped_not_read(tmp_path, make):
    path = tmp_path / "big.tar"
    size = 300 * 2**20
    with path.open("wb") as file:
        header = tarfile.TarInfo("big.jpg")
        header.size = size
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.seek(size, os.SEEK_CUR)  # a hole: no disk is used
        TarWriter(file).add("ok.jpg", b"ok")
        TarWriter(file).finish()
    with path.open("rb") as file:
        big, good = read_tar(file)
    assert "over the budget" in big.fault
    assert not big.data
    assert good.data == b"ok"


def test_a_size_beyond_the_file_asks_for_no_memory():
    header = tarfile.TarInfo("a.jpg")
    header.size = 2**60
    with pytest.raises(TarFault, match="truncated at byte 512"):
        read(header.tobuf(tarfile.GNU_FORMAT))
