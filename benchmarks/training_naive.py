"""The training stages as the published trainers compute them: the baseline of `training.py`.

What is wasteful there is kept: the networks of ``benchmarks/published`` in default memory format,
noise drawn where none is given, the prior rendered to its full size with its picture even where
only features are read, gradients computed into it in the diffuser's step, one encoder pass for each
picture, a restorer that runs once for the discriminator and again for itself, R1 as a step of its
own with its own forward pass, an Adam and an average that go from tensor to tensor.

As published, the other frozen networks get no gradients, and the discriminator's step runs the
generator without a graph. Restorer and prior take the discriminator's step first.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from published import (
    PublishedCodeDiffuser,
    PublishedRestorer,
    PublishedStyleEncoder,
    PublishedStyleGAN2,
)
from published.layers import BiasedActivation, EqualConv2d, EqualLinear, Fir, Noise
from torch import Tensor, nn

from vsp_model.discriminator import Discriminator
from vsp_model.published import (
    Layout,
    code_diffuser_layout,
    discriminator_layout,
    restoration_layout,
    store_published,
    style_encoder_layout,
    stylegan2_layout,
)
from vsp_model.train.adversary import AdversaryConfig
from vsp_model.train.batch import Batch
from vsp_model.train.diffuser import DiffuserConfig
from vsp_model.train.encoder import EncoderConfig
from vsp_model.train.judges import Judges
from vsp_model.train.prior import PriorConfig
from vsp_model.train.restorer import RestorerConfig
from vsp_model.vspbfr import VSPBFRConfig

Nets = Mapping[str, nn.Module]
Terms = dict[str, Tensor]


class NaiveStage(Protocol):
    """A stage whose steps can be timed."""

    def step(self, batch: Batch, *, penalised: bool) -> None:
        """One step on the whole batch; ``penalised``: R1 is due."""


# ----------------------------------------------------------------------------------- networks


class StridedConv(EqualConv2d):
    """Equalised convolution of stride 2, without padding."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) -> (B, n_out, (H - k) / 2 + 1, ...)."""
        return F.conv2d(x, self.weight * self.scale, None, 2)


def conv_layer(
    n_in: int, n_out: int, k: int, *, reduce: bool = False, activate: bool = True
) -> nn.Sequential:
    """The discriminator's layer: [filter,] convolution[, activation], each by itself."""
    pad = k // 2 + 1
    layers: list[nn.Module] = [Fir(gain=1.0, up=1, pad=(pad, pad))] if reduce else []
    layers.append((StridedConv if reduce else EqualConv2d)(n_in, n_out, k))
    return nn.Sequential(*layers, *([BiasedActivation(n_out)] if activate else []))


