"""Stage I of IQP: an auto-encoder of clean faces with a common and an HQ+ codebook.

The HQ+ book learns only from faces whose score lies above a percentile of the training set's; what
is not known is not above.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor

from vsp_model.config import Config
from vsp_model.iqp.backbone import Encoder
from vsp_model.iqp.codebook import BookKeeper, Codebook, above, book_loss
from vsp_model.iqp.config import IQPConfig
from vsp_model.iqp.dictionary import Codes, Dictionary, as_places, straight_through
from vsp_model.train import inversion
from vsp_model.train.batch import Batch
from vsp_model.train.config import AdamConfig, EMAConfig
from vsp_model.train.iqp_adversary import PatchAdversary, PatchAdversaryConfig
from vsp_model.train.iqp_losses import compared, ruler, widened
from vsp_model.train.judges import Judges
from vsp_model.train.optimiser import Player
from vsp_model.train.stage import (
    Moment,
    Parts,
    Pictures,
    Stage,
    StageConfig,
    Terms,
    detached,
    step_generator,
    weighted,
)


class BooksWeights(Config):
    """Of the losses; the defaults are the released code's [C]."""

    l1: float = Field(1.0, ge=0)
    lpips: float = Field(1.0, ge=0)
    structure: float = Field(0.1, ge=0)
    """Of 1 - SSIM, which stands in for a missing LPIPS judge [I]."""
    identity: float = Field(0.0, ge=0)
    books: float = Field(1.0, ge=0)


class IQPBooksConfig(StageConfig):
    """``vsp train iqp-books``; the defaults are the released code's [C], but for the rate: there it
    falls as a cosine to 6e-5 (configs/train/512/iqp-books.yaml), constant here.
    """

    kind: Literal["iqp-books"] = "iqp-books"
    model: IQPConfig
    weights: BooksWeights = BooksWeights()
    adam: AdamConfig = AdamConfig(lr=7e-5, betas=(0.9, 0.99))
    ema: EMAConfig | None = EMAConfig(half_life_images=1656)
    """0.995 a step of 12 images, as a half-life."""
    patches: PatchAdversaryConfig | None = None
    """Null: no adversarial term."""


class Quantised(NamedTuple):
    """A latent and what the books make of it."""

    places: Tensor
    """z, (B, T, D)."""
    codes: Codes
    feature: Tensor
    """Z_q, with gradients that flow to z."""
    loss: Tensor
    """Mean over the batch."""


