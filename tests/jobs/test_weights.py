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
    assert files["code_diffuser.pt"]["looked_for"] == str(folder / "code_diffuser.pt")
    fan = files["2DFAN4-11f355bf06.pth.tar"]
    assert (fan["sha256"], fan["sha256_known"]) == (None, "11f355bf06")
    assert all(fan[name] for name in ("code_licence", "weight_licence", "training_data"))


def test_the_self_test_computes_what_is_there(vsp, folder):
    code, out, _ = vsp("weights", "self-test")
    assert code == 0
    assert out.startswith("ok     yunet_n_dynamic.onnx: points of the astronaut: 203.4 103.6 ")
    folder.mkdir()
    (folder / "codeformer.pth").write_bytes(b"x")
    (folder / "mini_xception_fer2013.safetensors").write_bytes(b"<html>")
    (folder / "mine.safetensors").write_bytes(b"of one's own: nothing is known of it")
    code, out, _ = vsp("weights", "self-test")
    verdicts = {line.split()[1].rstrip(":"): line.split()[0] for line in out.splitlines()}
    assert code == 1
    assert verdicts == {
        "yunet_n_dynamic.onnx": "ok", "codeformer.pth": "none",
        "mini_xception_fer2013.safetensors": "FAILED",
    }  # fmt: skip
    code, out, _ = vsp("weights", "self-test", "codeformer.pth", "--json")
    assert (code, json.loads(out)[0]["line"]) == (0, "no golden value known")


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
        (["weights", "self-test", "codeformer.pth"], "get it from github.com/sczhou/CodeFormer"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(vsp, folder, arguments, told):
    code, out, err = vsp(*arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["list", "add", "verify", "self-test"])
def test_every_subcommand_has_help_with_an_example(vsp, name):
    code, out, _ = vsp("weights", name, "--help")
    assert code == 0
    assert f"Example: vsp weights {name}" in out


def test_a_model_of_own_clean_faces_is_fitted_and_used(vsp, tmp_path):
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    (tmp_path / "clean").mkdir()
    for number in range(8):
        noise = rng.integers(0, 256, (128, 128, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "clean" / f"{number}.png"), cv2.GaussianBlur(noise, (0, 0), 2))
    (tmp_path / "clean" / "broken.png").write_bytes(b"no picture")
    model = tmp_path / "own.npz"

    code, out, err = vsp("weights", "fit-niqe", tmp_path / "clean", model)

    assert code == 0
    assert "fitted on 8 images" in out
    assert "broken: left out" in err
    scores = []
    for options in ([], ["--niqe-model", model]):
        folder = tmp_path / f"out{len(options)}"
        arguments = ["score", tmp_path / "clean", folder, "--metrics", "niqe-small", "--no-report"]
        assert vsp(*arguments, *options)[0] == 3  # the broken one
        (cell,) = json.loads((folder / "results.json").read_text())["cells"]
        scores.append(cell["value"])
    assert scores[1] < scores[0]  # nearer to what it was fitted on than to faces
