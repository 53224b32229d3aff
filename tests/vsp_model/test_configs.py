"""Configurations: frozen, strict, and refused with the value and what is expected."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from tests.vsp_model.tiny import some_faces, some_keys, tiny_config, tiny_model
from vsp_model import registry
from vsp_model.code_diffuser import CodeDiffuserConfig
from vsp_model.config import num_levels, num_style_slots, published_channels
from vsp_model.discriminator import DiscriminatorConfig
from vsp_model.registry import ModelConfig
from vsp_model.restoration import RestorationConfig
from vsp_model.style_encoder import StyleEncoderConfig
from vsp_model.stylegan2 import StyleGAN2Config
from vsp_model.vspbfr import VSPBFR, VSPBFRConfig

ROOT = Path(__file__).resolve().parents[2]
YAMLS = sorted((ROOT / "configs" / "models").glob("*.yaml"))
CONFIGS = [
    VSPBFRConfig,
    StyleEncoderConfig,
    CodeDiffuserConfig,
    StyleGAN2Config,
    RestorationConfig,
    DiscriminatorConfig,
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_a_typo_is_refused_and_nothing_can_be_changed(config):
    with pytest.raises(ValidationError, match="szie"):
        config(szie=64)
    made = config()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, next(iter(config.model_fields)), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: num_levels(4), "size 4: expected a power of two from 8 up"),
        (lambda: num_levels(48), "size 48: expected a power of two from 8 up"),
        (lambda: StyleGAN2Config(size=100), "size 100: expected a power of two"),
        (lambda: StyleGAN2Config(size=512), "channels: 9 values for size 512, expected 8"),
        (lambda: RestorationConfig(size=64), "channels: 8 values for size 64, expected 5"),
        (
            lambda: RestorationConfig(size=8, channels=(8, 6)),
            "channels: 6 can't be split among 4 dilation rates",
        ),
        (lambda: DiscriminatorConfig(size=64), "channels: 8 values for size 64, expected 5"),
        (lambda: StyleEncoderConfig(input_size=100), "input_size 100: expected a power of two"),
        (lambda: StyleEncoderConfig(input_size=16), "input_size 16: expected a power of two from"),
        (
            lambda: StyleEncoderConfig(pyramid_channels=256),
            "the last stage has 512 channels, expected pyramid_channels .256.",
        ),
        (lambda: CodeDiffuserConfig(num_steps=0), "num_steps"),
        (lambda: CodeDiffuserConfig(beta_end=1.0), "beta_end 1.0: expected 0 < beta_start"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def changed(part, **fields):
    return lambda: VSPBFRConfig(**{part: getattr(VSPBFRConfig(), part).model_copy(update=fields)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (changed("prior", style_dim=256), "prior.style_dim 256: expected the encoder's, 512"),
        (changed("restoration", style_dim=64), "restoration.style_dim 64: expected the encoder's"),
        (changed("diffuser", style_dim=64), "diffuser.style_dim 64: expected the encoder's, 512"),
        (changed("diffuser", num_tokens=16), "diffuser.num_tokens 16: expected the encoder's, 18"),
        (changed("encoder", input_size=128), "encoder.input_size 128: expected 256 at size 512"),
        (
            changed("prior", channels=(8, 8, 8, 8, 8, 8, 8, 8, 8)),
            "are summed and must agree",
        ),
        (
            lambda: VSPBFRConfig(diffuser=None, encoder=StyleEncoderConfig(num_tokens=14)),
            "encoder.num_tokens 14: size 512 reads 16",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_every_model_file_validates(path):
    models = TypeAdapter(ModelConfig)
    config = models.validate_python(yaml.safe_load(path.read_text())["model"])
    assert path.stem.startswith(f"{config.kind}-")
    sides = re.findall(r"-(\d+)", path.stem)
    assert sides in ([], [str(config.size)])
    assert models.validate_json(config.model_dump_json()) == config


def test_the_published_model_is_the_default():
    path = ROOT / "configs" / "models" / "vspbfr-512.yaml"
    assert VSPBFRConfig.model_validate(yaml.safe_load(path.read_text())["model"]) == VSPBFRConfig()
    assert published_channels(1024) == (512, 512, 512, 512, 512, 256, 128, 64, 32)
    assert (num_style_slots(512), num_style_slots(1024)) == (16, 18)


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(32, prior_size=64, style_dim=10, widths=(20, 12, 12, 4, 4)),
        tiny_config(64, style_dim=22, widths=(12, 20, 4, 8, 4)),
        tiny_config(128, prior_size=32, widths=(8, 8, 8, 8, 4, 4)),
        tiny_config(32, widths=(15, 9, 6, 3), dilations=(1, 3, 5)),
    ],
    ids=["32 below its prior", "64", "128 above its prior", "three rates"],
)
def test_any_size_and_odd_widths_build_and_run(config):
    model = registry.untrained(config)
    y = model.restore(some_faces(2, config.size), some_keys(2))
    assert y.shape == (2, 3, config.size, config.size)
    assert y.isfinite().all()


def test_untrained_is_seeded_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (registry.untrained(tiny_config(), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training
    pairs = zip(first.state_dict().items(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)
    assert not torch.equal(first.prior.constant, other.prior.constant)
    assert not torch.equal(first.encoder.latent_avg, torch.zeros(8, 16))


def test_build_makes_the_model_of_a_configuration():
    model = registry.build(tiny_config(diffuser=False))
    assert isinstance(model, VSPBFR)
    assert model.training
    assert model.diffuser is None
    assert tiny_model(64, prior_size=32).prior_stop == 32