class IQPBooksStage(Stage):
    """Clean face -> codes of both books -> picture."""

    config: IQPBooksConfig

    def __init__(
        self, config: IQPBooksConfig, parts: Parts, judges: Judges, device: str = "cpu"
    ) -> None:
        super().__init__(config, parts, judges, device)
        self.encoder = cast(Encoder, self.parts["hq_encoder"]).train()
        self.dictionary = cast(Dictionary, self.parts["dictionary"]).train()
        trained = {"hq_encoder": self.encoder, "dictionary": self.dictionary}
        self.players["books"] = Player(trained, config.adam)
        self.patches: PatchAdversary | None = None
        if config.patches:
            last = self.dictionary.decoder.last.weight
            self.patches = self.adversary = PatchAdversary(self, config.patches, last)
        self.keepers = {
            f"keeper.{name}": BookKeeper(book, config.model.books).to(device)
            for name, book in self._books().items()
        }
        self.ruler = ruler(config.model.condition).to(device)
        self.keep_averages(config.ema, *trained)

    def _books(self) -> dict[str, Codebook]:
        both = {"common": self.dictionary.common, "hq": self.dictionary.hq}
        return {name: book for name, book in both.items() if book is not None}

    def observe_scores(self, knots: Sequence[float]) -> None:
        """See ``Stage``."""
        self.ruler.set_distribution(knots)  # of no part: a bundle of stage I has no condition

    def networks(self) -> Parts:
        """See ``Stage``; with what is known of the books."""
        return super().networks() | self.keepers

    def buffers(self) -> Iterator[Tensor]:
        """See ``Stage``; with what a step gathers of books and gradients."""
        yield from super().buffers()
        for keeper in self.keepers.values():
            yield from keeper.gathered()
        if self.patches:
            yield from self.patches.gathered()

    def accumulate(self, batch: Batch, moment: Moment) -> Terms:
        """See ``Stage``."""
        chosen = above(self.ruler.percentile(batch.quality), self.config.model.books)
        with self.autocast():
            latent = self.encoder(batch.hq)
        quantised = self._quantise(as_places(latent), chosen)
        self._note(quantised, chosen, moment)
        with self.autocast():
            image = self.dictionary.decode(quantised.feature)
        image = widened(image)
        wants_identity = self.config.weights.identity > 0
        terms = compared(self.judges, image, batch, identity=wants_identity)
        plays = self.patches is not None and self.patches.active(moment)
        loss, kept = weighted(terms | {"books": quantised.loss}, dict(self.config.weights))
        if self.patches and plays:
            kept |= self.patches.backward(loss, image, batch.hq, moment)
        else:
            self.backward(loss, moment)
        return detached(kept | {"loss": loss, "above": chosen.float().mean()})

    def _quantise(self, places: Tensor, chosen: Tensor) -> Quantised:
        """Both books' codes, where ``chosen`` (B,) says which faces the HQ+ book is for."""
        books, dictionary = self.config.model.books, self.dictionary
        codes = dictionary.nearest(places)
        common = dictionary.common(codes.common)
        loss = book_loss(places, common, books).mean()
        if dictionary.hq is None or codes.hq is None:
            return Quantised(places, codes, straight_through(places, common), loss)
        hq = dictionary.hq(codes.hq)
        passes = chosen.to(places.dtype)
        loss = loss + (passes * book_loss(places, hq, books)).mean()
        feature = self._fused(places, common, hq, books.alpha * passes)
        return Quantised(places, codes, feature, loss)

    def _fused(self, places: Tensor, common: Tensor, hq: Tensor, weight: Tensor) -> Tensor:
        """Z_q, with gradients that flow to z and never to the codes.

        Attention is fed with what went straight through already [C], or it would never be trained.
        The release does so for the sum, too [C], where z's gradient then counts 1 + alpha m times;
        here it counts once [I].
        """
        if self.dictionary.fusion is None:
            return straight_through(places, self.dictionary.fused(common, hq, weight))
        common, hq = (straight_through(places, codes) for codes in (common, hq))
        return self.dictionary.fused(common, hq, weight)

    def _note(self, quantised: Quantised, chosen: Tensor, moment: Moment) -> None:
        """Tell the books' keepers who was assigned to what."""
        everyone = torch.ones_like(chosen)
        offers = moment.step % moment.num_parts == moment.part
        for name, keeper in self.keepers.items():
            kind = name.removeprefix("keeper.")
            codes = getattr(quantised.codes, kind)
            whose = everyone if kind == "common" else chosen
            seed = self.config.run.seed
            generator = step_generator(seed, moment, f"restart {kind}") if offers else None
            keeper.observe(quantised.places[whose].flatten(0, 1), codes[whose].flatten(), generator)

    def after_update(self, moment: Moment, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """See ``Stage``; the codes follow first, then the averages."""
        figures = {}
        for name, book in self._books().items():
            keeper = self.keepers[f"keeper.{name}"]
            figures[f"restarted_{name}"] = float(keeper.follow(book, moment.num_parts))
            figures[f"used_{name}"] = keeper.used().item()
        return figures | super().after_update(moment, terms)

    def _reconstructed(self, batch: Batch, chosen: Tensor) -> tuple[Tensor, Codes]:
        nets = self.result()
        encoder, dictionary = (
            cast(Encoder, nets["hq_encoder"]),
            cast(Dictionary, nets["dictionary"]),
        )
        with inversion.evaluating(encoder), inversion.evaluating(dictionary), self.autocast():
            codes = dictionary.nearest(as_places(encoder(batch.hq)))
            weight = self.config.model.books.alpha * chosen.to(batch.hq.dtype)
            return dictionary.decode(dictionary.look_up(codes, weight)).float(), codes

    @torch.no_grad()
    def validate(self, batch: Batch) -> Terms:
        """See ``Stage``; also what the HQ+ book gives where every face may use it."""
        quality = self.ruler.percentile(batch.quality)
        chosen = above(quality, self.config.model.books)
        image, codes = self._reconstructed(batch, chosen)
        figures = inversion.validated(self.judges, image, batch)
        if codes.hq is not None:
            everyone, _ = self._reconstructed(batch, torch.ones_like(chosen))
            both = inversion.validated(self.judges, everyone, batch)
            figures |= {f"{name}_hq": both[name] for name in ("psnr", "lpips") if name in both}
        used = {f"used_{n.removeprefix('keeper.')}": k.used() for n, k in self.keepers.items()}
        return figures | used

    @torch.no_grad()
    def preview(self, batch: Batch) -> Pictures:
        """See ``Stage``."""
        nobody = torch.zeros(len(batch.hq), dtype=torch.bool, device=batch.hq.device)
        pictures = {"HQ": batch.hq, "common": self._reconstructed(batch, nobody)[0]}
        if self.dictionary.hq is not None:
            pictures["common and HQ+"] = self._reconstructed(batch, ~nobody)[0]
        return pictures
