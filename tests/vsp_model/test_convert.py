"""Published checkpoints to a bundle and back, on small stand-ins (see ``conftest.py``)."""

import argparse

import pytest
import torch

from vsp_model import checkpoints, networks, registry
from vsp_model.bundle import open_bundle
from vsp_model.convert import convert, plan_conversion
from vsp_model.discriminator import Discriminator, DiscriminatorConfig
from vsp_model.export import export, plan_export
from vsp_model.files import CheckpointError
from vsp_model.stylegan2 import StyleGAN2


def flat(entries, prefix=""):
    """Every tensor of a published file with the names on the way to it, in order."""
    found = {}
    for name, value in entries.items():
        if isinstance(value, torch.Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, dict) and not name.endswith("optim"):
            found |= flat(value, f"{prefix}{name}/")
    return found


def assert_bit_equal(ours, theirs):
    ours, theirs = flat(ours), flat(theirs)
    assert sorted(ours) == sorted(theirs)
    for container in {name.rpartition("/")[0] for name in ours}:
        inside = [
            [n for n in names if n.rpartition("/")[0] == container] for names in (ours, theirs)
        ]
        assert inside[0] == inside[1], f"order in {container}"
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# ------------------------------------------------------------------------------------ both ways


def test_the_bundle_restores_like_the_model(stand_ins, model, published_files, tmp_path):
    convert(stand_ins.restoring(published_files), tmp_path / "b.safetensors")
    loaded = checkpoints.load(tmp_path / "b.safetensors")
    assert loaded.config == stand_ins.config
    lq = 2 * torch.rand(1, 3, 64, 64) - 1
    assert torch.equal(loaded.restore(lq, ["a"]), model.restore(lq, ["a"]))
    checkpoints.verify(tmp_path / "b.safetensors")


@pytest.mark.parametrize("training", [False, True])
def test_there_and_back_is_bit_equal(stand_ins, entries, published_files, tmp_path, training):
    paths = sorted(published_files.iterdir())
    convert(paths, tmp_path / "b.safetensors", training=training)
    back = export(tmp_path / "b.safetensors", tmp_path / "back")
    wanted = dict(entries)
    if not training:
        del wanted["Arcface.pth"]
        wanted["restoration_net.pt"] = {"g_ema": entries["restoration_net.pt"]["g_ema"]}
    assert sorted(path.name for path in back) == sorted(wanted)
    for path in back:
        held = torch.load(path, weights_only=True)
        assert_bit_equal(held, wanted[path.name])
        assert held.get("opts") == wanted[path.name].get("opts")
        assert held.get("ada_aug_p") == wanted[path.name].get("ada_aug_p")
    again = plan_conversion(back, training=training)
    assert again.info.config == stand_ins.config


def test_equal_files_give_equal_bundles(stand_ins, published_files, tmp_path):
    for name in ("a", "b"):
        convert(
            stand_ins.restoring(published_files), tmp_path / f"{name}.safetensors", training=True
        )
    digests = {checkpoints.sha256_of(path) for path in tmp_path.glob("*.safetensors")}
    assert len(digests) == 1


def test_what_is_left_behind_is_told(published_files):
    lines = "\n".join(plan_conversion(sorted(published_files.iterdir())).lines)
    for said in (
        "mapper_optim (optimiser state) dropped",
        "args (arguments) dropped",
        "iter (counter) dropped",
        "best_fid (record of the best run) dropped",
        "training.discriminator left out, --training keeps it",
        "training.restoration left out",
        "training.identity left out",
        "ada_aug_p left out",
        "state_dict: encoder.* -> encoder",
    ):
        assert said in lines
    kept = "\n".join(plan_conversion(sorted(published_files.iterdir()), training=True).lines)
    assert "left out" not in kept


