"""What single stages do to single batches; the loop around them is tested elsewhere."""

import math

import pytest
import torch

from vsp_model.diffusion import sqrt_linear_schedule
from vsp_model.registry import build
from vsp_model.train import inversion
from vsp_model.train.batch import Batch
from vsp_model.train.config import RunConfig
from vsp_model.train.ema import decay_of, update_average
from vsp_model.train.encoder import EncoderConfig, EncoderStage, active_codes
from vsp_model.train.judges import Judges
from vsp_model.train.prior import PriorConfig, PriorStage
from vsp_model.train.reconstruction import (
    ReconstructionConfig,
    ReconstructionStage,
    scale_codes,
)
from vsp_model.train.restorer import RestorerConfig, RestorerStage
from vsp_model.train.stage import Moment
from vsp_model.vspbfr import VSPBFRConfig

SIZE = 32
MODEL = VSPBFRConfig.model_validate(
    {
        "encoder": {
            "input_size": SIZE,
            "num_tokens": 8,
            "style_dim": 8,
            "pyramid_channels": 16,  # oneDNN's backward pass crashes on nets of 4 and 8
            "stem_channels": 16,
            "stage_channels": [16] * 4,
            "stage_units": [1, 1, 1, 1],
            "reduction": 2,
        },
        "diffuser": {"num_tokens": 8, "style_dim": 8, "num_blocks": 1},
        "prior": {"size": SIZE, "style_dim": 8, "channels": [8] * 4, "mapping_layers": 1},
        "restoration": {
            "size": SIZE,
            "style_dim": 8,
            "channels": [8] * 4,
            "global_dim": 8,
            "mapping_layers": 1,
        },
    }
)
RUN = RunConfig(num_images=80, batch_size=4)
ADVERSARY = {"network": {"size": SIZE, "channels": [8] * 4}, "r1_interval": 2}


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return dict(build(MODEL).named_children())


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    lq, hq = (torch.rand(4, 3, SIZE, SIZE, generator=generator) * 2 - 1 for _ in range(2))
    names = tuple("abcd")
    return Batch(names, names, lq, hq, torch.full((4, 5, 2), math.nan), torch.full((4,), math.nan))


def moment(step=0, seen=0):
    return Moment(step, seen, RUN.num_images, 1)


def test_scaling_codes_changes_no_picture(parts, batch):
    encoder, prior = parts["encoder"].eval(), parts["prior"].eval()
    with torch.no_grad():
        encoder.latent_avg.normal_()
        codes = encoder(batch.hq)
        before = inversion.picture(prior, codes)
        scale_codes(encoder, prior, 3.0)
        scaled = encoder(batch.hq)
        torch.testing.assert_close(scaled, codes * 3)
        torch.testing.assert_close(inversion.picture(prior, scaled), before, atol=1e-4, rtol=1e-4)


def test_reconstruction_hands_on_codes_of_unit_size(parts, batch):
    stage = ReconstructionStage(
        ReconstructionConfig(model=MODEL, run=RUN, ema=None),
        {name: parts[name] for name in ("encoder", "prior")},
        Judges(),
    )
    stage.after_update(moment(), stage.accumulate(batch, moment()))
    encoder = stage.result()["encoder"].train()  # the statistics of this very batch
    with torch.no_grad():
        assert encoder(batch.hq).square().mean().item() == pytest.approx(1, rel=1e-3)


def test_tokens_join_one_after_the_other(parts, batch):
    config = EncoderConfig(
        model=MODEL, run=RUN, progressive={"first_images": 8, "every_images": 16}
    )
    stage = EncoderStage(config, {n: parts[n] for n in ("encoder", "prior")}, Judges())
    counts = [stage.num_active(moment(seen=seen)) for seen in (0, 7, 8, 23, 24, 10_000)]
    assert counts == [1, 1, 2, 2, 3, 8]
    codes = torch.randn(2, 8, 8)
    average = torch.randn(8, 8)
    masked, deltas = active_codes(codes, average, 3)
    own = masked - average
    torch.testing.assert_close(own[:, 3:], own[:, :1].expand(-1, 5, -1))
    torch.testing.assert_close(masked[:, :3], codes[:, :3])
    assert deltas.shape == (2, 2, 8)
    everything, _ = active_codes(codes, average, 8)
    torch.testing.assert_close(everything, codes)


