"""IQP learns on a toy: both books are used, and the dial turns the way it says."""

import math

import pytest
import torch
import torch.nn.functional as F

from vsp_model.ask import Ask
from vsp_model.condition import NUM_KNOTS
from vsp_model.iqp.config import IQPConfig
from vsp_model.iqp.model import IQP
from vsp_model.networks import build_part
from vsp_model.train.batch import Batch
from vsp_model.train.distributed import Alone
from vsp_model.train.guard import detail_energy
from vsp_model.train.iqp_books import IQPBooksConfig, IQPBooksStage
from vsp_model.train.iqp_codes import IQPCodesConfig, IQPCodesStage
from vsp_model.train.judges import Judges
from vsp_model.train.loop import Trainer
from vsp_model.train.store import FolderStore

SIZE, BATCH = 32, 8
MODEL = IQPConfig.model_validate(
    {
        "encoder": {
            "size": SIZE,
            "unshuffle": 4,
            "channels": 32,
            "multipliers": (1,),
            "num_blocks": 1,
            "latent": 16,
            "groups": 8,
        },
        "books": {
            "num_codes": 32,
            "num_codes_hq": 32,
            "update": "average",
            "decay": 0.95,
            "restart_steps": 20,
        },
        "transformer": {"width": 64, "num_layers": 2, "num_heads": 4, "hidden": 64},
        "condition": {"default": 0.9},
        "condition_per_place": False,
        "fidelity_sides": (),
        "colour_transfer": False,
    }
)
KNOTS = [n / (NUM_KNOTS - 1) for n in range(NUM_KNOTS)]


def toys(step, count=BATCH):
    """Checks of two grays, blurred the more the lower their quality; degraded: all blurred."""
    generator = torch.Generator().manual_seed(step)
    gray = torch.rand(count, 1, 1, 1, 1, generator=generator).expand(-1, -1, 3, -1, -1)
    colours = torch.cat([gray, gray - 1], dim=1)  # (B, 2, 3, 1, 1)
    place = torch.arange(SIZE) // 4
    checks = ((place[:, None] + place[None]) % 2).float()
    sharp = colours[:, 0] * checks + colours[:, 1] * (1 - checks)
    quality = torch.rand(count, generator=generator)
    blurred = F.avg_pool2d(F.pad(sharp, (4,) * 4, mode="reflect"), 9, stride=1)
    hq = torch.lerp(blurred, sharp, quality[:, None, None, None])
    names = tuple(f"{step}-{n}" for n in range(count))
    return Batch(names, names, blurred, hq, torch.full((count, 5, 2), math.nan), quality)


class Source:
    def batches(self, parts, first_step):
        while True:
            yield [toys(first_step)]
            first_step += 1


class Silent:
    def scalars(self, images_seen, values):
        self.last = values

    def pictures(self, images_seen, columns):
        pass

    def say(self, line):
        pass


def trained(stage, folder):
    stage.observe_scores(KNOTS)
    log = Silent()
    Trainer(stage, Alone(), FolderStore(folder), log).train(Source())
    return stage, log.last


def run(num_steps):
    count = num_steps * BATCH
    return {"num_images": count, "batch_size": BATCH, "log_images": count,
            "checkpoint_images": count, "preview_images": count}  # fmt: skip


@pytest.fixture
def parts():
    torch.manual_seed(0)
    names = ("hq_encoder", "lq_encoder", "dictionary", "predictor", "embedding")
    return {name: build_part(name, getattr(MODEL, name)) for name in names}


def books(parts, folder, num_steps):
    config = IQPBooksConfig(
        model=MODEL, run=run(num_steps), adam={"lr": 2e-3}, weights={"books": 0.25}, ema=None
    )
    own = {name: parts[name] for name in ("hq_encoder", "dictionary")}
    return trained(IQPBooksStage(config, own, Judges()), folder)


def test_a_short_run_uses_half_of_each_book(parts, tmp_path):
    _, figures = books(parts, tmp_path, 40)
    assert figures["used_common"] >= 0.5
    assert figures["used_hq"] >= 0.5


@pytest.mark.slow
def test_a_higher_quality_is_sharper(parts, tmp_path, monkeypatch):
    stage, _ = books(parts, tmp_path / "1", 200)
    assert stage.keepers["keeper.common"].used() >= 0.5
    assert stage.keepers["keeper.hq"].used() >= 0.5
    parts["lq_encoder"].load_state_dict(parts["hq_encoder"].state_dict())
    config = IQPCodesConfig(model=MODEL, run=run(500), adam={"lr": 2e-3}, ema=None)
    stage, _ = trained(IQPCodesStage(config, parts, Judges()), tmp_path / "2")
    model = IQP(MODEL, stage.result())
    batch = toys(10_000, 32)

    def sharpness(quality):
        image = model.restore(batch.lq, batch.keys, ask=Ask(quality=quality))
        return detail_energy(image).item()

    low, middle, high = map(sharpness, (0.1, 0.5, 0.9))
    assert low < middle < high
    # What was learnt does so by itself, without the gate that follows the quality by rule.
    monkeypatch.setattr(model, "gate", lambda quality: torch.full_like(quality, 0.8))
    low, middle, high = map(sharpness, (0.1, 0.5, 0.9))
    assert low < middle < high
