"""Both sides of a training stage with the same weights, and the proof that they compute the same.

The architecture is the published one made small: 128 pixels, style width 128, all blocks, all four
dilation rates; at stages 1 to 3 a prior of twice the working size, as 1024 is to 512.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from published.layers import channels_at
from torch import Tensor, nn
from training_naive import (
    Critic,
    NaiveDiffuserStage,
    NaiveEncoderStage,
    NaiveJudges,
    NaivePriorStage,
    NaiveRestorerStage,
    NaiveStage,
    naive_discriminator,
    published_twins,
    total,
)

from vsp_model.config import MIN_SIZE, num_levels, num_style_slots
from vsp_model.losses import LPIPS, LPIPSConfig
from vsp_model.mobilefacenet import MobileFaceNet
from vsp_model.randomness import draw, noise_maps
from vsp_model.registry import untrained
from vsp_model.train import inversion
from vsp_model.train.adversary import AdversaryConfig
from vsp_model.train.batch import Batch, Parts
from vsp_model.train.config import RunConfig
from vsp_model.train.diffuser import DiffuserConfig, DiffuserStage
from vsp_model.train.encoder import EncoderConfig, EncoderStage
from vsp_model.train.judges import FaceEmbedder, Judges
from vsp_model.train.prior import PriorConfig, PriorStage
from vsp_model.train.restorer import RestorerConfig, RestorerStage
from vsp_model.train.stage import Moment, Pictures, Stage, normal
from vsp_model.vspbfr import FORMAT, VSPBFR, VSPBFRConfig

SIZE = 128
STYLE_DIM = 128  # the least that the published encoder can be built with
STAGES = ("prior", "encoder", "diffuser", "restorer")
WITH_ADVERSARY = ("prior", "restorer")
TIMED_R1_INTERVAL = 2  # as often as steps without: both kinds are timed
TOLERANCE = 1e-3  # relative; gradients pass through about 100 layers in float32
SMALL = 1e-3  # less is compared absolutely: two faces are one to an untrained identity network


class Setup(NamedTuple):
    """What both sides are built by."""

    width: int = 64
    """Channels of the maps up to 64 pixels; half of it at 128."""
    lpips: str = "squeeze"
    batch_size: int = 4
    part_size: int | None = None
    num_steps: int = 4
    checked: bool = False
    """For comparing: a prior of the working size, no drop-out, no style mixing."""


class Sides(NamedTuple):
    """A stage and its naive double, equal weights."""

    model: VSPBFR
    ours: Stage
    naive: NaiveStage


# ------------------------------------------------------------------------------------- faces


def smooth_faces(count: int) -> Batch:
    """Smooth random pictures of (count, 3, SIZE, SIZE) in [-1, 1], the same at every call."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2 * count, 3, 16, 16, generator=generator) * 2 - 1
    fine = F.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(-1, 1)
    lq, hq = fine.contiguous(memory_format=FORMAT).chunk(2)
    names = tuple(f"face-{i}" for i in range(count))
    return Batch(
        names, names, lq, hq, torch.full((count, 5, 2), math.nan), torch.full((count,), math.nan)
    )


class SameFaces:
    """A ``BatchSource`` that costs nothing: the same batch at every step."""

    def __init__(self, batch_size: int) -> None:
        self.batch = smooth_faces(batch_size)

    def batches(self, parts: Parts, first_step: int) -> Iterator[list[Batch]]:
        """See ``BatchSource``."""
        own = [part_of(self.batch, part, parts.count) for part in parts.own]
        return itertools.repeat(own)


def part_of(batch: Batch, part: int, count: int) -> Batch:
    """Every ``count``-th record from ``part`` on."""
    records = slice(part, None, count)
    lq, hq = (t[records].contiguous(memory_format=FORMAT) for t in (batch.lq, batch.hq))
    points, quality = batch.points[records], batch.quality[records]
    return Batch(batch.keys[records], batch.streams[records], lq, hq, points, quality)


