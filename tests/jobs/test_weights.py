import json

import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VSP_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_list_tells_what_is_missing_and_where_to_get_it(vsp, folder):
    code, out, _ = vsp("weights", "list")
    assert code == 0
    assert "missing    restoration_net.pt: VSPBFR: restoration network; for vsp convert" in out
    assert "get it from huggingface.co/Wanglong2/VSPBFR" in out
    assert "bundled    yunet_n_dynamic.onnx (0.3 MB)" in out
    assert not folder.exists()
    code, out, _ = vsp("weights", "list", "--json")
    files = {file["name"]: file for file in json.loads(out)["files"]}
    assert files["code_diffuser.pt"]["state"] == "missing"
    assert files["code_diffuser.pt"]["source"]


def test_add_and_verify(vsp, folder, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"weights")
    code, out, _ = vsp("weights", "add", tmp_path / "mine.safetensors", "-n")
    assert (code, folder.exists()) == (0, False)
    assert "would add" in out
    for told in ("added", "was there already"):
        code, out, _ = vsp("weights", "add", tmp_path / "mine.safetensors")
        assert code == 0
        assert told in out
    code, out, _ = vsp("weights", "verify")
    assert (code, out) == (0, "2 of 2 files are as they should be\n")
    (folder / "mine.safetensors").write_bytes(b"damaged")
    code, out, err = vsp("weights", "verify")
    assert (code, out) == (1, "1 of 2 files are as they should be\n")
    assert "changed or damaged; add it again" in err
    code, out, _ = vsp("weights", "verify", "--json")
    assert code == 1
    assert [f["state"] for f in json.loads(out)["files"]] == ["bundled", "damaged"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["weights", "add", "missing.pt"], "missing.pt: no such file"),
        (["weights", "get"], "No such command 'get'"),
        (["weights", "add"], "Missing argument 'FILE'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(vsp, folder, arguments, told):
    code, out, err = vsp(*arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["list", "add", "verify"])
def test_every_subcommand_has_help_with_an_example(vsp, name):
    code, out, _ = vsp("weights", name, "--help")
    assert code == 0
    assert f"Example: vsp weights {name}" in out
