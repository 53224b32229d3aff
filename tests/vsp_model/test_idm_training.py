"""IDM's stage through the real trainer: it learns, resumes, and shares its work."""

import math
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.vsp_model.test_training_loop import Notes, same, state_of
from tests.vsp_model.tiny_idm import SIZE, UNET
from vsp_model.ask import Ask
from vsp_model.condition import NUM_KNOTS
from vsp_model.idm.chain import draw
from vsp_model.idm.config import IDMConfig
from vsp_model.idm.model import settle
from vsp_model.idm.schedule import Level
from vsp_model.idm.unet import UNet
from vsp_model.train.batch import Batch
from vsp_model.train.config import RunConfig
from vsp_model.train.distributed import Alone
from vsp_model.train.ema import decay_of
from vsp_model.train.idm import IDMStage, IDMTrainConfig
from vsp_model.train.judges import Judges
from vsp_model.train.loop import Trainer
from vsp_model.train.stage import Moment
from vsp_model.train.store import FolderStore

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = 4
FILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "train").glob("*/idm*.yaml"))
MODEL = {
    "unet": UNET | {"condition": {"drop": 0.5}},
    "noise": {"num_steps": 50, "beta_start": 1e-3, "beta_end": 0.2},
    "param": "residual_x0",
    "steps": 4,
}


def stage(num_steps=6, *, model=None, run=None, **settings):
    values = {
        "model": MODEL | (model or {}),
        "run": {
            "num_images": num_steps * BATCH,
            "batch_size": BATCH,
            "log_images": BATCH,
            "preview_images": 10_000,
            "checkpoint_images": 10_000,
        }
        | (run or {}),
        "adam": {"lr": 8e-3, "clip_norm": 1.0},
        "ema": {"half_life_images": 20, "ramp": 0.1},
    }
    config = IDMTrainConfig.model_validate(values | settings)
    torch.manual_seed(0)
    built = IDMStage(config, {"unet": UNet(config.model.unet)}, Judges())
    built.observe_scores([i / (NUM_KNOTS - 1) for i in range(NUM_KNOTS)])
    return built


def faces(step, count=BATCH, clean=0):
    """Smooth pictures; the degraded ones are blurred and noisy, the first ``clean`` as they are."""
    generator = torch.Generator().manual_seed(step)
    rough = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    hq = F.interpolate(rough, size=SIZE, mode="bilinear")
    noise = 0.2 * torch.randn(hq.shape, generator=generator)
    lq = (F.avg_pool2d(hq, 3, 1, 1) + noise).clamp(-1, 1)
    lq[:clean] = hq[:clean]
    names = tuple(f"{step}-{i}" for i in range(count))
    quality = torch.rand(count, generator=generator)
    return Batch(names, names, *map(last, (lq, hq)), torch.full((count, 5, 2), torch.nan), quality)


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


class Source:
    """Other faces every step, a quarter of them clean."""

    def __init__(self, dtype=torch.float32):
        self.dtype = dtype

    def batches(self, parts, first_step):
        step = first_step
        while True:
            whole = faces(step, clean=1)
            pieces = [slice(part, None, parts.count) for part in parts.own]
            fields = [f.to(self.dtype) if torch.is_tensor(f) else f for f in whole]
            yield [Batch(*(part_of(field, piece) for field in fields)) for piece in pieces]
            step += 1


def part_of(field, piece):
    return field[piece].clone() if torch.is_tensor(field) else field[piece]


def train(built, folder, notes=None, comm=None, **rest):
    trainer = Trainer(built, comm or Alone(), FolderStore(folder), notes or Notes(), **rest)
    return trainer.train(Source(next(built.net.parameters()).dtype))


def loss_on(built, batch):
    """The same faces, levels and noise every time."""
    loss = built.accumulate(batch, Moment(0, 0, 1, 1))["loss"].item()
    built.players["unet"].zero_grad()
    return loss


PRIOR = {
    "param": "eps",
    "start": "estimate",
    "unet": MODEL["unet"] | {"conditional": False},
}


@pytest.mark.parametrize(
    "model", [{"param": "eps"}, {"param": "v"}, PRIOR], ids=["eps", "v", "prior"]
)
def test_a_short_training_lowers_the_loss(model, tmp_path):
    built, notes = stage(25, model=model), Notes()
    first = loss_on(built, faces(900, 32))
    train(built, tmp_path, notes)
    assert loss_on(built, faces(900, 32)) < 0.9 * first
    assert len(notes.figures) == 25
    assert "norm/unet" in notes.figures[0][1]


