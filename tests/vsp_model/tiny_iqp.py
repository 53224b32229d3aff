"""A tiny IQP and its stages of training, for their tests."""

import math

import torch

from tests.vsp_model.tiny import some_keys
from vsp_model.ask import Ask
from vsp_model.condition import NUM_KNOTS
from vsp_model.iqp.config import IQPConfig
from vsp_model.iqp.model import IQP
from vsp_model.networks import build_part
from vsp_model.train.batch import Batch
from vsp_model.train.iqp_books import IQPBooksConfig, IQPBooksStage
from vsp_model.train.iqp_codes import IQPCodesConfig, IQPCodesStage
from vsp_model.train.iqp_fidelity import IQPFidelityConfig, IQPFidelityStage
from vsp_model.train.judges import Judges
from vsp_model.train.stage import Moment

SIZE = 32
TINY = {
    "encoder": {
        "size": SIZE,
        "channels": 16,
        "multipliers": (1, 2),
        "num_blocks": 1,
        "latent": 16,
        "groups": 8,
        "unshuffle": 2,
    },
    "books": {"num_codes": 24, "num_codes_hq": 16},
    "transformer": {"width": 32, "num_layers": 1, "num_heads": 4, "hidden": 32},
    "condition_per_place": False,
    "fidelity_sides": (16, SIZE),
}
BATCH = 4
RUN = {"num_images": 4 * BATCH, "batch_size": BATCH, "log_images": BATCH,
       "preview_images": 2 * BATCH, "checkpoint_images": 2 * BATCH}  # fmt: skip
KNOTS = [n / (NUM_KNOTS - 1) for n in range(NUM_KNOTS)]  # a score is its own percentile
NAN = math.nan
BOOKS = TINY["books"] | {"update": "average", "restart_steps": 2}
USED = {
    "books": ("hq_encoder", "dictionary"),
    "codes": ("hq_encoder", "dictionary", "lq_encoder", "embedding", "predictor"),
    "fidelity": ("dictionary", "lq_encoder", "embedding", "predictor", "fusion"),
}
KINDS = {
    "books": (IQPBooksConfig, IQPBooksStage),
    "codes": (IQPCodesConfig, IQPCodesStage),
    "fidelity": (IQPFidelityConfig, IQPFidelityStage),
}


def config(**changes):
    return IQPConfig.model_validate(TINY | changes)


def made(**changes):
    torch.manual_seed(0)
    model = IQP(config(**changes)).eval()
    with torch.no_grad():  # codes of the size of latents, so that each decision shows
        for book in (model.dictionary.common, model.dictionary.hq):
            if book is not None:
                book.codes.normal_()
    return model.to(memory_format=torch.channels_last)


def awake(model, *which):
    """Let the condition and stage III, or one of them, say something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.startswith(which or ("embedding.", "fusion.")) and not tensor.any():
                tensor.normal_(0, 0.3)
    return model


def restored(model, lq, **ask):
    return model.restore(lq, some_keys(len(lq)), ask=Ask(**ask))


def stage_of(kind, judges=None, model=None, run=None, **settings):
    config_class, stage_class = KINDS[kind]
    values = {
        "model": TINY | {"condition": {"drop": 0.0}} | (model or {}),
        "run": RUN | (run or {}),
        "judges": {"quality": {"path": "built-in"}},
    }
    config = config_class.model_validate(values | settings)
    torch.manual_seed(0)
    parts = {n: build_part(n, getattr(config.model, n)) for n in USED[kind]
             if getattr(config.model, n) is not None}  # fmt: skip
    stage = stage_class(config, parts, judges or Judges())
    stage.observe_scores(KNOTS)
    return stage


def batch_of(step=0, quality=(0.9, 0.1, 0.7, NAN), count=BATCH):
    generator = torch.Generator().manual_seed(step)
    lq, hq = (torch.rand(count, 3, SIZE, SIZE, generator=generator) * 2 - 1 for _ in range(2))
    names = tuple(f"{step}-{n}" for n in range(count))
    dtype = torch.get_default_dtype()
    points, scores = torch.full((count, 5, 2), NAN), torch.tensor(quality[:count])
    return Batch(names, names, lq.to(dtype), hq.to(dtype), points, scores)


def moment(step=0):
    return Moment(step, step * BATCH, RUN["num_images"], 1)


def step_on(stage, batch, n=0):
    before = [b.clone() for b in stage.buffers()]
    assert not any(b.any() for b in before)
    for player in stage.players.values():
        player.zero_grad()
    terms = stage.accumulate(batch, moment(n))
    return terms, stage.after_update(moment(n), terms)


def part_of(batch, piece):
    tensors = (field[piece].contiguous() for field in batch[2:])
    return Batch(batch.keys[piece], batch.streams[piece], *tensors)


class Source:
    def batches(self, parts, first_step):
        step = first_step
        while True:
            whole = batch_of(step)
            pieces = [slice(part, None, parts.count) for part in parts.own]
            yield [part_of(whole, piece) for piece in pieces]
            step += 1


class Notes:
    def __init__(self):
        self.figures = []

    def scalars(self, images_seen, values):
        self.figures.append((images_seen, values))

    def pictures(self, images_seen, columns):
        assert all(x.shape[1] == 3 for x in columns.values())

    def say(self, line):
        pass


def state_of(stage):
    return {f"{n}.{k}": v.clone() for n, net in stage.networks().items()
            for k, v in net.state_dict().items()}  # fmt: skip


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def brightness(image):
    return image.mean(dim=(1, 2, 3)).sigmoid()
