"""Images of folders and shards, by key, with their sha256."""

import hashlib

import pytest

from pipeline.errors import UserError
from pipeline.scoring.sources import find_images, read_place


@pytest.fixture
def folder(tmp_path, make):
    for number in range(3):
        path = tmp_path / "faces" / ("sub" if number == 2 else "") / f"f{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make.png(number))
    return tmp_path / "faces"


@pytest.fixture
def shards(tmp_path, make):
    place = tmp_path / "shards"
    place.mkdir()
    records = {
        "f0.png": make.png(0), "f0.hq.png": make.png(10), "f0.json": b"{}",
        "f1.png": make.png(1), "sub/f2.jpg": make.jpeg(2),
    }  # fmt: skip
    (place / "a.tar").write_bytes(make.tar_bytes(records))
    return place


def test_a_folder_gives_keys_without_suffix_and_the_files_sha256(folder):
    found = find_images(str(folder))

    assert list(found) == ["f0", "f1", "sub/f2"]
    for key, place in found.items():
        data = (folder / f"{key}.png").read_bytes()
        assert place.sha256 == hashlib.sha256(data).hexdigest()
        assert read_place(place) == data


def test_a_shard_gives_the_first_image_of_a_record_or_its_truth(shards, make):
    inputs, truths = find_images(str(shards)), find_images(str(shards), truths=True)

    assert list(inputs) == list(truths) == ["f0", "f1", "sub/f2"]
    assert read_place(inputs["f0"]) == make.png(0)
    assert read_place(truths["f0"]) == make.png(10)
    assert read_place(truths["f1"]) == read_place(inputs["f1"]) == make.png(1)


def test_a_regex_takes_a_methods_ending_off(tmp_path, make):
    (tmp_path / "a_restored.png").write_bytes(make.png())

    assert list(find_images(str(tmp_path), key_regex="(.*)_restored")) == ["a"]


@pytest.mark.parametrize(
    ("names", "regex", "fault"),
    [
        (["a.png", "a.jpg"], "", "two images have the key 'a'"),
        (["a_1.png", "a_2.png"], "(.*)_.", "two images have the key 'a'"),
        (["a.png"], "(.*)_x", "does not match the whole of 'a'"),
        (["a.png"], "(", "--key-regex"),
        ([], "", "no photo in this folder"),
    ],
)
def test_what_cannot_be_paired_is_one_line(tmp_path, make, names, regex, fault):
    for number, name in enumerate(names):
        data = make.png(number) if name.endswith("png") else make.jpeg(number)
        (tmp_path / name).write_bytes(data)

    with pytest.raises(UserError) as error:
        find_images(str(tmp_path), key_regex=regex)

    assert fault in str(error.value)
    assert "\n" not in str(error.value)


def test_a_broken_shard_is_refused(tmp_path, make):
    (tmp_path / "a.tar").write_bytes(make.tar_bytes({"a.png": make.png()})[:-2000])

    with pytest.raises(UserError, match=r"a\.tar: .*pack it again"):
        find_images(str(tmp_path))


def test_a_record_without_its_restored_image_is_not_taken_for_its_truth(tmp_path, make):
    records = {"f0.hq.png": make.png(0), "f1.png": make.png(1), "f1.hq.png": make.png(2)}
    (tmp_path / "a.tar").write_bytes(make.tar_bytes(records))

    assert list(find_images(str(tmp_path))) == ["f1"]
    assert list(find_images(str(tmp_path), truths=True)) == ["f0", "f1"]


@pytest.mark.parametrize("name", ["a.b", "50%", "x~1", "%2E"])
def test_a_folder_and_its_shards_have_the_same_keys(tmp_path, make, name):
    from pathlib import PurePosixPath

    from pipeline.gather import member_names

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / f"{name}.png").write_bytes(make.png())
    (member,) = member_names([PurePosixPath(f"{name}.png")])
    (tmp_path / "a.tar").write_bytes(make.tar_bytes({member: make.png()}))

    assert list(find_images(str(tmp_path / "a.tar"))) == [name]
    assert list(find_images(str(tmp_path / "folder"))) == [name]
