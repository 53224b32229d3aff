import pytest

from pipeline.errors import UserError
from pipeline.plan import expand_braces, find_shards, make_out, make_plan
from pipeline.shards import Provenance, ShardWriter
from pipeline.stage import Task


@pytest.fixture
def folder(tmp_path):
    for name in ("b", "a", "c"):
        path = tmp_path / "in" / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path / "in"


def finish(out, shard, config="{}"):
    with ShardWriter(Task(shard, out, out), Provenance(0, "m", "0", config)) as writer:
        writer.commit()


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
    assert [path.name for path in found] == ["a.tar", "b.tar", "c.tar"]


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


def test_finished_shards_are_told_from_pending_ones(folder, tmp_path):
    out = tmp_path / "out"
    sources = find_shards(str(folder))
    assert len(make_plan(sources, out, "{}").pending) == 3
    assert not out.exists()
    finish(out, "b")
    (out / "b.tar").rename(out / "b.gone")  # killed between the two renames
    (out / "b.gone").unlink()
    finish(out, "a")
    plan = make_plan(sources, out, "{}")
    assert [task.shard for task in plan.finished] == ["a"]
    assert [task.shard for task in plan.pending] == ["b", "c"]


def test_other_settings_are_refused_with_the_difference(folder, tmp_path):
    finish(tmp_path / "out", "a", '{"model":"x","seed":1}')
    with pytest.raises(UserError, match=r"seed: 1, now 2\); choose"):
        make_plan(find_shards(str(folder)), tmp_path / "out", '{"model":"x","seed":2}')


@pytest.mark.parametrize("place", ["in", "in/deep/er", "in/../in"])
def test_an_output_inside_the_input_is_refused(folder, tmp_path, place):
    with pytest.raises(UserError, match=r"(lies in|holds) the input"):
        make_plan(find_shards(str(folder)), tmp_path / place, "{}", root=folder)


def test_an_output_beside_a_single_tar_is_fine_but_not_its_own_folder(folder):
    sources = find_shards(f"{folder}/a.tar")
    assert make_plan(sources, folder / "out", "{}").pending
    with pytest.raises(UserError, match="holds the input"):
        make_plan(sources, folder, "{}")


@pytest.mark.parametrize("name", ["photo.jpg", "a.tar", "notes"])
def test_foreign_files_in_the_output_are_refused(folder, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).touch()
    with pytest.raises(UserError, match="foreign file"):
        make_plan(find_shards(str(folder)), tmp_path / "out", "{}")


def test_an_output_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another OUT"):
        make_out(tmp_path / "file" / "out")
