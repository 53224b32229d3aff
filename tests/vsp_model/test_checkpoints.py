import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vsp_model import checkpoints, networks, registry
from vsp_model.bundle import open_bundle
from vsp_model.checkpoints import CheckpointError
from vsp_model.files import whole_or_absent

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "models" / "vspbfr-64.yaml"


@pytest.fixture(scope="module")
def model():
    config = registry.VSPBFRConfig.model_validate(yaml.safe_load(CONFIG.read_text())["model"])
    return registry.untrained(config, seed=3)


@pytest.fixture
def bundle(model, tmp_path):
    checkpoints.save(model, tmp_path / "model.safetensors", notes=["a note"])
    return tmp_path / "model.safetensors"


def parts_of(path):
    """Metadata and tensors of a bundle, to be changed and written back."""
    with safe_open(path, "pt") as file:
        info = json.loads(file.metadata()["vsp"])
    return info, load_file(path)


def rewrite(path, info, tensors):
    save_file(tensors, path, metadata={"vsp": json.dumps(info)})


def refusal(path):
    with pytest.raises(CheckpointError) as told:
        checkpoints.load(path)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_loaded_model_restores_identically(model, bundle):
    loaded = checkpoints.load(bundle)
    lq = 2 * torch.rand(2, 3, 64, 64) - 1
    assert torch.equal(loaded.restore(lq, ["a", "b"]), model.restore(lq, ["a", "b"]))
    assert not loaded.training
    assert loaded.config == model.config


def test_memory_begins_as_in_any_tensor(bundle):
    """Elsewhere vectorised loops round otherwise, and a loaded model gives other last bits."""
    info, tensors = parts_of(bundle)
    rewrite(bundle, info, tensors)  # the library's own order and padding
    for tensor in checkpoints.load(bundle).state_dict().values():
        assert tensor.data_ptr() % 64 == 0


def test_every_tensor_and_constant_is_there(model, bundle):
    loaded = checkpoints.load(bundle)
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, kind)()), dict(getattr(loaded, kind)())
        assert list(ours) == list(theirs)
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
            assert tensor.requires_grad == theirs[name].requires_grad, name


def test_a_loaded_model_can_be_trained_without_touching_the_file(bundle):
    before = checkpoints.sha256_of(bundle)
    loaded = checkpoints.load(bundle).train()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1)
    assert checkpoints.sha256_of(bundle) == before


def test_equal_models_give_equal_files_and_the_checksum_is_recorded(model, bundle, tmp_path):
    digest = checkpoints.save(model, tmp_path / "again.safetensors", notes=["a note"])
    assert digest == checkpoints.sha256_of(bundle) == checkpoints.verify(bundle)
    assert Path(f"{bundle}.sha256").read_text() == f"{digest}  model.safetensors\n"


def test_a_changed_file_fails_its_checksum(bundle):
    data = bytearray(bundle.read_bytes())
    data[-1] ^= 1
    bundle.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: sha256 .* changed or damaged"):
        checkpoints.verify(bundle)
    Path(f"{bundle}.sha256").unlink()
    with pytest.raises(CheckpointError, match="no checksum recorded"):
        checkpoints.verify(bundle)


def test_files_that_are_no_bundle_are_refused(bundle, tmp_path):
    whole = bundle.read_bytes()
    for size in (0, 5, 4000, len(whole) - 1):
        bundle.write_bytes(whole[:size])
        assert "not a whole safetensors file" in refusal(bundle)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "no bundle" in refusal(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError):
        checkpoints.load(tmp_path / "absent.safetensors")
    with pytest.raises(IsADirectoryError):
        checkpoints.load(tmp_path)


