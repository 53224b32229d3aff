"""IDM assembled: degraded face -> chain of denoising steps -> restored face (arXiv 2307.08996).

No code of it is public, so the steps are SR3's and DDPM's [S]; the residual form, the warm start
and the dial are ours [I].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsp_model.ask import Ask, dial_of, refuse_others
from vsp_model.faces import check_faces
from vsp_model.idm.chain import Chain, Drawn, Settings, draw, start_time
from vsp_model.idm.config import IDMConfig
from vsp_model.idm.unet import UNet
from vsp_model.randomness import NoiseMode

_KIND = "idm"


class IDM(nn.Module):
    """Blind restoration by iterative refinement."""

    def __init__(self, config: IDMConfig) -> None:
        super().__init__()
        self.config = config
        self.chain = Chain(config)
        self.unet = UNet(config.unet)

    @property
    def size(self) -> int:
        """Working size S in pixels."""
        return self.config.size

    def drawn(self, keys: Sequence[str], seed: int = 0, mode: NoiseMode = "seeded") -> Drawn:
        """All that is random, from (seed, key) alone; see ``chain.draw``."""
        return draw(self.size, keys, seed, mode)

    def settle(self, ask: Ask) -> Settings:
        """What is made of a user's wishes; see ``settle``."""
        condition = self.unet.condition
        return settle(self.config, ask, scored=condition is None or condition.scored)

    def forward(
        self,
        lq: Tensor,
        drawn: Drawn,
        settings: Settings | None = None,
        estimate: Tensor | None = None,
    ) -> Tensor:
        """Degraded faces -> restored faces.

        Args:
            lq: (B, 3, S, S) in [-1, 1].
            drawn: of this batch, on the same device.
            settings: how; None: as the model does by itself.
            estimate: see ``Chain.sample``.

        Returns:
            (B, 3, S, S), about [-1, 1].
        """
        return self.chain.sample(self.unet, lq, drawn, settings or self.settle(Ask()), estimate)

    @torch.no_grad()
    def restore(
        self,
        lq: Tensor,
        keys: Sequence[str],
        *,
        seed: int = 0,
        noise: NoiseMode = "seeded",
        ask: Ask = Ask(),  # noqa: B008 - frozen
        estimate: Tensor | None = None,
    ) -> Tensor:
        """Check the batch, draw its random quantities from (seed, key) and restore it.

        A face has the same bits at every place of a batch of one shape, whoever stands beside it. A
        batch of another size may round the last bits otherwise (most of all a batch of one), so the
        pipeline pads all batches to one shape.

        Args:
            lq: (B, 3, S, S) float32 in [-1, 1], RGB.
            keys: one a face.
            seed: of the run.
            noise: see ``chain.draw``.
            ask: what is wanted.
            estimate: see ``Chain.sample``.

        Returns:
            (B, 3, S, S), about [-1, 1].

        Raises:
            ValueError: in one line, what came, in which items, and what is expected.
        """
        settings = self.settle(ask)
        check_faces(lq, self.size, keys)
        faces = [lq, *([] if estimate is None else [estimate])]
        lq, *beside = (face.contiguous(memory_format=torch.channels_last) for face in faces)
        return self(lq, self.drawn(keys, seed, noise).to(lq.device), settings, *beside)

    def compile(self, *, fullgraph: bool = False) -> None:
        """Compile the network of one step; the chain around it is Python."""
        self.unet.compile(fullgraph=fullgraph)


def settle(config: IDMConfig, ask: Ask, *, scored: bool = True) -> Settings:
    """What a model of a configuration makes of a user's wishes.

    Args:
        config: Of the model.
        ask: What is wanted.
        scored: See ``dial_of``.

    Raises:
        ValueError: in one line, for what it can't do.
    """
    refuse_others(ask, _KIND, "steps", "sampler", "eta", "start", "t0")
    dial = dial_of(ask, config.condition, _KIND, scored=scored)
    sampler = ask.sampler or config.sampler
    if sampler == "ancestral" and ask.eta is not None:
        raise ValueError("eta: the ancestral sampler has none; ask for the sampler ddim")
    start = ask.start or config.start
    if start == "noise" and not config.unet.conditional:
        raise ValueError(
            "start noise: this model sees the face only in the estimate it starts from"
        )
    if start == "noise" and ask.t0 is not None:
        raise ValueError("t0: only of a chain that starts from an estimate; ask for start estimate")
    t0 = 1.0 if start == "noise" else config.t0 if ask.t0 is None else ask.t0
    top = start_time(t0, config.noise.num_steps)
    steps = min(config.steps, top) if ask.steps is None else ask.steps
    if steps > top:
        raise ValueError(f"steps {steps}: the chain has {top}, from t0 {t0:g} down")
    eta = 1.0 if sampler == "ancestral" else config.eta if ask.eta is None else ask.eta
    return Settings(dial, steps, sampler, eta, start, t0)