class Strict:
    """A log that takes no excuses: a step that is left out would be a fast one."""

    def scalars(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Nobody reads them."""

    def pictures(self, images_seen: int, columns: Pictures) -> None:
        """There are none."""

    def say(self, line: str) -> None:
        """Anything that is said is trouble."""
        raise SystemExit(line)


# ------------------------------------------------------------------------------------- building


def model_config(name: str, setup: Setup) -> VSPBFRConfig:
    """The published architecture at 128 pixels."""
    prior_size = SIZE if setup.checked or name == "prior" else 2 * SIZE
    tokens = num_style_slots(prior_size)
    shared = {"style_dim": STYLE_DIM}
    return VSPBFRConfig.model_validate(
        {
            "encoder": {
                "input_size": SIZE,
                "num_tokens": tokens,
                "pyramid_channels": STYLE_DIM,
                "stem_channels": STYLE_DIM // 8,
                "stage_channels": [STYLE_DIM // n for n in (8, 4, 2, 1)],
                **shared,
            },
            "diffuser": {"num_tokens": tokens, **shared},
            "prior": {"size": prior_size, "channels": widths(prior_size, setup), **shared},
            "restoration": {
                "size": SIZE,
                "channels": widths(SIZE, setup),
                "global_dim": 2 * STYLE_DIM,
                "dropout": 0.0 if setup.checked else 0.5,
                **shared,
            },
        }
    )


def widths(size: int, setup: Setup) -> tuple[int, ...]:
    """Channels at 4, 8, ..., size."""
    sides = (MIN_SIZE << level for level in range(num_levels(size)))
    return tuple(channels_at(side, 2, setup.width) for side in sides)


def our_stage(name: str, setup: Setup, r1_interval: int) -> tuple[VSPBFR, Stage]:
    """Our side, seeded; batch statistics of its encoder are those of a batch."""
    model = untrained(model_config(name, setup))
    settle(model)
    num_images = setup.num_steps * setup.batch_size
    shared = {
        "model": model.config,
        "run": RunConfig(
            num_images=num_images,
            batch_size=setup.batch_size,
            part_size=setup.part_size,
            checkpoint_images=num_images,
        ),
    }
    adversary = AdversaryConfig(
        network={"size": SIZE, "channels": widths(SIZE, setup)}, r1_interval=r1_interval
    )
    torch.manual_seed(0)  # of judges and discriminator
    judges, parts = random_judges(setup.lpips), dict(model.named_children())
    if name == "prior":
        return model, PriorStage(PriorConfig(**shared, adversary=adversary), parts, judges)
    if name == "encoder":
        return model, EncoderStage(EncoderConfig(**shared, progressive=None), parts, judges)
    if name == "diffuser":
        return model, DiffuserStage(DiffuserConfig(**shared), parts, judges)
    config = RestorerConfig(**shared, adversary=adversary, mixing=not setup.checked)
    return model, RestorerStage(config, parts, judges)


@torch.no_grad()
def settle(model: VSPBFR) -> None:
    """Give an untrained model statistics that keep its numbers in range, and noise an effect."""
    norms = [m for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.encoder.train()(smooth_faces(4).lq)
    for norm in norms:
        norm.momentum = 0.1
    for key, parameter in model.named_parameters():
        if key.endswith("noise.strength"):
            parameter.fill_(0.1)


def random_judges(lpips: str) -> Judges:
    """LPIPS and an identity network with random trunks: what they cost is what counts."""
    perceptual = LPIPS(LPIPSConfig(net=lpips)).to(memory_format=FORMAT)
    return Judges(perceptual, FaceEmbedder(MobileFaceNet()).to(memory_format=FORMAT))


def both_sides(name: str, setup: Setup, r1_interval: int = TIMED_R1_INTERVAL) -> Sides:
    """A stage, and the naive one with its weights."""
    model, ours = our_stage(name, setup, r1_interval)
    twins = published_twins(model.config, dict(model.named_children()))
    judges = NaiveJudges(ours.judges)
    naive: NaiveStage
    if isinstance(ours, EncoderStage):
        naive = NaiveEncoderStage(ours.config, twins, judges)
    elif isinstance(ours, DiffuserStage):
        naive = NaiveDiffuserStage(ours.config, twins, judges)
    else:
        adversary = cast(RestorerStage | PriorStage, ours).adversary
        assert adversary is not None
        critic = Critic(naive_discriminator(adversary.net), adversary.config)
        if isinstance(ours, PriorStage):
            naive = NaivePriorStage(ours.config, twins, critic)
        else:
            assert isinstance(ours, RestorerStage)
            naive = NaiveRestorerStage(ours.config, twins, judges, critic)
    return Sides(model, ours, naive)


# ------------------------------------------------------------------------------------ comparing

Figures = dict[str, float]


def largest_difference(name: str, setup: Setup) -> tuple[str, float]:
    """Losses and gradient norm of one batch on both sides, the same random numbers.

    Returns:
        Where they differ most, and how much, in units of the tolerance.
    """
    sides = both_sides(name, setup._replace(checked=True))
    batch = smooth_faces(setup.batch_size)
    compute = {
        "prior": _prior_figures,
        "encoder": _encoder_figures,
        "diffuser": _diffuser_figures,
        "restorer": _restorer_figures,
    }[name]
    ours, naive = compute(sides, batch)
    gaps = {n: abs(ours[n] - v) / max(abs(v), SMALL) for n, v in naive.items()}
    worst = max(gaps, key=lambda n: gaps[n])
    return worst, gaps[worst] / TOLERANCE


def _moment(sides: Sides) -> Moment:
    return Moment(0, 0, sides.ours.config.run.num_images, 1)


def _ours(sides: Sides, batch: Batch, player: str) -> Figures:
    terms = sides.ours.accumulate(batch, _moment(sides))
    figures = {name: term.item() for name, term in terms.items()}
    return figures | {"gradient": sides.ours.players[player].gradient_norm().item()}


def _naive(terms: dict[str, Tensor], loss: Tensor, net: nn.Module) -> Figures:
    loss.backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return {n: t.item() for n, t in (terms | {"loss": loss, "gradient": norm}).items()}


def _silence(sides: Sides, batch: Batch) -> list[Tensor]:
    """Noise maps of zeros for the whole prior, whose picture ours draws without noise."""
    return [torch.zeros(len(batch.keys), 1, s, s) for s in sides.model.prior.noise_sides()]


def _encoder_figures(sides: Sides, batch: Batch) -> tuple[Figures, Figures]:
    naive = cast(NaiveEncoderStage, sides.naive)
    terms = naive.terms(batch, _silence(sides, batch))
    return _ours(sides, batch, "encoder"), _naive(terms, total(terms, naive.weights), naive.encoder)


def _diffuser_figures(sides: Sides, batch: Batch) -> tuple[Figures, Figures]:
    naive = cast(NaiveDiffuserStage, sides.naive)
    shape = (sides.model.config.encoder.num_tokens, STYLE_DIM)
    drawn = normal(batch.streams, shape, 0, "diffuser")
    terms = naive.terms(batch, drawn, _silence(sides, batch))
    return _ours(sides, batch, "diffuser"), _naive(
        terms, total(terms, naive.weights), naive.diffuser
    )


def _restorer_figures(sides: Sides, batch: Batch) -> tuple[Figures, Figures]:
    naive = cast(NaiveRestorerStage, sides.naive)
    random = draw(sides.model.random_shapes, batch.streams)
    maps = noise_maps(sides.model.prior.noise_sides(), batch.streams, 0, "prior")
    w_plus, features = naive.guide(batch, random.start, maps)
    z, noise = [random.z[:, 0]], random.restoration_noise
    fake = naive.net(batch.lq, w_plus, features, z, noise=noise)
    terms = naive.terms(batch, fake)
    loss = total(terms, naive.weights)
    terms |= _critic_terms(naive.critic, batch.hq, fake)
    return _ours(sides, batch, "restoration"), _naive(terms, loss, naive.net)


def _prior_figures(sides: Sides, batch: Batch) -> tuple[Figures, Figures]:
    ours, naive = cast(PriorStage, sides.ours), cast(NaivePriorStage, sides.naive)
    prior, moment = ours.prior, _moment(sides)
    random = draw(sides.model.random_shapes, batch.streams)
    maps = noise_maps(prior.noise_sides(), batch.streams, 0, "prior")
    z, slots = random.z[:, 0], prior.config.num_slots
    codes = prior.mapping(z)[:, None].expand(-1, slots, -1)
    image = inversion.picture(prior, codes, maps)
    loss = ours.adversary.judge(image, moment)
    ours.backward(loss, moment)
    found = {"loss": loss} | ours.adversary.accumulate(batch.hq, image, moment)
    figures = {n: t.item() for n, t in found.items()}
    figures["gradient"] = ours.players["prior"].gradient_norm().item()
    fake, _ = naive.net(naive.net.style(z)[:, None].repeat(1, slots, 1), maps)
    terms = _critic_terms(naive.critic, batch.hq, fake)
    return figures, _naive(terms, naive.critic.judge(fake), naive.net)


def _critic_terms(critic: Critic, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    critic.net.requires_grad_(True)
    terms = {"discriminator": critic.loss(real, fake.detach()), "r1": critic.penalty(real)}
    critic.net.requires_grad_(False)
    return terms
