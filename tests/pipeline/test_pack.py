"""`vsp pack`: folders and lists into shards, stopped and run again, nothing lost."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
from packed_tree import TREE, Stop, fill, make_tree, members, reasons, samples, stop_after

from pipeline.errors import RunError, UserError
from pipeline.gather import member_names, plan_pack
from pipeline.pack import pack
from pipeline.sample import split_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "src")


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