class NaiveResBlock(nn.Module):
    """Residual block that halves the side."""

    def __init__(self, n_in: int, n_out: int) -> None:
        """Set up a block from `n_in` to `n_out` channels."""
        super().__init__()
        self.conv1 = conv_layer(n_in, n_in, 3)
        self.conv2 = conv_layer(n_in, n_out, 3, reduce=True)
        self.skip = conv_layer(n_in, n_out, 1, reduce=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) -> (B, n_out, H / 2, W / 2)."""
        return (self.conv2(self.conv1(x)) + self.skip(x)) / 2**0.5


class NaiveDiscriminator(nn.Module):
    """The discriminator; tensor names are the official ones."""

    def __init__(self, channels: Sequence[int]) -> None:
        """Set up one for pictures of 4 * 2^(len(channels) - 1) pixels, channels from 4 px up."""
        super().__init__()
        width = list(channels)[::-1]
        self.encoder_input_convs = conv_layer(3, width[0], 1)
        blocks = (NaiveResBlock(*pair) for pair in itertools.pairwise(width))
        self.encoder_convs = nn.Sequential(*blocks)
        self.final_conv = conv_layer(width[-1] + 1, width[-1], 3)
        hidden = EqualLinear(width[-1] * 16, width[-1], activate=True)
        self.final_linear = nn.Sequential(hidden, EqualLinear(width[-1], 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> logits (B, 1)."""
        x = self.encoder_convs(self.encoder_input_convs(image))
        b, _, h, w = x.shape
        group = min(b, 4)
        deviation = x.view(group, b // group, -1, h, w)
        deviation = torch.sqrt(deviation.var(0, unbiased=False) + 1e-8).mean([1, 2, 3])
        deviation = deviation.view(-1, 1, 1, 1).repeat(group, 1, h, w)
        return self.final_linear(self.final_conv(torch.cat([x, deviation], 1)).flatten(1))


def published_twins(config: VSPBFRConfig, parts: Nets) -> dict[str, nn.Module]:
    """The published networks with the weights of ours, by our parts' names; all frozen.

    The encoder's average code, no tensor of the published network, is its buffer ``latent_avg``.
    """
    dim, width = config.encoder.style_dim, config.restoration.channels[0]
    encoder = PublishedStyleEncoder(config.encoder.input_size, dim, config.encoder.num_tokens)
    assert config.diffuser is not None
    twins: dict[str, tuple[nn.Module, Layout]] = {
        "encoder": (encoder, style_encoder_layout(config.encoder)),
        "diffuser": (PublishedCodeDiffuser(dim), code_diffuser_layout(config.diffuser)),
        "prior": (
            PublishedStyleGAN2(config.prior.size, dim, 2, width),
            stylegan2_layout(config.prior),
        ),
        "restoration": (
            PublishedRestorer(config.size, dim, 2, width),
            restoration_layout(config.restoration),
        ),
    }
    for name, (net, layout) in twins.items():
        _fill(net, layout, parts[name])
    cast(PublishedRestorer, twins["restoration"][0]).final_linear[1].p = config.restoration.dropout
    encoder.register_buffer("latent_avg", cast(Tensor, parts["encoder"].latent_avg).clone())
    return {name: net.eval().requires_grad_(False) for name, (net, _) in twins.items()}


def naive_discriminator(ours: Discriminator) -> NaiveDiscriminator:
    """The naive discriminator with the weights of ours."""
    net = NaiveDiscriminator(ours.config.channels)
    _fill(net, discriminator_layout(ours.config), ours)
    return net


def _fill(net: nn.Module, layout: Layout, ours: nn.Module) -> None:
    tensors = store_published(layout, ours.state_dict())
    net.load_state_dict(
        {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    )


# ------------------------------------------------------------------------------ shared by stages


class NaiveJudges:
    """The same judges in default memory format; LPIPS's package as it comes."""

    def __init__(self, judges: Judges) -> None:
        """Copy ours."""
        assert judges.lpips is not None
        format = torch.contiguous_format
        self.lpips = copy.deepcopy(judges.lpips.package).to(memory_format=format)
        self.embedder = copy.deepcopy(cast(nn.Module, judges.embedder)).to(memory_format=format)

    def perceptual(self, image: Tensor, target: Tensor) -> Tensor:
        """Mean over the batch."""
        return self.lpips(image, target).mean()

    def identity(self, image: Tensor, batch: Batch) -> Tensor:
        """Mean of |1 - cosine|."""
        scale = image.shape[-1] / batch.hq.shape[-1]
        target = self.embedder(batch.hq, batch.points).detach()
        found = self.embedder(image, batch.points * scale)
        return (1 - F.cosine_similarity(found, target)).abs().mean()


def total(terms: Terms, weights: Mapping[str, float]) -> Tensor:
    """The weighted sum."""
    return cast(Tensor, sum(weights[name] * term for name, term in terms.items()))


def move(adam: torch.optim.Adam, loss: Tensor) -> None:
    """One step down the gradient of a loss."""
    adam.zero_grad()
    loss.backward()
    adam.step()


def adam_of(net: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Adam as PyTorch has it where nobody asks for more."""
    return torch.optim.Adam(net.parameters(), lr=lr, betas=betas)


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the average, one parameter after the other."""
    new = dict(net.named_parameters())
    for name, kept in average.named_parameters():
        kept.mul_(decay).add_(new[name], alpha=1 - decay)


def random_styles(count: int, width: int, probability: float) -> list[Tensor]:
    """One z or, with the given probability, two: (B, D) each."""
    return [torch.randn(count, width) for _ in range(1 + (random.random() < probability))]


class Critic:
    """The discriminator's side, which restorer and prior share."""

    def __init__(self, net: NaiveDiscriminator, config: AdversaryConfig) -> None:
        """Take the network over."""
        self.net = net
        self.config = config
        self.adam = adam_of(net, config.adam.lr, config.adam.betas)

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logistic, with a forward pass for each."""
        return F.softplus(self.net(fake)).mean() + F.softplus(-self.net(real)).mean()

    def penalty(self, real: Tensor) -> Tensor:
        """R1, with a forward pass of its own."""
        real = real.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.net(real).sum(), real, create_graph=True)
        return gradient.pow(2).reshape(len(real), -1).sum(1).mean()

    def step(self, real: Tensor, fake: Tensor, *, penalised: bool) -> None:
        """The discriminator's step, and R1's when it is due."""
        self.net.requires_grad_(True)
        move(self.adam, self.loss(real, fake))
        if penalised:
            weight = self.config.r1_gamma / 2 * self.config.r1_interval
            move(self.adam, weight * self.penalty(real))
        self.net.requires_grad_(False)

    def judge(self, fake: Tensor) -> Tensor:
        """The generator's loss."""
        return F.softplus(-self.net(fake)).mean()


# ------------------------------------------------------------------------------------- stages


class NaiveEncoderStage:
    """Stage 1: all tokens active, the prior frozen."""

    def __init__(self, config: EncoderConfig, twins: Nets, judges: NaiveJudges) -> None:
        """Take the networks over."""
        self.judges = judges
        self.weights = dict(config.weights)
        self.prior = twins["prior"]
        self.encoder = twins["encoder"].train().requires_grad_(True)
        self.adam = adam_of(self.encoder, config.adam.lr, config.adam.betas)

    def terms(self, batch: Batch, noise: Noise = None) -> Terms:
        """Losses of a batch."""
        own = self.encoder(batch.lq)
        image, _ = self.prior(own + self.encoder.latent_avg, noise)
        image = F.adaptive_avg_pool2d(image, batch.hq.shape[-1])
        deltas = [torch.norm(own[:, i] - own[:, 0], dim=1).mean() for i in range(1, own.shape[1])]
        return {
            "l2": F.mse_loss(image, batch.hq),
            "lpips": self.judges.perceptual(image, batch.hq),
            "identity": self.judges.identity(image, batch),
            "delta": cast(Tensor, sum(deltas)),
        }

    def step(self, batch: Batch, *, penalised: bool) -> None:
        """See ``NaiveStage``."""
        move(self.adam, total(self.terms(batch), self.weights))


class NaiveDiffuserStage:
    """Stage 2: the prior, which nobody trains, gathers gradients."""

    def __init__(self, config: DiffuserConfig, twins: Nets, judges: NaiveJudges) -> None:
        """Take the networks over."""
        self.judges = judges
        self.weights = dict(config.weights)
        self.encoder = twins["encoder"]
        self.prior = twins["prior"].requires_grad_(True)
        self.diffuser = twins["diffuser"].train().requires_grad_(True)
        self.adam = adam_of(self.diffuser, config.adam.lr, config.adam.betas)

    def terms(self, batch: Batch, drawn: Tensor | None = None, noise: Noise = None) -> Terms:
        """Losses of a batch; ``drawn`` (B, L, D) noises the degraded face's codes."""
        with torch.no_grad():
            target = self.encoder(batch.hq) + self.encoder.latent_avg
            codes = self.encoder(batch.lq) + self.encoder.latent_avg
        drawn = torch.randn_like(codes) if drawn is None else drawn
        beta = torch.linspace(0.1**0.5, 0.99**0.5, self.diffuser.num_steps) ** 2
        kept = torch.prod(1 - beta)
        start = kept.sqrt() * codes + (1 - kept).sqrt() * drawn
        cleaned = self.diffuser.sample(codes, start)
        image, _ = self.prior(cleaned, noise)
        image = F.adaptive_avg_pool2d(image, batch.hq.shape[-1])
        return {
            "codes": F.l1_loss(cleaned, target),
            "lpips": self.judges.perceptual(image, batch.hq),
            "identity": self.judges.identity(image, batch),
        }

    def step(self, batch: Batch, *, penalised: bool) -> None:
        """See ``NaiveStage``."""
        move(self.adam, total(self.terms(batch), self.weights))


class NaiveRestorerStage:
    """Stage 3: two passes of the restorer, with new styles and noise each."""

    def __init__(
        self, config: RestorerConfig, twins: Nets, judges: NaiveJudges, critic: Critic
    ) -> None:
        """Take the networks over."""
        self.judges = judges
        self.critic = critic
        self.weights = dict(config.weights)
        self.encoder, self.prior = twins["encoder"], twins["prior"]
        self.diffuser = twins["diffuser"]
        self.net = twins["restoration"].train()
        self.average = copy.deepcopy(self.net)
        self.adam = adam_of(self.net.requires_grad_(True), config.adam.lr, config.adam.betas)

    @torch.no_grad()
    def guide(
        self, batch: Batch, start: Tensor | None = None, noise: Noise = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Prompt and prior features; the prior's picture is drawn and shown to nobody."""
        codes = self.encoder(batch.lq) + self.encoder.latent_avg
        w_plus = self.diffuser.sample(codes, start)
        image, features = self.prior(w_plus, noise)
        F.adaptive_avg_pool2d(image, batch.hq.shape[-1])
        return w_plus, features

    def restored(self, batch: Batch, w_plus: Tensor, features: list[Tensor]) -> Tensor:
        """A pass with styles and noise of its own."""
        styles = random_styles(len(w_plus), w_plus.shape[-1], 0.5)
        inject = random.randint(1, self.net.num_styles - 1)
        return self.net(batch.lq, w_plus, features, styles, inject)

    def terms(self, batch: Batch, fake: Tensor) -> Terms:
        """The restorer's losses."""
        return {
            "lpips": self.judges.perceptual(fake, batch.hq),
            "identity": self.judges.identity(fake, batch),
            "adversarial": self.critic.judge(fake),
        }

    def step(self, batch: Batch, *, penalised: bool) -> None:
        """See ``NaiveStage``."""
        guidance = self.guide(batch)
        self.net.requires_grad_(False)
        fake = self.restored(batch, *guidance)
        self.critic.step(batch.hq, fake, penalised=penalised)
        self.net.requires_grad_(True)
        fake = self.restored(batch, *guidance)
        move(self.adam, total(self.terms(batch, fake), self.weights))
        follow(self.average, self.net, 0.5 ** (len(batch.keys) / 10_000))


class NaivePriorStage:
    """Stage 0: StyleGAN2's trainer without path lengths."""

    def __init__(self, config: PriorConfig, twins: Nets, critic: Critic) -> None:
        """Take the networks over."""
        self.critic = critic
        self.mixing = config.mixing_probability
        self.width = config.model.prior.style_dim
        self.net = twins["prior"].train()
        self.average = copy.deepcopy(self.net)
        self.adam = adam_of(self.net.requires_grad_(True), config.adam.lr, config.adam.betas)

    def drawn(self, count: int) -> Tensor:
        """Pictures of new styles and noise."""
        slots = self.net.num_styles
        codes = [self.net.style(z) for z in random_styles(count, self.width, self.mixing)]
        inject = slots if len(codes) == 1 else random.randint(1, slots - 1)
        first = codes[0][:, None].repeat(1, inject, 1)
        second = codes[-1][:, None].repeat(1, slots - inject, 1)
        return self.net(torch.cat([first, second], 1))[0]

    def step(self, batch: Batch, *, penalised: bool) -> None:
        """See ``NaiveStage``."""
        self.net.requires_grad_(False)
        fake = self.drawn(len(batch.keys))
        self.critic.step(batch.hq, fake, penalised=penalised)
        self.net.requires_grad_(True)
        move(self.adam, self.critic.judge(self.drawn(len(batch.keys))))
        follow(self.average, self.net, 0.5 ** (len(batch.keys) / 10_000))
