"""A loop's folder for `vsp iterate`: tiny YAMLs, faces that are none, doubles of what is done."""

from pathlib import Path

import cv2
import numpy as np
import yaml

from jobs.steps import Stopped
from pipeline import images
from pipeline.cleaning.loop.proof import Arm, compare
from pipeline.cleaning.loop.rounds import Figures
from pipeline.tar import TarWriter
from tests.vsp_model.tiny import tiny_config
from vsp_model.files import whole_or_absent

SIZE, BATCH = 32, 4
WIDTHS = (16, 16, 16, 16)
RUN = {"num_images": 2 * BATCH, "batch_size": BATCH, "threads": 1, "log_images": BATCH}
RUN |= {"preview_images": 2 * BATCH, "checkpoint_images": BATCH}
STAGES = {
    "prior": {"kind": "reconstruction", "weights": {"lpips": 0}},
    "encoder": {"kind": "encoder", "progressive": None},
    "diffuser": {"kind": "diffuser"},
    "restorer": {"kind": "restorer", "weights": {"l1": 1.0}},
}
GENERATOR = {
    "kind": "gan",
    "ema": {"half_life_images": 2},
    "adversary": {"network": {"size": SIZE, "channels": list(WIDTHS), "group_size": 2}},
}
TRAININGS = [f"round-0/train/{stage}" for stage in STAGES]
AGAIN = [f"round-1/train/{stage}" for stage in STAGES]
ARMS = [f"proof/{arm}/seed-{seed}" for seed in (0, 1) for arm in ("raw", "cleaned")]
WHOLE = [*TRAININGS, "round-0/clean", "round-0/figures", *AGAIN, *ARMS, "proof/figures"]


def write_faces(path: Path, count: int, size: int = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(path) as file:
        tar = TarWriter(file)
        for number in range(count):
            coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
            face = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
            tar.add(f"{path.stem}-{number}.png", images.encode(face, "png"))
        tar.finish()


def model_values():
    values = tiny_config(SIZE, widths=WIDTHS).model_dump(mode="json")
    values["encoder"] |= {"stem_channels": 16, "stage_channels": [16] * 4}
    return values


def write_configs(folder: Path) -> Path:
    for name, values in {**STAGES, "generator": GENERATOR}.items():
        whole = {"model": model_values(), "run": RUN, "data": {"size": SIZE}, **values}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    loop = {
        "size": SIZE,
        "stages": [
            {"stage": stage, "file": f"{stage}.yaml", "images_per_s": 4} for stage in STAGES
        ],
        "proof": {"file": "generator.yaml", "size": SIZE, "seeds": [0, 1], "num_faces": 6},
    }
    (folder / "loop.yaml").write_text(yaml.safe_dump(loop))
    return folder / "loop.yaml"


class Doubles:
    """Stands in for the work of steps: notes what was done, leaves the files, says what it is told.

    Attributes:
        done: Names of the steps.
        figures: What a round comes to, by number.
        fails_at: Step at which a signal comes.
    """

    def __init__(self):
        self.done = []
        self.fails_at = ""
        self.accepted = {"round-0": 8, "round-1": 8, "proof": 8}
        self.changes = {}

    def begin(self, name):
        if name == self.fails_at:
            raise Stopped
        self.done.append(name)

    def train(self, run, what):
        self.begin(what.name)
        run.folder(what.name).mkdir(parents=True, exist_ok=True)
        (run.folder(what.name) / "model.safetensors").write_bytes(b"")
        return {"images": 8, "figures": {"val/lpips": 0.5}}

    def clean(self, run, name, faces, model, ask):
        self.begin(name)
        (run.folder(name) / "manifest").mkdir(parents=True)
        write_faces(run.folder(name) / "a.tar", 7)
        return {"model": model, "counts": {}, "reasons": {}, "calibration": ["level  share"]}

    def figures_of(self, run, name, number, before, cleaned):
        self.begin(name)
        path = run.folder(name).with_name("figures.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        values = {"num_tried": 8, "num_accepted": self.accepted[name.split("/")[0]]}
        values |= {"round": number, "num_images": 10, "num_rejected": 0, "gain": 0.1}
        values |= {"gain_low": 0.1, "gain_high": 0.1, **self.changes}
        return Figures(**values).model_dump(mode="json")

    def conclude(self, run, proof):
        self.begin("proof/figures")
        (run.out / "proof").mkdir(exist_ok=True)
        (run.out / "proof" / "figures.json").write_text("{}")
        arms = [
            Arm(arm=arm, seed=seed, reference="held-out", distance=9.0 + seed, error=None)
            for arm in ("raw", "cleaned") for seed in proof.seeds
        ]  # fmt: skip
        return {"feature": "f", "num_faces": 6, "arms": [arm.model_dump() for arm in arms],
                "comparisons": [compare(arms, "held-out").model_dump()]}  # fmt: skip
