from pathlib import Path

import pytest
import torch
import yaml

from vsp_model import checkpoints, registry
from vsp_model.idm.config import IDMConfig

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "models" / "vspbfr-64.yaml"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A model whose encoder stages differ in width, else it has no published form."""
    values = yaml.safe_load(CONFIG.read_text())["model"]
    values["encoder"]["stage_channels"] = [16, 32, 64, 128]
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    checkpoints.save(registry.untrained(registry.VSPBFRConfig.model_validate(values)), path)
    return path


@pytest.fixture(scope="module")
def published(bundle, tmp_path_factory):
    from vsp_model.export import export

    return export(bundle, tmp_path_factory.mktemp("published"))


def test_there_and_back(vsp, bundle, published, tmp_path):
    out = tmp_path / "new" / "again.safetensors"
    code, said, _ = vsp("convert", *published, "--out", out)
    assert code == 0
    assert f"sha256 {checkpoints.verify(out)} (in again.safetensors.sha256)" in said
    ours, theirs = checkpoints.load(out).state_dict(), checkpoints.load(bundle).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    code, said, _ = vsp("convert", out, "--to-published", tmp_path / "back")
    assert code == 0
    for path in published:
        digest = checkpoints.sha256_of(tmp_path / "back" / path.name)
        assert f"{path.name}, sha256 {digest}" in said


def test_a_dry_run_lists_and_writes_nothing(vsp, bundle, published, tmp_path):
    code, said, _ = vsp("convert", *published, "-o", tmp_path / "x" / "b.safetensors", "-n")
    assert code == 0
    assert f"{published[1]}: att_mapper: * -> diffuser, 72 tensors" in said
    assert "would write" in said
    code, said, _ = vsp("convert", bundle, "--to-published", tmp_path / "y", "--dry-run")
    assert code == 0
    assert "restoration_net.pt: restoration -> g_ema: *" in said
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(vsp, bundle, published, tmp_path):
    new = tmp_path / "b.safetensors"
    for arguments, said in (
        ((*published,), "give --out or --to-published"),
        ((*published, "-o", new, "--to-published", tmp_path), "give --out or --to-published"),
        ((*published, "-o", tmp_path / "b.pt"), "expected a name that ends in .safetensors"),
        ((*published, "-o", bundle), "exists; name another file or remove it"),
        ((published[0], published[2], "-o", new), "needs diffuser (in code_diffuser.pt)"),
        ((bundle, "-o", new), "a bundle, expected a published file"),
        ((published[0], "--to-published", tmp_path), "not a whole safetensors file"),
        ((bundle, bundle, "--to-published", tmp_path), "takes one bundle, got 2 files"),
        ((bundle, "--to-published", published[0].parent), "exists; name another folder"),
    ):
        code, _, told = vsp("convert", *arguments)
        assert (code, told.count("\n")) == (2, 1), told
        assert told.startswith("vsp: ")
        assert said in told
    code, _, told = vsp("convert", tmp_path / "absent.pt", "-o", new)
    assert (code, told) == (1, f"vsp: {tmp_path / 'absent.pt'}: No such file or directory\n")
    assert not new.exists()


def test_a_damaged_bundle_is_not_exported(vsp, bundle, tmp_path):
    damaged = tmp_path / bundle.name
    data = bytearray(bundle.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    record = Path(f"{bundle}.sha256")
    (tmp_path / record.name).write_bytes(record.read_bytes())
    code, _, told = vsp("convert", damaged, "--to-published", tmp_path / "back")
    assert code == 2
    assert "changed or damaged" in told
    assert not (tmp_path / "back").exists()


@pytest.fixture(scope="module")
def sibling(tmp_path_factory):
    """An untrained IDM, small."""
    unet = {"size": 32, "unshuffle": 2, "channels": 16, "multipliers": [1, 2], "num_blocks": 1,
            "attention_sides": [], "groups": 8, "condition": {}}  # fmt: skip
    path = tmp_path_factory.mktemp("idm") / "model.safetensors"
    config = IDMConfig.model_validate({"unet": unet, "param": "residual_x0", "steps": 5})
    checkpoints.save(registry.untrained(config), path)
    return path


def test_half_the_bytes_with_other_habits(vsp, sibling, tmp_path):
    out = tmp_path / "half.safetensors"
    code, _, told = vsp("convert", sibling, "--half", "--set", "steps=2", "--set",
                        "unet.condition.default=0.9", "--notice", "terms", "-o", out)  # fmt: skip
    assert code == 0, told
    assert out.stat().st_size < 0.7 * sibling.stat().st_size
    before, after = checkpoints.load(sibling), checkpoints.load(out)
    assert (after.config.steps, after.config.condition.default) == (2, 0.9)
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor.half().float()), name


def test_what_has_no_published_form_or_would_be_another_network_is_refused(vsp, sibling, tmp_path):
    out = tmp_path / "no.safetensors"
    for arguments, said in (
        ((sibling, "--half", "--set", "unet.channels=32", "-o", out), "makes another network"),
        ((sibling, "--half", "--set", "stepz=2", "-o", out), "did you mean 'steps'?"),
        ((sibling, "--set", "steps=2", "-o", out), "--notice and --set go with --half"),
        ((sibling, "--to-published", tmp_path / "p"), "'idm', which has no published form"),
    ):
        code, _, told = vsp("convert", *arguments)
        assert (code, told.count("\n")) == (2, 1), told
        assert said in told
    assert not out.exists()
