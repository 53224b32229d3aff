"""Codebooks of IQP: nearest codes, the two halves of their loss, codes that are running averages.

Shapes: B batch, T places of a latent (h * h), D channels of a latent and width of a code, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vsp_model.iqp.config import BooksConfig
from vsp_model.ops import linear

RECENT_STEPS = 100
"""A code counts as used where the last so many steps used it."""


class Codebook(nn.Module):
    """K codes of D numbers, U(-1 / K, 1 / K) at first [C]."""

    def __init__(self, num_codes: int, width: int, *, learnt: bool) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.empty(num_codes, width), requires_grad=learnt)
        nn.init.uniform_(self.codes, -1 / num_codes, 1 / num_codes)

    @torch.no_grad()
    def nearest(self, places: Tensor) -> Tensor:
        """The code that lies nearest to each place: (B, T, D) -> (B, T) int64."""
        codes = self.codes.to(torch.promote_types(places.dtype, torch.float32))
        places = places.to(codes.dtype)
        with torch.autocast(places.device.type, enabled=False):
            # |z|^2 is the same for every code.
            distance = codes.square().sum(dim=1) - 2 * linear(places, codes)  # (B, T, K)
        return distance.argmin(dim=2)

    def forward(self, indices: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        return self.codes[indices]

    def expected(self, logits: Tensor) -> Tensor:
        """The mean code under softmax(logits): (B, T, K) -> (B, T, D)."""
        return logits.softmax(dim=2) @ self.codes.to(logits.dtype)


def gate(quality: Tensor, config: BooksConfig) -> Tensor:
    """How much of the HQ+ codes is added where a quality is asked for: alpha sigmoid(...) [I].

    The released code adds alpha whatever is asked for [C]. So do we where nothing is asked for, and
    in a model without a condition (``IQP.gate``): one that is given a condition restores as it did
    until somebody asks.

    Args:
        quality: (B,), percentiles; NaN: unknown. Beyond [0, 1] they count as 0 and 1.
        config: alpha, threshold and softness.

    Returns:
        (B,) in [0, alpha].
    """
    u = quality.clamp(0, 1)
    weight = config.alpha * ((u - config.threshold) / config.softness).sigmoid()
    return torch.where(quality.isnan(), config.alpha, weight)


def above(quality: Tensor, config: BooksConfig) -> Tensor:
    """Which pictures feed the HQ+ book, (B,) bool: those above the threshold; unknown ones not."""
    return quality > config.threshold  # NaN compares false


def book_loss(places: Tensor, codes: Tensor, config: BooksConfig) -> Tensor:
    """Draw latents to their codes and codes to their latents, a mean for each picture (B,).

    The released code weighs the codes' half with beta and the latents' with 1 ("legacy"), the other
    way round than VQ-VAE ("paper") [C].

    Args:
        places: z, (B, T, D).
        codes: those nearest to them, of the same shape.
        config: beta and its side.
    """
    commitment = (codes.detach() - places).square().mean(dim=(1, 2))
    if config.update == "average":  # the codes follow by themselves
        return commitment if config.beta_side == "legacy" else config.beta * commitment
    learning = (codes - places.detach()).square().mean(dim=(1, 2))
    if config.beta_side == "legacy":
        return commitment + config.beta * learning
    return config.beta * commitment + learning


class BookKeeper(nn.Module):
    """What training knows of a book, and the codes as averages of what is assigned to them [I].

    A part of a step only adds to ``num``, ``total`` and ``candidates``, which begin as zero: their
    means over parts are the same whoever computed which. Everything else follows from those means
    in ``follow``, so a step that assigns nothing to the book leaves it bit for bit as it is.
    """

    num: Tensor
    total: Tensor
    candidates: Tensor
    counts: Tensor
    sums: Tensor
    idle: Tensor
    unused: Tensor

    def __init__(self, book: Codebook, config: BooksConfig) -> None:
        super().__init__()
        self.config = config
        k, width = book.codes.shape
        codes = book.codes.detach()
        self.register_buffer("num", codes.new_zeros(k))
        self.register_buffer("total", codes.new_zeros(k, width))
        self.register_buffer("candidates", codes.new_zeros(k, width))
        self.register_buffer("counts", codes.new_ones(k))
        self.register_buffer("sums", codes.clone())
        # Every code of a new book that the first step does not use begins at one of its latents:
        # codes around zero would leave all but a few of them without any. A trained one keeps its
        # codes: a batch uses few of them. It is told by codes beyond where a new one's are drawn.
        idle = 0.0 if (codes.abs() > 1 / k).any() else float(config.restart_steps)
        self.register_buffer("idle", torch.full((k,), idle))  # steps since the use or the restart
        self.register_buffer("unused", torch.full((k,), float(RECENT_STEPS)))  # steps since the use

    def gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a part of a step adds to."""
        return self.num, self.total, self.candidates

    @torch.no_grad()
    def observe(self, places: Tensor, indices: Tensor, offers: torch.Generator | None) -> None:
        """Note which latents (N, D) a part assigns to which codes (N,).

        Args:
            places: of the pictures that feed the book.
            indices: of their codes.
            offers: where codes that begin anew are drawn from; None for parts that offer nothing.
        """
        if not len(places):
            return
        member = nn.functional.one_hot(indices, len(self.num)).to(self.sums.dtype)  # (N, K)
        self.num.add_(member.sum(dim=0))
        places = places.detach().to(self.sums.dtype)
        self.total.add_(member.t() @ places)
        if offers is not None and self.config.restart_steps:
            chosen = torch.randint(len(places), (len(self.num),), generator=offers)
            self.candidates.add_(places[chosen.to(places.device)])

    @torch.no_grad()
    def follow(self, book: Codebook, num_parts: int) -> int:
        """End a step: move the codes, begin unused ones anew, and forget what was gathered.

        Args:
            book: whose codes these are.
            num_parts: of the step; ``gathered`` holds means over them, and one of them offered.

        Returns:
            How many codes began anew.
        """
        restarted = 0
        if self.num.sum() > 0:
            for steps in (self.idle, self.unused):
                steps.add_(1).masked_fill_(self.num > 0, 0)
            if self.config.update == "average":
                self._average(book)
            restarted = self._restart(book, num_parts)
        for tensor in self.gathered():
            tensor.zero_()
        return restarted

    def used(self) -> Tensor:
        """Share of the codes that the last ``RECENT_STEPS`` steps used, a scalar."""
        return (self.unused < RECENT_STEPS).float().mean()

    def _average(self, book: Codebook) -> None:
        decay, met = self.config.decay, self.num > 0
        self.counts.lerp_(self.num, 1 - decay)
        self.sums.lerp_(self.total, 1 - decay)
        mean = self.sums / self.counts[:, None]
        book.codes.copy_(torch.where(met[:, None], mean.to(book.codes.dtype), book.codes))

    def _restart(self, book: Codebook, num_parts: int) -> int:
        steps = self.config.restart_steps
        if not steps or not self.candidates.any():
            return 0
        stale = self.idle >= steps
        fresh = self.candidates * num_parts
        book.codes.copy_(torch.where(stale[:, None], fresh.to(book.codes.dtype), book.codes))
        self.sums.copy_(torch.where(stale[:, None], fresh, self.sums))
        self.counts.masked_fill_(stale, 1)
        self.idle.masked_fill_(stale, 0)
        return int(stale.sum().item())
