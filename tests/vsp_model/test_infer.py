import json
from pathlib import Path

import pytest
import torch

from vsp_model import infer
from vsp_model.checkpoints import hollow
from vsp_model.code_diffuser import CodeDiffuserConfig
from vsp_model.discriminator import DiscriminatorConfig
from vsp_model.identity import IdentityConfig
from vsp_model.networks import PARTS
from vsp_model.restoration import RestorationConfig
from vsp_model.style_encoder import StyleEncoderConfig
from vsp_model.stylegan2 import StyleGAN2Config

KEYS = Path(__file__).resolve().parents[1] / "parity_data" / "state_dict_keys.json"

PUBLISHED = [
    ("encoder", StyleEncoderConfig(), "style_encoder_decoder.pt", 0),
    ("prior", StyleGAN2Config(), "style_encoder_decoder.pt", 1),
    ("diffuser", CodeDiffuserConfig(), "code_diffuser.pt", 0),
    ("restoration", RestorationConfig(), "restoration_net.pt", 0),
    ("training.discriminator", DiscriminatorConfig(), "restoration_net.pt", 2),
    ("identity", IdentityConfig(), "Arcface.pth", 0),
]
SMALL = [
    (
        "encoder",
        StyleEncoderConfig(
            input_size=128,
            num_tokens=5,
            style_dim=24,
            pyramid_channels=40,
            stem_channels=6,
            stage_channels=(12, 20, 28, 40),
            stage_units=(2, 1, 3, 2),
            reduction=4,
        ),
    ),
    ("prior", StyleGAN2Config(size=16, style_dim=24, channels=(10, 12, 14), mapping_layers=3)),
    ("diffuser", CodeDiffuserConfig(style_dim=24, num_blocks=2)),
    (
        "restoration",
        RestorationConfig(
            size=32,
            style_dim=24,
            channels=(18, 15, 12, 9),
            global_dim=7,
            mapping_layers=2,
            dilations=(1, 2, 4),
        ),
    ),
    ("training.discriminator", DiscriminatorConfig(size=32, channels=(10, 8, 6, 4))),
    ("identity", IdentityConfig(blocks=(1, 2, 1, 1), embedding_dim=8)),
]


@pytest.mark.parametrize(("part", "config", "file", "index"), PUBLISHED, ids=lambda v: str(v)[:12])
def test_published_shapes_give_the_default_configuration(part, config, file, index):
    section = json.loads(KEYS.read_text())["checkpoints"][file]["sections"][index]
    shapes = {name: shape for name, (shape, _) in section["tensors"].items()}
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert PARTS[part].infer(tensors) == config
    specs = PARTS[part].published_specs(config)
    assert {name: list(spec.shape) for name, spec in specs.items()} == shapes
    assert list(specs) == list(shapes)


@pytest.mark.parametrize(("part", "config"), SMALL, ids=lambda v: str(v)[:12])
def test_any_size_and_width_is_found(part, config):
    assert PARTS[part].infer(PARTS[part].published_hollow(config)) == config


def test_one_misshapen_tensor_does_not_sway_the_others():
    config = dict(SMALL)["prior"]
    for name, tensor in PARTS["prior"].published_hollow(config).items():
        tensors = PARTS["prior"].published_hollow(config)
        tensors[name] = torch.empty(tuple(side + 1 for side in tensor.shape), device="meta")
        assert infer.infer_stylegan2(tensors) == config, name


def test_missing_numbers_are_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"^missing tensors: nothing is named .*modulation"
    ) as told:
        infer.infer_stylegan2({"to_rgbs.0.bias": torch.zeros(3)})
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match=r"^1 resolutions found"):
        infer.infer_discriminator({"encoder_input_convs.0.weight": torch.zeros(8, 3, 1, 1)})


def test_stages_of_equal_width_cannot_be_told_apart():
    config = dict(SMALL)["encoder"].model_copy(update={"stage_channels": (12, 20, 40, 40)})
    tensors = hollow(lambda: PARTS["encoder"].published_hollow(config))
    with pytest.raises(ValueError, match="3 different widths; expected 4 stages"):
        infer.infer_style_encoder(tensors)
