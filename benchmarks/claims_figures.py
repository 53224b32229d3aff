"""What benchmarks/claims.py measures: every arm on faces that no training saw, face by face.

Values of one arm, setting and seed are a file below OUT/values; what is there is not taken again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from card_faces import at_size, degraded, read_faces
from card_judges import Jury, scores_of
from claims_damage import SIZE
from claims_train import ROUND_0, ROUND_1, Given
from dial import SHARPNESS, scorers, sharpness
from model_card import NUM_FITTED, restore

from jobs.models import asked_model
from pipeline import images
from pipeline.images import Pixels
from pipeline.metrics import natural
from pipeline.metrics.intervals import draws
from pipeline.metrics.judge import Face as Pair
from pipeline.metrics.judge import Judge
from pipeline.metrics.pixels import Values, psnr
from pipeline.replica import Replica, ReplicaConfig
from vsp_model.ask import Ask
from vsp_model.iqp.backbone import Encoder
from vsp_model.iqp.dictionary import Dictionary, as_places
from vsp_model.networks import load_part

COLUMNS = ("psnr", "lpips-squeeze", "identity", "niqe-small")
SEED, BATCH = 0, 8
TIMES, EVERY = 3, 3  # each third face is restored again and again
AGAIN = ("identity", "lpips-squeeze")
HIGH, UNKNOWN = Ask(quality=0.9), Ask(quality="unknown")


class Row(NamedTuple):
    """A model and what is asked of it."""

    arm: str
    ask: Ask = Ask()


ROWS: Mapping[str, Row] = {
    "IDM, asked for 0.9": Row("idm-told", HIGH),
    "IDM, asked for unknown": Row("idm-told", UNKNOWN),
    "IDM without a condition": Row("idm-untold"),
    "IDM, round 0": Row(ROUND_0),
    "IDM, round 1, real gate": Row(ROUND_1),
    "IDM, round 1, all beyond 0.6": Row("idm-round-1-upper"),
    "IDM, trained on the truth": Row("idm-round-1-pristine"),
    "IQP dual, asked for 0.9": Row("iqp-dual", HIGH),
    "IQP dual, asked for unknown": Row("iqp-dual", UNKNOWN),
    "IQP single, asked for 0.9": Row("iqp-single", HIGH),
    "IQP single, asked for unknown": Row("iqp-single", UNKNOWN),
    "IQP single without a condition": Row("iqp-single-untold"),
}
BOOKS = {
    "stage I, dual, common codes": ("books-dual", 0.0),
    "stage I, dual, both": ("books-dual", 1.0),
    "stage I, single": ("books-single", 0.0),
}
"""Arm, and the share of alpha that the HQ+ codes get."""

Scores = dict[str, Values]


def opened(path: Path, ask: Ask) -> Replica:
    """A model as `vsp restore` runs it."""
    values = {"model": asked_model(str(path), ask), "seed": SEED, "batch_size": BATCH, "threads": 1}
    return Replica(ReplicaConfig.model_validate(values))


class Bench:
    """The faces of the tables and who judges them.

    Attributes:
        truths: Clean faces of `SIZE` pixels, N.
        lqs: The same, degraded as for a model card.
        drawn: Bootstrap over people.
    """

    def __init__(self, validation: str, weights: Path, given: Given, limit: int = 0) -> None:
        """Read the faces, fit the small NIQE to training faces of this size."""
        self.truths = [at_size(face, SIZE) for face in read_faces(validation, limit)]
        self.lqs = [degraded(face, SIZE, SEED) for face in self.truths]
        self.keys = [face.key for face in self.truths]
        self.drawn = draws(len(self.keys), seed=SEED, groups=[f.person for f in self.truths])
        self.values = given.out / "values"
        self.values.mkdir(parents=True, exist_ok=True)
        path = given.out / "niqe-small.npz"
        if not path.exists():
            chosen = read_faces(given.faces, NUM_FITTED)
            natural.save_model(path, natural.fit(at_size(f, SIZE).pixels for f in chosen))
        self.jury = Jury(weights, self.truths, COLUMNS, path)
        self.few = self.truths[::EVERY]
        self._jury_of_few = Jury(weights, self.few, AGAIN)
        self._taught = [cast(Judge, c.definition.build(c.paths)) for c in scorers().chosen]

    def see(self, pictures: Sequence[Pixels]) -> Scores:
        """Every column of one picture of every face."""
        scores = self.jury.see(pictures, COLUMNS).scores
        alone = [Pair(key, picture) for key, picture in zip(self.keys, pictures, strict=True)]
        sharp = np.array([sharpness(picture) for picture in pictures])
        chosen = {name: scores[name] for name in COLUMNS}
        return chosen | scores_of(self._taught, alone) | {SHARPNESS: sharp}

    def kept(self, name: str, make: Callable[[], Scores]) -> Scores:
        """Values that are there already, or that are made now."""
        path = self.values / f"{name.replace(' ', '-').replace(',', '')}.json"
        if not path.exists():
            path.write_text(json.dumps({k: v.tolist() for k, v in make().items()}))
            print(f"measured: {name}", flush=True)
        return {k: np.array(v, np.float64) for k, v in json.loads(path.read_text()).items()}

    def restored(self, name: str, seed: int, given: Given) -> Scores | None:
        """One of `ROWS`; None where it was not trained."""
        row = ROWS[name]
        path = given.result(row.arm, seed)
        if not path.exists():
            return None

        def make() -> Scores:
            return self.see(restore(opened(path, row.ask), self.lqs, self.keys))

        return self.kept(f"{name}, seed {seed}", make)

    def repeated(self, arm: str, steps: int, seed: int, given: Given) -> Scores | None:
        """A model on what it has made, `TIMES` times, without a gate; of some faces.

        Returns:
            `clean 1` ...: PSNR to the clean face of what was clean when it came; `clean step 1`
            ...: to what it was given; `clean identity 1` ..., `clean sharpness 1` ...; alike
            `degraded`.
        """
        path = given.result(arm, seed)
        if not path.exists():
            return None

        def make() -> Scores:
            replica = opened(path, Ask(steps=steps))
            clean = [face.pixels for face in self.few]
            begun = (("clean", clean), ("degraded", self.lqs[::EVERY]))
            parts = [self._rounds(replica, name, pictures) for name, pictures in begun]
            return parts[0] | parts[1]

        return self.kept(f"repeated, {arm}, {steps} steps, seed {seed}", make)

    def _rounds(self, replica: Replica, name: str, pictures: Sequence[Pixels]) -> Scores:
        found: Scores = {}
        truths, keys = [face.pixels for face in self.few], [face.key for face in self.few]
        for number in range(TIMES + 1):
            if number:
                before, pictures = pictures, restore(replica, pictures, keys)
                found[f"{name} step {number}"] = _psnr(pictures, before)
            seen = self._jury_of_few.see(pictures, AGAIN).scores
            found[f"{name} {number}"] = _psnr(pictures, truths)
            found[f"{name} identity {number}"] = seen["identity"]
            found[f"{name} lpips {number}"] = seen["lpips-squeeze"]
            sharp = [sharpness(picture) for picture in pictures]
            found[f"{name} {SHARPNESS} {number}"] = np.array(sharp)
        return found

    def reconstructed(self, name: str, seed: int, given: Given) -> Scores | None:
        """One of `BOOKS` on the clean faces: encoder, nearest codes, decoder."""
        arm, share = BOOKS[name]
        path = given.result(arm, seed)
        if not path.exists():
            return None
        return self.kept(f"{name}, seed {seed}", lambda: self.see(self._decoded(path, share)))

    @torch.no_grad()
    def _decoded(self, path: Path, share: float) -> list[Pixels]:
        encoder = cast(Encoder, load_part(path, "hq_encoder")).eval()
        dictionary = cast(Dictionary, load_part(path, "dictionary")).eval()
        made: list[Pixels] = []
        for start in range(0, len(self.truths), BATCH):
            chosen = self.truths[start : start + BATCH]
            batch = images.new_batch(len(chosen), SIZE)
            for slot, face in enumerate(chosen):
                images.to_model(face.pixels, batch, slot)
            codes = dictionary.nearest(as_places(encoder(batch)))
            weight = torch.full((len(chosen),), share * dictionary.config.books.alpha)
            made += list(images.to_uint8(dictionary.decode(dictionary.look_up(codes, weight))))
        return made


def _psnr(pictures: Sequence[Pixels], truths: Sequence[Pixels]) -> Values:
    """Decibels, capped where two pictures are equal as in every mean of the project."""
    cap = 100.0
    pairs = zip(pictures, truths, strict=True)
    return np.array([min(cap, psnr(picture, truth)) for picture, truth in pairs])