def test_wrong_tensors_are_named(bundle):
    info, tensors = parts_of(bundle)
    name = "restoration.to_rgb.weight"
    rewrite(bundle, info, {n: t for n, t in tensors.items() if n != name})
    assert f"missing tensor {name}" in refusal(bundle)
    rewrite(bundle, info, tensors | {"restoration.typo": torch.zeros(1)})
    assert "unknown tensor restoration.typo" in refusal(bundle)
    rewrite(bundle, info, tensors | {name: tensors[name][:, :-1].clone()})
    assert f"tensor {name} is float32 (3, 127, 1, 1), expected float32 (3, 128, 1, 1)" in refusal(
        bundle
    )
    rewrite(bundle, info, tensors | {name: tensors[name].double()})
    assert f"tensor {name} is float64" in refusal(bundle)
    rewrite(bundle, info, tensors | {"training.more": torch.zeros(1)})
    checkpoints.load(bundle)


def test_parts_are_kept_in_the_bundle_that_holds_them(model, tmp_path):
    parts = dict(model.named_children())
    for names, kind in (
        (("prior",), "stylegan2"),
        (("prior", "encoder"), "e4e"),
        (("prior", "encoder", "diffuser"), "prompt"),
        (("prior", "encoder", "diffuser", "restoration"), "vspbfr"),
    ):
        path = tmp_path / f"{kind}.safetensors"
        checkpoints.save_parts({n: parts[n] for n in names}, model.config, path)
        with open_bundle(path) as opened:
            assert opened.info.config.kind == kind
        for name in names:
            loaded, state = networks.load_part(path, name).state_dict(), parts[name].state_dict()
            assert all(torch.equal(loaded[n], t) for n, t in state.items())


def test_half_precision_is_a_way_to_store(model, tmp_path):
    path = tmp_path / "half.safetensors"
    checkpoints.save_parts(dict(model.named_children()), model.config, path, half=True)
    loaded = checkpoints.load(path)
    whole = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert path.stat().st_size < 0.6 * whole
    for name, tensor in model.state_dict().items():
        kept = loaded.state_dict()[name]
        assert kept.dtype == tensor.dtype
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(kept, expected)


def test_wrong_metadata_is_named(bundle):
    info, tensors = parts_of(bundle)
    info["config"]["prior"]["szie"] = 64
    rewrite(bundle, info, tensors)
    assert "prior.szie: Extra inputs are not permitted" in refusal(bundle)
    rewrite(bundle, {"config": {"kind": "vspbfr2"}}, tensors)
    assert "vspbfr2" in refusal(bundle)
    prior = info["config"]["prior"] | {"size": 64}
    del prior["szie"]
    rewrite(bundle, {"config": {"kind": "stylegan2", "prior": prior}}, tensors)
    assert "a bundle of kind 'stylegan2', expected 'vspbfr'" in refusal(bundle)


def test_shapes_are_checked_before_memory_is_taken(bundle):
    """The configuration asks for 64 TB; the tensors are small."""
    info, tensors = parts_of(bundle)
    info["config"]["restoration"]["global_dim"] = 2**33
    rewrite(bundle, info, tensors)
    assert "expected float32 (8589934592, " in refusal(bundle)


def test_half_precision_models_are_refused_before_writing(model, tmp_path):
    half = registry.build(model.config).half()
    with pytest.raises(CheckpointError, match=r"is float16 .*, expected float32"):
        checkpoints.save(half, tmp_path / "half.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def write():
        with whole_or_absent(path) as file:
            file.write(b"new")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_new_files_follow_the_umask(model, bundle):
    umask = os.umask(0)
    os.umask(umask)
    assert bundle.stat().st_mode & 0o777 == 0o666 & ~umask


def test_one_network_can_be_opened_alone(model, bundle):
    prior = networks.load_part(bundle, "prior")
    assert torch.equal(prior.constant, model.prior.constant)
    with pytest.raises(CheckpointError, match=r"bundle without training\.discriminator"):
        networks.load_part(bundle, "training.discriminator")


def test_loading_imports_neither_the_compiler_nor_torchvision(bundle):
    """Both take longer than torch itself; weights without data need no arithmetic."""
    code = (
        "import sys; from vsp_model import checkpoints; checkpoints.load(sys.argv[1]);"
        "sys.exit(bool({'torch._dynamo', 'torchvision', 'sympy'} & set(sys.modules)))"
    )
    root = CONFIG.parents[2]
    assert subprocess.run([sys.executable, "-c", code, bundle], cwd=root).returncode == 0
