"""What turns IQP's dial: the gate of the HQ+ codes, or the condition that was learnt?

    OMP_NUM_THREADS=1 python benchmarks/dial_parts.py iqp --truth faces-val/ --weights weights/ \
        --limit 160

Faces, columns and intervals are those of `benchmarks/dial.py`. Both follow the quality that is
asked for; here one of them is held at 0.9. Below: how many codes the condition changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from card_faces import at_size, degraded, read_faces
from card_judges import Jury
from dial import JUDGED, scores, table
from torch import Tensor

from jobs.models import model_path
from pipeline import images
from pipeline.images import Pixels
from pipeline.metrics.intervals import draws
from vsp_model.ask import Ask
from vsp_model.checkpoints import load
from vsp_model.iqp.dictionary import Codes
from vsp_model.iqp.model import IQP

ASKED, HELD = (0.1, 0.5, 0.9), 0.9
BATCH = 8


class Parts:
    """One model, asked for two qualities at once."""

    def __init__(self, model: IQP, lqs: Sequence[Pixels]) -> None:
        self.model, self.lqs = model, lqs
        self.fidelity = model.settle(Ask()).fidelity

    def batches(self) -> Iterator[Tensor]:
        """The degraded faces, (B, 3, S, S) in [-1, 1]."""
        for start in range(0, len(self.lqs), BATCH):
            chosen = self.lqs[start : start + BATCH]
            batch = images.new_batch(len(chosen), self.model.size)
            for slot, lq in enumerate(chosen):
                images.to_model(lq, batch, slot)
            yield batch

    def codes(self, lq: Tensor, condition: float) -> Codes:
        """The codes for a quality that the condition is told."""
        places = self.model.encode(lq, fused=False).places
        return self.model.predictor.best(
            self.model.scores(places, lq.new_full((len(lq),), condition))
        )

    @torch.no_grad()
    def pictures(self, condition: float, gate: float) -> list[Pixels]:
        """Restored faces, the condition and the gate told a quality each."""
        model, done = self.model, []
        for lq in self.batches():
            weight = model.gate(lq.new_full((len(lq),), gate))
            feature = model.dictionary.look_up(self.codes(lq, condition), weight)
            fusing = model.modulation(model.encode(lq, fused=self.fidelity > 0), self.fidelity)
            done += list(images.to_uint8(model.dictionary.decode(feature, fusing)))
        return done

    @torch.no_grad()
    def changed(self) -> str:
        """Share of the codes that the condition changes from the lowest quality to the highest."""
        pairs = [(self.codes(lq, ASKED[0]), self.codes(lq, ASKED[-1])) for lq in self.batches()]
        told = []
        for book in ("common", "hq"):
            both = [(getattr(low, book), getattr(high, book)) for low, high in pairs]
            there = [(a != b).float().mean().item() for a, b in both if a is not None]
            told += [f"{book} {sum(there) / len(there):.1%}"] if there else []
        return ", ".join(told)


def open_iqp(name: str) -> IQP:
    """The network itself."""
    model = load(model_path(name))
    if not isinstance(model, IQP) or model.config.colour_transfer:
        raise SystemExit(f"{name}: give an IQP without transfer of colours")
    return model.eval().to(memory_format=torch.channels_last)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="iqp or a bundle")
    parser.add_argument("--truth", required=True, help="shards of clean faces, never trained on")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="judges' files")
    parser.add_argument("--limit", type=int, default=0, help="only the first N faces")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = open_iqp(options.model)
    faces = [at_size(face, model.size) for face in read_faces(options.truth, options.limit)]
    lqs, keys = [degraded(face, model.size, options.seed) for face in faces], [f.key for f in faces]
    jury, parts = Jury(options.weights, faces, JUDGED), Parts(model, lqs)
    drawn = draws(len(faces), seed=options.seed, groups=[face.person for face in faces])
    for title, held in (("both", None), ("gate held", "gate"), ("condition held", "condition")):
        found = {}
        for asked in ASKED:
            qualities = {"condition": asked, "gate": asked} | ({held: HELD} if held else {})
            found[f"{asked}"] = scores(jury, parts.pictures(**qualities), keys)
        print("\n".join(table(title, found, drawn)), flush=True)
    print(f"codes that the condition changes from {ASKED[0]} to {ASKED[-1]}: {parts.changed()}")


if __name__ == "__main__":
    main()
