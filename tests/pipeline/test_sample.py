import io

import pytest

from pipeline.sample import Sample, group, split_name
from pipeline.tar import Entry

NAMES = ["a.jpg", "d.e/f.g.jpg", "IMG_1.0.jpg", "x/y/z.tar.gz", ".hidden", "plain", "a/.b.jpg",
         "./a.jpg", "a b.PNG", "é.jpg", "a..jpg"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_split_as_webdataset_splits_them(name):
    from webdataset.tariterators import base_plus_ext

    expected = base_plus_ext(name)
    assert split_name(name) == (None if expected[0] is None else expected)


def samples(*names: str) -> list[Sample]:
    return list(group(Entry(name, name.encode()) for name in names))


def test_neighbours_of_one_key_are_one_sample():
    first, second = samples("a.json", "a.jpg", "b.png")
    assert [member.name for member in first.members] == ["a.json", "a.jpg"]
    assert first.image.data == b"a.jpg"
    assert (first.index, second.index, second.key) == (0, 1, "b")


def test_the_first_of_a_key_wins_and_later_ones_are_refused():
    found = samples("a.jpg", "b.jpg", "a.json", "b.jpg", "c.jpg", "c.JPG")
    assert [(s.key, bool(s.fault)) for s in found] == [
        ("a", False), ("b", False), ("a", True), ("b", True), ("c", False), ("c", True)
    ]  # fmt: skip
    assert all("again" in sample.fault and not sample.members for sample in found if sample.fault)
    assert [sample.index for sample in found] == list(range(6))


def test_every_entry_is_in_exactly_one_sample():
    entries = [Entry("a.jpg", b""), Entry("a.lnk", b"", "a symbolic link, not a file"),
               Entry("a.json", b""), Entry("nosuffix", b""), Entry("b.jpg", b"")]  # fmt: skip
    found = list(group(entries))
    named = [m.name for s in found for m in s.members] + [s.key for s in found if s.fault]
    assert sorted(named) == sorted(entry.name for entry in entries)
    assert [sample.index for sample in found] == [0, 1, 2, 3]


def test_webdataset_groups_a_clean_tar_alike(make):
    from webdataset.tariterators import group_by_keys, tar_file_expander

    members = {"a.jpg": b"1", "a.json": b"2", "d.e/f.x.png": b"3", "d.e/f.txt": b"4"}
    stream = io.BytesIO(make.tar_bytes(members))
    theirs = [
        {k: v for k, v in sample.items() if not k.startswith("__") or k == "__key__"}
        for sample in group_by_keys(tar_file_expander([{"url": "x", "stream": stream}]))
    ]
    ours = [
        {"__key__": s.key} | {split_name(m.name)[1].lower(): m.data for m in s.members}
        for s in group(Entry(name, data) for name, data in members.items())
    ]
    assert ours == theirs
