"""Small stand-ins of the published files, with all that real ones hold besides networks."""

import argparse
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vsp_model import registry
from vsp_model.code_diffuser import CodeDiffuserConfig
from vsp_model.convert import plan_conversion
from vsp_model.discriminator import Discriminator, DiscriminatorConfig
from vsp_model.files import CheckpointError
from vsp_model.networks import PARTS
from vsp_model.published import store_published
from vsp_model.published_files import SECTIONS, their_spelling
from vsp_model.restoration import RestorationConfig, RestorationNet
from vsp_model.style_encoder import StyleEncoderConfig
from vsp_model.stylegan2 import StyleGAN2Config
from vsp_model.vspbfr import VSPBFRConfig

WIDTHS = (16, 12, 8, 8, 4)
CONFIG = VSPBFRConfig(
    encoder=StyleEncoderConfig(
        input_size=64,
        num_tokens=10,
        style_dim=16,
        pyramid_channels=24,
        stem_channels=8,
        stage_channels=(8, 12, 16, 24),
        stage_units=(1, 1, 2, 1),
        reduction=4,
    ),
    diffuser=CodeDiffuserConfig(num_tokens=10, style_dim=16),
    prior=StyleGAN2Config(size=128, style_dim=16, channels=(*WIDTHS, 4), mapping_layers=2),
    restoration=RestorationConfig(
        size=64, style_dim=16, channels=WIDTHS, global_dim=8, mapping_layers=2
    ),
)
OPTS = {
    "encoder_type": "Encoder4Editing",
    "stylegan_size": 128,
    "start_from_latent_avg": True,
    "device": "cuda:0",
    "lpips_lambda": 0.8,
    "progressive_steps": [0, 20000],
    "checkpoint_path": None,
}


def section(file, index, module):
    """A section of a published file, from one of our networks."""
    section = SECTIONS[file][index]
    layout = PARTS[section.part].layout(module.config)
    tensors = store_published(layout, module.state_dict())
    return {their_spelling(file, section, name): tensor for name, tensor in tensors.items()}


def adam():
    """Optimiser state in the shape that torch gives it."""
    weight = torch.nn.Parameter(torch.randn(3))
    optimiser = torch.optim.Adam([weight], lr=0.0016, betas=(0.0, 0.99))
    weight.sum().backward()
    optimiser.step()
    return optimiser.state_dict()


def restoring(folder):
    return [
        folder / f"{n}.pt" for n in ("style_encoder_decoder", "code_diffuser", "restoration_net")
    ]


def refusal(paths, **options):
    with pytest.raises(CheckpointError) as told:
        plan_conversion(paths, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


def changed(folder, name, change):
    """Change one file of a folder in place; returns the paths that a restorer needs."""
    held = torch.load(folder / name, weights_only=False)
    change(held)
    torch.save(held, folder / name)
    return restoring(folder)


@pytest.fixture(scope="session")
def stand_ins():
    """The helpers that more than one test file needs."""
    return SimpleNamespace(
        config=CONFIG,
        opts=OPTS,
        section=section,
        adam=adam,
        restoring=restoring,
        refusal=refusal,
        changed=changed,
    )


@pytest.fixture(scope="session")
def model():
    model = registry.untrained(CONFIG, seed=1)
    with torch.no_grad():
        for tensor in model.state_dict().values():  # noise strengths start as zeros
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model


@pytest.fixture(scope="session")
def entries(model):
    """What each published file holds."""
    torch.manual_seed(2)
    from vsp_model.identity import IdentityConfig, IdentityNet  # imports torchvision

    identity_net = IdentityNet(IdentityConfig(blocks=(1, 1, 1, 1), embedding_dim=8))
    copy, judge = (
        RestorationNet(CONFIG.restoration),
        Discriminator(DiscriminatorConfig(size=64, channels=WIDTHS)),
    )
    names = "style_encoder_decoder.pt", "code_diffuser.pt", "restoration_net.pt", "Arcface.pth"
    encoder, diffuser, restoration, identity = names
    return {
        encoder: {
            "state_dict": section(encoder, 0, model.encoder) | section(encoder, 1, model.prior),
            "latent_avg": model.encoder.latent_avg.clone(),
            "opts": OPTS,
        },
        diffuser: {
            "att_mapper": section(diffuser, 0, model.diffuser),
            "mapper_optim": adam(),
            "args": argparse.Namespace(size=256, lr=0.0016, distributed=False),
            "iter": 120000,
            "best_path": "checkpoint/best.pt",
            "best_fid": np.float64(12.5),
        },
        restoration: {
            "g": section(restoration, 1, copy),
            "d": section(restoration, 2, judge),
            "g_ema": section(restoration, 0, model.restoration),
            "g_optim": adam(),
            "d_optim": adam(),
            "args": argparse.Namespace(size=512, mixing=0.9, ckpt=None),
            "ada_aug_p": np.float32(0.25),
            "iter": np.int64(500000),
        },
        identity: section(identity, 0, identity_net),
    }


@pytest.fixture
def published_files(entries, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    for name, held in entries.items():
        torch.save(held, folder / name)
    return folder