def test_training_parts_open_as_our_networks(stand_ins, entries, published_files, tmp_path):
    path = tmp_path / "b.safetensors"
    convert(sorted(published_files.iterdir()), path, training=True)
    judge = networks.load_part(path, "training.discriminator")
    assert torch.equal(judge.logit.bias, entries["restoration_net.pt"]["d"]["final_linear.1.bias"])
    identity = networks.load_part(path, "training.identity")
    assert not any(parameter.requires_grad for parameter in identity.parameters())
    checkpoints.load(path)
    with open_bundle(path) as bundle:
        assert bundle.info.training.ada_aug_p == 0.25
        assert bundle.info.options == stand_ins.opts
        assert bundle.info.sources["code_diffuser.pt"] == checkpoints.sha256_of(
            published_files / "code_diffuser.pt"
        )


def test_the_identity_network_alone(entries, published_files, tmp_path):
    convert([published_files / "Arcface.pth"], tmp_path / "id.safetensors")
    net = networks.load_part(tmp_path / "id.safetensors", "identity")
    assert torch.equal(net.fc.weight, entries["Arcface.pth"]["fc.weight"])
    (back,) = export(tmp_path / "id.safetensors", tmp_path / "back")
    assert_bit_equal(torch.load(back), entries["Arcface.pth"])
    with pytest.raises(CheckpointError, match="kind 'identity'"):
        checkpoints.load(tmp_path / "id.safetensors")


# ------------------------------------------------------------------------ encoders and generators


def test_an_encoder_file_without_containers(stand_ins, entries, published_files, tmp_path):
    encoder = published_files / "style_encoder_decoder.pt"
    held = entries[encoder.name]
    torch.save(held["state_dict"] | {k: v for k, v in held.items() if k != "state_dict"}, encoder)
    convert(stand_ins.restoring(published_files), tmp_path / "b.safetensors")
    back = export(tmp_path / "b.safetensors", tmp_path / "back")
    assert_bit_equal(torch.load(back[0]), held)


def test_an_e4e_checkpoint_with_its_training_state(stand_ins, entries, published_files, tmp_path):
    held = entries["style_encoder_decoder.pt"] | {
        "latent_avg": torch.randn(16),
        "global_step": 200000,
        "optimizer": stand_ins.adam(),
        "best_val_loss": 0.3,
        "discriminator_state_dict": {"mlp.0.weight": torch.randn(4, 4)},
        "discriminator_optimizer_state_dict": stand_ins.adam(),
    }
    path = published_files / "e4e.pt"
    torch.save(held, path)
    lines = "\n".join(plan_conversion([path]).lines)
    assert "training.latent_discriminator.mlp.0.weight left out" in lines
    convert([path], tmp_path / "e4e.safetensors", training=True)
    encoder = networks.load_part(tmp_path / "e4e.safetensors", "encoder")
    assert torch.equal(encoder.latent_avg, held["latent_avg"].expand(10, 16))
    (back,) = export(tmp_path / "e4e.safetensors", tmp_path / "back")
    dropped = ("optimizer", "discriminator_optimizer_state_dict")
    assert_bit_equal(torch.load(back), {k: v for k, v in held.items() if k not in dropped})


def test_the_option_without_average_code_is_honoured(stand_ins, entries, published_files, tmp_path):
    def switch(held):
        held["opts"] = stand_ins.opts | {"start_from_latent_avg": False}

    convert(
        stand_ins.changed(published_files, "style_encoder_decoder.pt", switch),
        tmp_path / "b.safetensors",
    )
    assert not checkpoints.load(tmp_path / "b.safetensors").encoder.latent_avg.any()
    back = export(tmp_path / "b.safetensors", tmp_path / "back")
    assert_bit_equal(torch.load(back[0]), entries["style_encoder_decoder.pt"])

    def drop(held):
        del held["latent_avg"]

    convert(
        stand_ins.changed(published_files, "style_encoder_decoder.pt", drop),
        tmp_path / "c.safetensors",
    )
    back = export(tmp_path / "c.safetensors", tmp_path / "back-c")
    assert "latent_avg" not in torch.load(back[0])


