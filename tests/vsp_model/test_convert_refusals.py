"""What `convert` refuses, always in one line and by name (stand-ins: see ``conftest.py``)."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from vsp_model import networks
from vsp_model.convert import convert, plan_conversion
from vsp_model.restoration import RestorationNet

# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("file", "container", "name"),
    [
        ("style_encoder_decoder.pt", "state_dict", "encoder.latlayer1.bias"),
        ("style_encoder_decoder.pt", "state_dict", "decoder.convs.3.conv.weight"),
        ("code_diffuser.pt", "att_mapper", "att_mapper.2.beta_.1.weight"),
        ("restoration_net.pt", "g_ema", "convs.1.ModulatedConv2ds.2.weight"),
        ("restoration_net.pt", "g", "final_transfer.bias"),
        ("restoration_net.pt", "d", "final_linear.1.bias"),
        ("Arcface.pth", None, "layer4.0.bn2.running_mean"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(
    stand_ins, published_files, file, container, name
):
    def inside(held):
        return held if container is None else held[container]

    def shape(held):
        inside(held)[name] = inside(held)[name].new_zeros(7, *inside(held)[name].shape)

    def remove(held):
        del inside(held)[name]

    def add(held):
        inside(held)[f"{name}_typo"] = inside(held)[name]

    path = published_files / file
    original = path.read_bytes()
    for change, said in (
        (shape, f"tensor {name} is float32 (7, "),
        (remove, f"missing tensor {name}"),
        (add, f"unknown tensor {name}_typo"),
    ):
        path.write_bytes(original)
        stand_ins.changed(published_files, file, change)
        told = stand_ins.refusal([path])
        assert str(path) in told
        assert said in told


def test_unknown_sections_and_stray_entries_are_named(stand_ins, published_files):
    encoder = published_files / "style_encoder_decoder.pt"
    original = encoder.read_bytes()
    for change, said in (
        (lambda held: held.update(extra_net={}), "unknown section 'extra_net'"),
        (lambda held: held["state_dict"].update(loose=torch.zeros(1)), "unknown tensor loose"),
        (lambda held: held["state_dict"].update({"encoder.x": 3}), "encoder.x: a int, expected"),
        (lambda held: held.update(latent_avg=torch.zeros(9, 16)), "latent_avg is (9, 16), exp"),
        (lambda held: held.pop("latent_avg"), "missing tensor latent_avg"),
        (
            lambda held: held.update(opts=stand_ins.opts | {"stylegan_size": 1024}),
            "stylegan_size 1024, but",
        ),
        (
            lambda held: held.update(opts=stand_ins.opts | {"encoder_type": "GradualStyleEncoder"}),
            "encoder_type 'GradualStyleEncoder', expected 'Encoder4Editing'",
        ),
    ):
        encoder.write_bytes(original)
        stand_ins.changed(published_files, encoder.name, change)
        assert said in stand_ins.refusal([encoder])


def test_another_filter_is_refused(stand_ins, published_files):
    def soften(held):
        held["state_dict"]["decoder.convs.0.conv.blur.kernel"] *= 0.5

    paths = stand_ins.changed(published_files, "style_encoder_decoder.pt", soften)
    assert "convs.0.conv.blur.kernel: not the 1-3-3-1 FIR kernel" in stand_ins.refusal(paths)


def test_half_a_restorer_is_refused(stand_ins, published_files):
    names = ["style_encoder_decoder.pt", "restoration_net.pt"]
    told = stand_ins.refusal([published_files / name for name in names])
    assert "a restorer also needs diffuser (in code_diffuser.pt)" in told
    twice = [published_files / names[0]] * 2
    assert "is in both" in stand_ins.refusal(twice)


def test_parts_that_do_not_fit_are_refused(stand_ins, published_files):
    other = RestorationNet(
        stand_ins.config.restoration.model_copy(update={"channels": (16, 12, 8, 4, 4)})
    )
    section = {"g_ema": stand_ins.section("restoration_net.pt", 0, other)}
    torch.save(section, published_files / "restoration_net.pt")
    assert "don't belong together: " in stand_ins.refusal(stand_ins.restoring(published_files))


class Hostile:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_by_name_and_not_run(stand_ins, tmp_path, zipped):
    mark, path = tmp_path / "it-ran", tmp_path / "code_diffuser.pt"
    torch.save({"att_mapper": Hostile(mark)}, path, _use_new_zipfile_serialization=zipped)
    assert "asks for posix.system" in stand_ins.refusal([path])
    path.write_bytes(pickle.dumps(Hostile(mark), protocol=2))
    assert "asks for posix.system" in stand_ins.refusal([path])
    assert not mark.exists()


def test_the_stand_in_of_the_hostile_pickle_would_run(tmp_path):
    """Else the test above shows nothing."""
    path = tmp_path / "code_diffuser.pt"
    torch.save({"att_mapper": Hostile(tmp_path / "it-ran")}, path)
    torch.load(path, weights_only=False)
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("value", [np.array([{}], dtype=object), np.zeros(3), np.str_("x")])
def test_numpy_beyond_numbers_is_refused(stand_ins, tmp_path, value):
    path = tmp_path / "code_diffuser.pt"
    torch.save({"att_mapper": {}, "iter": value}, path)
    assert "numpy" in stand_ins.refusal([path])


def test_files_that_are_no_checkpoint_are_refused(stand_ins, entries, published_files, tmp_path):
    path = published_files / "code_diffuser.pt"
    whole = path.read_bytes()
    for data in (b"", b"<!DOCTYPE html><html>sign in</html>", whole[:-1000], whole[:3000]):
        path.write_bytes(data)
        assert "checkpoint" in stand_ins.refusal([path])
    torch.save([1, 2], path)
    assert "holds a list, expected named entries" in stand_ins.refusal([path])
    torch.save({"weights": torch.zeros(1)}, path)
    assert "none of the known files: it holds weights" in stand_ins.refusal([path])
    with pytest.raises(FileNotFoundError):
        plan_conversion([tmp_path / "absent.pt"])


def test_files_of_the_older_format_are_read(entries, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(entries["Arcface.pth"], path, _use_new_zipfile_serialization=False)
    convert([path], tmp_path / "id.safetensors")
    net = networks.load_part(tmp_path / "id.safetensors", "identity")
    assert torch.equal(net.fc.weight, entries["Arcface.pth"]["fc.weight"])