def test_a_frozen_prior_gets_no_gradient(parts, batch):
    stage = EncoderStage(
        EncoderConfig(model=MODEL, run=RUN, progressive=None),
        {n: parts[n] for n in ("encoder", "prior")},
        Judges(),
    )
    stage.accumulate(batch, moment())
    assert all(p.grad is None for p in stage.prior.parameters())
    assert all(p.grad is not None for p in stage.encoder.styles[0].parameters())


def test_the_prior_plays_with_r1_and_path_lengths_in_their_turn(parts, batch):
    config = PriorConfig(
        model=MODEL,
        run=RUN,
        adversary={**ADVERSARY, "augment": {"interval": 1, "ramp_images": 8}},
        path_length={"interval": 3},
    )
    stage = PriorStage(config, {"prior": parts["prior"]}, Judges())
    found = [stage.accumulate(batch, moment(step)) for step in range(4)]
    assert [("r1" in terms) for terms in found] == [True, False, True, False]
    assert [("path_penalty" in terms) for terms in found] == [True, False, False, True]
    assert all(torch.isfinite(value) for terms in found for value in terms.values())
    figures = stage.after_update(moment(), found[0])
    assert 0 <= figures["augment_probability"] <= 1
    state = stage.extra_state()
    assert state["mean_length"] > 0
    assert stage.preview(batch)["drawn"].shape == (8, 3, SIZE, SIZE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_restorer_plays_in_either_precision(parts, batch, precision):
    config = RestorerConfig(
        model=MODEL,
        run=RUN.model_copy(update={"precision": precision}),
        weights={"l1": 1.0},
        adversary={**ADVERSARY, "r1_interval": 1},
    )
    torch.manual_seed(0)
    stage = RestorerStage(config, parts, Judges())
    terms = stage.accumulate(batch, moment())
    assert {"l1", "adversarial", "discriminator", "r1"} <= set(terms)
    assert all(torch.isfinite(value) for value in terms.values())
    for player in stage.players.values():
        assert torch.isfinite(player.gradient_norm())
        assert player.gradient_norm() > 0
    assert all(p.grad is None for name in ("encoder", "prior") for p in parts[name].parameters())


def test_a_part_counts_as_its_share(parts, batch):
    """Two halves with their share each add up to the whole batch's gradient, without batch norm."""
    config = PriorConfig(model=MODEL, run=RUN, adversary=ADVERSARY)
    stage = PriorStage(config, {"prior": parts["prior"]}, Judges())
    fake = torch.rand(4, 3, SIZE, SIZE) * 2 - 1

    def gradient(pieces):
        stage.players["discriminator"].zero_grad()
        for piece in pieces:
            share = Moment(1, 0, RUN.num_images, len(pieces))
            stage.adversary.accumulate(batch.hq[piece], fake[piece], share)
        return torch.cat([g.flatten() for g in stage.players["discriminator"].gradients()])

    whole = gradient([[0, 1, 2, 3]])
    stage.adversary.net.config = stage.adversary.net.config.model_copy(update={"group_size": 1})
    ungrouped = gradient([[0, 1, 2, 3]])
    halves = gradient([[0, 2], [1, 3]])
    torch.testing.assert_close(halves, ungrouped, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(whole, ungrouped)  # the deviation of a group does matter


def test_the_average_follows_its_half_life():
    assert decay_of(100, 10, 10_000, 0) == pytest.approx(0.5**0.1)
    assert decay_of(10_000, 10, 100, 0.1) == pytest.approx(0.5)
    average, net = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.9 * average.weight + 0.1 * net.weight
    update_average(average, net, 0.9)
    torch.testing.assert_close(average.weight, expected)


def test_one_step_begins_at_the_noisiest():
    schedule = sqrt_linear_schedule(1, 0.1, 0.99)
    assert schedule.betas.tolist() == pytest.approx([0.99])
    assert schedule.posterior_mean_coef1.tolist() == [1.0]
    assert schedule.posterior_mean_coef2.tolist() == [0.0]
