import json


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def test_a_folder_is_packed_and_the_manifest_named(vsp, tmp_path):
    fill(tmp_path / "src", "a.jpg", "b.png", "notes.md")
    code, out, _ = vsp("pack", tmp_path / "src", tmp_path / "out", "-n")
    assert (code, (tmp_path / "out").exists()) == (0, False)
    assert "would pack 2 images in 2 shards" not in out
    assert "would pack 2 images in 1 shards, 1 other files left out" in out
    code, out, _ = vsp("pack", tmp_path / "src", tmp_path / "out", "--per-shard", "1")
    assert code == 0
    assert "manifest.json" in out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000000.tar", "000001.tar", "_vsp", "manifest.json"]
    code, out, _ = vsp("pack", tmp_path / "src", tmp_path / "out", "--per-shard", "1")
    assert code == 0
    assert "nothing to do" in out


def test_what_is_left_out_is_told_and_the_exit_code_says_so(vsp, tmp_path):
    source = fill(tmp_path / "src", "a.jpg")
    (source / "b.jpg").symlink_to(tmp_path / "nothing")
    code, out, err = vsp("pack", source, tmp_path / "out", "--json", "-n")
    assert code == 3
    assert json.loads(out)["left_out"] == [{"name": "b.jpg", "reason": "a link to nothing"}]
    code, out, err = vsp("pack", source, tmp_path / "out", "--json")
    assert code == 3
    assert err == "left out b.jpg: a link to nothing\n"
    told = json.loads(out)
    assert (told["num_records"], told["num_shards"]) == (1, 1)
    assert told["left_out"] == [{"name": "b.jpg", "reason": "a link to nothing"}]