def test_a_stylegan2_checkpoint_both_ways(stand_ins, tmp_path):
    prior = StyleGAN2(stand_ins.config.prior)
    judge = Discriminator(DiscriminatorConfig(size=128, channels=stand_ins.config.prior.channels))
    held = {
        "g": stand_ins.section("stylegan2.pt", 1, StyleGAN2(stand_ins.config.prior)),
        "d": stand_ins.section("stylegan2.pt", 2, judge),
        "g_ema": stand_ins.section("stylegan2.pt", 0, prior),
        "g_optim": stand_ins.adam(),
        "d_optim": stand_ins.adam(),
        "args": argparse.Namespace(size=128),
        "ada_aug_p": 0.0,
        "latent_avg": torch.randn(16),
    }
    assert "convs.0.0.weight" in held["d"]
    assert "convs.1.conv1.0.weight" in held["d"]
    torch.save(held, tmp_path / "550000.pt")
    convert([tmp_path / "550000.pt"], tmp_path / "p.safetensors", training=True)
    opened = networks.load_part(tmp_path / "p.safetensors", "prior")
    w = torch.randn(1, 12, 16)
    assert torch.equal(opened(w, image=True).image, prior(w, image=True).image)
    (back,) = export(tmp_path / "p.safetensors", tmp_path / "back")
    assert back.name == "stylegan2.pt"
    assert_bit_equal(torch.load(back), held)


def test_the_prior_can_come_from_stylegan2(stand_ins, entries, published_files, tmp_path):
    def strip(held):
        held["state_dict"] = {n: t for n, t in held["state_dict"].items() if n.startswith("enc")}

    prior = StyleGAN2(stand_ins.config.prior)
    torch.save({"g_ema": stand_ins.section("stylegan2.pt", 0, prior)}, tmp_path / "ffhq.pt")
    whole = [*stand_ins.restoring(published_files), tmp_path / "ffhq.pt"]
    assert "prior is in both" in stand_ins.refusal(whole)
    paths = stand_ins.changed(published_files, "style_encoder_decoder.pt", strip)
    assert "needs prior (in style_encoder_decoder.pt or" in stand_ins.refusal(paths)
    convert([*paths, tmp_path / "ffhq.pt"], tmp_path / "b.safetensors")
    assert torch.equal(checkpoints.load(tmp_path / "b.safetensors").prior.constant, prior.constant)


# --------------------------------------------------------------------------------- the way back


def told_of_export(model, tmp_path):
    checkpoints.save(model, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError) as told:
        plan_export(tmp_path / "b.safetensors")
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_trained_model_has_a_published_form(stand_ins, model, entries, tmp_path):
    checkpoints.save(model, tmp_path / "b.safetensors")
    back = export(tmp_path / "b.safetensors", tmp_path / "back")
    held = torch.load(back[0])
    assert_bit_equal(held, entries["style_encoder_decoder.pt"])
    assert held["opts"] == {k: stand_ins.opts[k] for k in list(stand_ins.opts)[:3]}


def test_what_the_published_files_cannot_say_is_refused(stand_ins, tmp_path):
    def variant(**parts):
        updates = {
            name: value
            if value is None
            else getattr(stand_ins.config, name).model_copy(update=value)
            for name, value in parts.items()
        }
        return registry.untrained(stand_ins.config.model_copy(update=updates))

    for parts, said in (
        ({"diffuser": None}, "diffuser is null"),
        ({"diffuser": {"num_steps": 8}}, "diffuser.num_steps is 8; the published files have no"),
        ({"restoration": {"facial_priors": False}}, "restoration.facial_priors is False"),
        ({"restoration": {"smart": False}}, "an ablated network has no published layout"),
        ({"encoder": {"stage_channels": (8, 8, 16, 24)}}, "encoder: no published form: body"),
    ):
        assert said in told_of_export(variant(**parts), tmp_path)


def test_existing_files_are_not_touched(model, tmp_path):
    checkpoints.save(model, tmp_path / "b.safetensors")
    (tmp_path / "code_diffuser.pt").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=r"code_diffuser\.pt: exists"):
        export(tmp_path / "b.safetensors", tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pt", ".safetensors", ".sha256"]
