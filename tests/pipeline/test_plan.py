import os
from dataclasses import replace

import pytest

from pipeline.errors import UserError
from pipeline.plan import (
    Plan,
    Unit,
    check_apart,
    check_own,
    check_same,
    expand_braces,
    find_shards,
    limited,
    make_out,
    new_plan,
    photo_units,
    shard_units,
)
from pipeline.sidecar import Provenance
from pipeline.storage import LocalStore


@pytest.fixture
def folder(tmp_path):
    for name in ("b", "a", "c"):
        path = tmp_path / "in" / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path / "in"


def plan_of(folder, config='{"model":"x","seed":1}', job="restore"):
    units = shard_units(find_shards(str(folder)))
    return new_plan(job, Provenance(0, "m", "0", config), units, {})


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("x{008..011}.tar", ["x008.tar", "x009.tar", "x010.tar", "x011.tar"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("plain{x}.tar", ["plain{x}.tar"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern, words):
    assert list(expand_braces(pattern)) == words


@pytest.mark.parametrize("pattern", ["{}", "{}/*.tar", "{}/[a-c].tar", "{}/{{a,b,c}}.tar"])
def test_every_way_to_name_the_shards_finds_them_sorted(folder, pattern):
    found = find_shards(pattern.format(folder))
    assert [os.path.basename(path) for path in found] == ["a.tar", "b.tar", "c.tar"]


@pytest.mark.parametrize("name", ["missing.tar", "*.zip", "{a,missing}.tar"])
def test_what_is_not_there_is_one_line_with_the_fix(folder, name):
    with pytest.raises(UserError, match="no such shard; give"):
        find_shards(f"{folder}/{name}")


def test_a_folder_without_tars_and_a_file_of_another_kind_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (folder / "x.zip").touch()
    for name in ("empty", "in/x.zip"):
        with pytest.raises(UserError, match="vsp pack"):
            find_shards(str(tmp_path / name))


def test_two_shards_of_one_name_are_refused(folder, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.tar").touch()
    with pytest.raises(UserError, match="another shard is called a"):
        find_shards(f"{tmp_path}/*/a.tar")


def test_a_plan_is_read_back_as_it_was_stored(folder):
    plan = plan_of(folder)
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(UserError, match="by another version"):
        Plan.from_json(plan.to_json() | {"format": 2})


def test_other_settings_are_refused_with_every_field_and_both_values(folder):
    now = plan_of(folder, '{"model":"y","seed":2}')
    with pytest.raises(UserError) as told:
        check_same(plan_of(folder), now, "out")
    assert "model: x, now y; seed: 1, now 2" in str(told.value)
    assert "--restart" in str(told.value)


def test_another_input_is_refused_with_what_changed(folder):
    before = plan_of(folder)
    check_same(before, plan_of(folder), "out")
    (folder / "a.tar").write_bytes(b"longer")
    (folder / "b.tar").rename(folder / "d.tar")
    with pytest.raises(UserError, match=r"input b gone; input d new; input a changed; size"):
        check_same(before, plan_of(folder), "out")


def test_another_command_is_refused(folder):
    with pytest.raises(UserError, match="begun by `vsp degrade`"):
        check_same(plan_of(folder, job="degrade"), plan_of(folder), "out")


@pytest.mark.parametrize("place", ["in", "in/deep/er", "in/../in"])
def test_an_output_inside_the_input_is_refused(folder, tmp_path, place):
    with pytest.raises(UserError, match=r"(lies in|holds) the input"):
        check_apart(find_shards(str(folder)), str(tmp_path / place), str(folder))


def test_an_output_beside_a_single_tar_is_fine_but_not_its_own_folder(folder):
    sources = find_shards(f"{folder}/a.tar")
    check_apart(sources, str(folder / "out"))
    with pytest.raises(UserError, match="holds the input"):
        check_apart(sources, str(folder))


@pytest.mark.parametrize("name", ["photo.jpg", "a.tar", "notes/x"])
def test_foreign_files_in_a_new_output_are_refused(folder, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(UserError, match=f"{name}: foreign file"):
        check_own(LocalStore(tmp_path / "out"), None, set())


def test_a_file_in_the_place_of_a_pending_output_is_refused(folder, tmp_path):
    store, plan = LocalStore(tmp_path / "out"), plan_of(folder)
    store.write("a.tar", b"")
    check_own(store, plan, {"a"})
    with pytest.raises(UserError, match=r"a\.tar: foreign file"):
        check_own(store, plan, {"b"})


def test_an_output_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another OUT"):
        make_out(tmp_path / "file" / "out")


def test_a_limit_counts_records_over_shards(tmp_path, engine):
    for name in "abc":
        engine.shard(name, {f"{name}{n}.jpg": b"" for n in range(4)})
    units = shard_units(find_shards(str(tmp_path / "in")))
    assert [(unit.shard, unit.limit) for unit in limited(units, 6)] == [("a", 4), ("b", 2)]
    assert limited(units, 0) == units
    assert [unit.limit for unit in limited(units, 99)] == [4, 4, 4]


def test_photos_are_cut_into_chunks_of_neighbours(tmp_path):
    files = [f"{n}.jpg" for n in range(5)]
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    units = photo_units(tmp_path, files, 2)
    assert [unit.files for unit in units] == [("0.jpg", "1.jpg"), ("2.jpg", "3.jpg"), ("4.jpg",)]
    assert [unit.weight for unit in units] == [2, 2, 1]
    (tmp_path / "1.jpg").write_bytes(b"xy")
    changed = photo_units(tmp_path, files, 2)
    assert [a == b for a, b in zip(units, changed, strict=True)] == [False, True, True]
    assert replace(units[0], version="") == replace(changed[0], version="")


def test_a_unit_names_its_outputs():
    assert Unit("s", "in/s.tar", 1, "").outputs == ("s.tar", "s.parquet")
    assert Unit("photos-000000", "in", 1, "", ("a/b.jpg",)).outputs == ("a/b.jpg",)
