def test_a_folder_is_packed_and_the_manifest_named(vsp, tmp_path):
    for name in ("a.jpg", "b.png", "notes.txt"):
        (tmp_path / "src" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "src" / name).write_bytes(b"x")
    code, out, _ = vsp("pack", tmp_path / "src", tmp_path / "out", "-n")
    assert (code, (tmp_path / "out").exists()) == (0, False)
    assert "would pack 2 images in 1 shards, 1 other files left out" in out
    code, out, _ = vsp("pack", tmp_path / "src", tmp_path / "out", "--per-shard", "1")
    assert code == 0
    assert "manifest.json" in out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000000.tar", "000001.tar", "manifest.json"]