def test_a_prior_never_looks_at_the_degraded_face():
    built, batch = stage(model=PRIOR), faces(5)
    other = batch._replace(lq=-batch.lq)
    assert loss_on(built, other) == loss_on(built, batch)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_training_file_fits_its_model_and_says_how_to_run_it(path):
    text = path.read_text()
    values = yaml.safe_load(text)
    model = yaml.safe_load((path.parent / values["model"]).read_text())["model"]
    size = values.pop("data")["size"]
    config = IDMTrainConfig.model_validate(values | {"model": model})
    assert config.model.size == size
    header = text.partition("kind:")[0]
    assert f"vsp train idm configs/train/{path.parent.name}/{path.name}" in header
    assert "never trained" in header or "hour" in header


def test_the_published_settings_of_the_references_are_kept():
    found = {f"{path.parent.name}/{path.stem}": yaml.safe_load(path.read_text()) for path in FILES}
    sr3, difface = found["128/idm-sr3"], found["512/idm-difface"]
    assert IDMTrainConfig.model_fields["adam"].default.lr == 1e-4  # both
    assert not {"adam"} & (sr3.keys() | difface.keys())
    for values, steps, kept in ((sr3, 1_000_000, 0.9999), (difface, 800_000, 0.999)):
        run = RunConfig.model_validate(values["run"])
        assert run.num_steps == steps
        half_life = values["ema"]["half_life_images"]
        assert decay_of(half_life, run.batch_size, 0, 0.0) == pytest.approx(kept, abs=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    built = stage(120, adam={"lr": 8e-3, "clip_norm": 1.0, "decay": "cosine"})
    train(built, tmp_path_factory.mktemp("run"))
    return built


def test_the_residual_is_learnt(trained):
    assert loss_on(trained, faces(900, 32)) < 0.9 * loss_on(stage(), faces(900, 64))


def restore(built, lq, estimate=None, **wishes):
    model = built.config.model
    keys = [f"{i}" for i in range(len(lq))]
    with torch.no_grad():
        return built.chain.sample(
            built.result()["unet"].eval(), lq, draw(SIZE, keys), settle(model, Ask(**wishes)),
            estimate,
        )  # fmt: skip


def distance(one, other):
    return (one - other).square().mean().sqrt().item()


@pytest.mark.parametrize("steps", [1, 4])
def test_it_restores_better_than_nothing(trained, steps):
    batch = faces(900, 16)
    restored = restore(trained, batch.lq, steps=steps)
    assert distance(restored, batch.hq) < 0.97 * distance(batch.lq, batch.hq)


@pytest.mark.parametrize("steps", [1, 4])
def test_clean_faces_stay_clean_and_stay_so_again(trained, steps):
    hq = faces(901, 16).hq
    harm = distance(faces(901, 16).lq, hq)
    once = restore(trained, hq, steps=steps)
    twice = restore(trained, once, steps=steps)
    assert distance(once, hq) < 0.5 * harm
    assert distance(twice, once) < 0.5 * harm


def test_a_little_noise_on_the_truth_leaves_it_the_truth(trained):
    """A warm start from the truth stays nearer to it the less it is noised."""
    batch = faces(902, 16)
    found = [
        distance(restore(trained, batch.lq, batch.hq, start="estimate", t0=t0, steps=1), batch.hq)
        for t0 in (0.02, 0.3, 1.0)
    ]
    assert found[0] < found[1] < found[2]
    assert found[0] < 0.8 * found[2]  # which is a start that holds nothing of the truth


def test_everything_random_of_a_step_follows_from_its_faces_and_its_number():
    one, other = stage(), stage()
    batch = faces(3)
    torch.manual_seed(1)
    first = one.accumulate(batch, Moment(3, 12, 24, 1))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert other.accumulate(batch, Moment(3, 12, 24, 1)) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert other.accumulate(batch, Moment(4, 16, 24, 1)) == first  # before the net has moved,
    with torch.no_grad():
        for net in (one.net, other.net):
            net.door.tail.weight.fill_(0.1)
    first = one.accumulate(batch, Moment(3, 12, 24, 1))
    assert other.accumulate(batch, Moment(3, 12, 24, 1)) == first
    assert other.accumulate(batch, Moment(4, 16, 24, 1)) != first  # the drop-out is another


def test_noise_levels_lie_all_over_the_schedule_and_between_its_times():
    built = stage()
    many = faces(5, 400)
    found = built._noised(torch.zeros_like(many.hq), many)
    signal = found.level.signal.flatten().double()
    edges = torch.from_numpy(built.chain.alpha_bar).sqrt()
    assert signal.min() < edges[-5]
    assert signal.max() > edges[5]
    assert (signal[:, None] - edges).abs().min(dim=1).values.max() > 1e-4
    at = torch.searchsorted(edges.flip(0).contiguous(), signal)
    assert at.double().mean().item() == pytest.approx(25, abs=3)
    torch.testing.assert_close(found.state, found.level.noise * found.noise)
    assert isinstance(found.level, Level)


def test_the_quality_of_some_faces_is_withheld():
    built = stage()
    told = built._qualities(faces(6, 200))
    assert 0.35 < told.isnan().double().mean() < 0.65
    torch.testing.assert_close(told[~told.isnan()], faces(6, 200).quality[~told.isnan()])
    assert stage(model={"unet": MODEL["unet"] | {"condition": None}})._qualities(faces(6)) is None


def test_resumed_training_ends_with_the_same_bits(tmp_path):
    whole, half, rest = stage(), stage(), stage()
    train(whole, tmp_path / "whole")
    short = Trainer(half, Alone(), FolderStore(tmp_path / "parts"), Notes())
    short.run = short.run.model_copy(update={"num_images": 3 * BATCH})
    short.train(Source())
    train(rest, tmp_path / "parts")
    assert same(state_of(whole), state_of(rest))


class Together:
    """Two workers in two threads; sums are the same on both, to the bit."""

    def __init__(self, rank, barrier, desk):
        self.rank, self.world = rank, 2
        self._barrier, self._desk = barrier, desk

    def _exchange(self, mine):
        self._desk[self.rank] = mine
        self._barrier.wait(60)
        both = list(self._desk)
        self._barrier.wait(60)
        return both

    def sum_(self, tensors):
        both = self._exchange([t.clone() for t in tensors])
        for tensor, one, other in zip(tensors, *both, strict=True):
            tensor.copy_(one + other)

    def broadcast_(self, tensors):
        for own, first in zip(
            tensors, self._exchange([t.clone() for t in tensors])[0], strict=True
        ):
            own.copy_(first)

    def barrier(self):
        self._barrier.wait(60)

    def agree(self, flag):
        return any(self._exchange(flag))


def test_two_workers_compute_what_one_does(tmp_path):
    """In float64, 20 steps; without drop-out, whose generator two threads would share."""
    unet = MODEL["unet"] | {"dropout": 0.0}

    def built():
        made = stage(20, model={"unet": unet}, run={"part_size": 2})
        for net in (made.net, made.averages["unet"]):
            net.double()
        return made

    alone = built()
    train(alone, tmp_path / "one")
    barrier, desk, workers = threading.Barrier(2), [None, None], [built(), built()]
    threads = [
        threading.Thread(
            target=train,
            args=(worker, tmp_path / "two"),
            kwargs={"comm": Together(r, barrier, desk)},
        )
        for r, worker in enumerate(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = state_of(alone)
    for worker in workers:
        for name, value in state_of(worker).items():
            torch.testing.assert_close(value, expected[name], atol=1e-10, rtol=0)
    moved = expected["unet.door.tail.weight"]
    assert moved.dtype == torch.float64
    assert moved.abs().max() > 1e-3


def test_validation_and_preview_show_what_the_average_makes(tmp_path):
    built, batch = stage(2), faces(7)
    notes = Notes()
    train(built, tmp_path, notes, validation=[batch])
    figures = notes.figures[-1][1]
    assert {"val/psnr", "val/l1", "val/loss", "val/clean_psnr"} <= set(figures)
    columns = built.preview(batch)
    assert list(columns) == ["LQ", "1 step", "restored", "quality 0.1", "quality 0.9", "HQ"]
    assert all(picture.shape == batch.hq.shape for picture in columns.values())
    assert built.net.training


@torch.no_grad()
def test_without_scores_it_shows_what_its_bundle_does():
    built = stage(model={"unet": MODEL["unet"] | {"condition": {"default": 0.9}}})
    built.observe_scores([math.nan] * NUM_KNOTS)
    for parameter in built.result()["unet"].parameters():
        parameter.normal_(std=0.1)
    batch = faces(7)
    columns = built.preview(batch)
    assert list(columns) == ["LQ", "1 step", "restored", "HQ"]
    unknown = built._restored(batch, batch.lq, Ask(quality="unknown"))
    assert torch.equal(columns["restored"], unknown)


def test_pictures_are_judged_only_where_that_counts():
    calls = []

    class Watching(Judges):
        def perceptual(self, image, reference):
            calls.append(image)
            return (image - reference).square().mean()

    built, batch = stage(weights={"l1": 1.0, "l2": 0.5}), faces(8)
    built.judges = Watching()
    assert set(built.accumulate(batch, Moment(0, 0, 24, 1))) == {"l1", "l2", "loss"}
    assert not calls
    built = stage(weights={"l1": 1.0, "lpips": 0.5})
    built.judges = Watching()
    terms = built.accumulate(batch, Moment(0, 0, 24, 1))
    assert set(terms) == {"l1", "lpips", "loss"}
    torch.testing.assert_close(calls[0], batch.lq)  # an untrained net means the degraded face


def test_the_settings_default_to_those_of_the_source():
    config = IDMTrainConfig.model_validate({"model": {}, "run": {"num_images": 1}})
    assert config.model == IDMConfig()
    assert (config.model.param, config.model.noise.num_steps) == ("eps", 2000)
    assert config.adam.lr == 1e-4
    assert dict(config.weights) == {"l1": 1.0, "l2": 0.0, "lpips": 0.0, "identity": 0.0}
