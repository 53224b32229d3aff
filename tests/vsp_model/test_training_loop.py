"""The loop of training on real stages, fed random tensors."""

import json
import os
import resource

import pytest
import torch

from tests.vsp_model.tiny import tiny_config
from vsp_model.networks import PARTS
from vsp_model.train.batch import Batch
from vsp_model.train.config import AdamConfig
from vsp_model.train.distributed import Alone
from vsp_model.train.ema import decay_of
from vsp_model.train.encoder import EncoderConfig, EncoderStage
from vsp_model.train.judges import Judges
from vsp_model.train.loop import Trainer, TrainingError
from vsp_model.train.optimiser import Player, learning_rate
from vsp_model.train.restorer import RestorerConfig, RestorerStage
from vsp_model.train.stage import Moment
from vsp_model.train.state import load_state, save_state
from vsp_model.train.store import FolderStore, best_of, superfluous

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, BATCH = 32, 4
RUN = {"num_images": 4 * BATCH, "batch_size": BATCH, "threads": 1, "log_images": BATCH,
       "preview_images": 2 * BATCH, "checkpoint_images": BATCH}  # fmt: skip
ADVERSARY = {
    "network": {"size": SIZE, "channels": [16] * 4, "group_size": 2},
    "r1_interval": 2,
    "augment": {"target": -2, "interval": 1, "ramp_images": 20},
}


def model():
    values = tiny_config(SIZE, widths=(16, 16, 16, 16)).model_dump()
    values["encoder"] |= {"stem_channels": 16, "stage_channels": (16,) * 4}
    return values


def faces(step, count=BATCH):
    generator = torch.Generator().manual_seed(step)
    lq, hq = (
        (torch.rand(count, 3, SIZE, SIZE, generator=generator) * 2 - 1).contiguous(
            memory_format=torch.channels_last
        )
        for _ in range(2)
    )
    names = tuple(f"{step}-{i}" for i in range(count))
    return Batch(
        names, names, lq, hq, torch.full((count, 5, 2), torch.nan), torch.full((count,), torch.nan)
    )


class Source:
    """Random faces; those of the steps in `poisoned` hold a NaN."""

    def __init__(self, poisoned=()):
        self.poisoned = poisoned

    def batches(self, parts, first_step):
        step = first_step
        while True:
            whole = faces(step)
            if step in self.poisoned:
                whole.hq[0, 0, 3, 3] = torch.nan
                whole.lq[0, 0, 3, 3] = torch.nan
            pieces = [slice(part, None, parts.count) for part in parts.own]
            yield [Batch(*(field[piece] for field in whole)) for piece in pieces]
            step += 1


class Notes:
    def __init__(self):
        self.lines, self.figures = [], []

    def scalars(self, images_seen, values):
        self.figures.append((images_seen, values))

    def pictures(self, images_seen, columns):
        assert columns["LQ"].shape == columns["HQ"].shape

    def say(self, line):
        self.lines.append(line)


def parts(config):
    torch.manual_seed(0)
    return {name: PARTS[name].build(getattr(config.model, name)) for name in PARTS_USED}


PARTS_USED = ("encoder", "prior", "diffuser", "restoration")


def encoder_stage(run=None, **settings):
    config = EncoderConfig.model_validate(
        {"model": model(), "run": RUN | (run or {}), "progressive": None} | settings
    )
    built = parts(config)
    return EncoderStage(config, {n: built[n] for n in ("encoder", "prior")}, Judges())


def restorer_stage(**settings):
    values = {"model": model(), "run": RUN, "adversary": ADVERSARY, "weights": {"l1": 1.0}}
    config = RestorerConfig.model_validate(values | settings)
    return RestorerStage(config, parts(config), Judges())


def trainer(stage, folder, notes=None, **rest):
    return Trainer(stage, Alone(), FolderStore(folder), notes or Notes(), **rest)


def state_of(stage):
    return {f"{n}.{k}": v.clone() for n, net in stage.networks().items()
            for k, v in net.state_dict().items()}  # fmt: skip


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_poisoned_batch_is_left_out_and_changes_nothing(tmp_path):
    stage, notes = encoder_stage({"num_images": BATCH, "checkpoint_images": 99}), Notes()
    before = state_of(stage)
    trainer(stage, tmp_path, notes).train(Source(poisoned={0}))
    assert same(before, state_of(stage))  # running statistics of batch norms, too
    assert notes.lines == ["step 0: gradients of encoder are not finite; the step is left out"]


def test_many_poisoned_batches_end_the_run(tmp_path):
    stage, notes = encoder_stage({"max_bad_steps": 2}), Notes()
    with pytest.raises(TrainingError, match=r"2 steps in a row .* \(the last: 2, encoder\)"):
        trainer(stage, tmp_path, notes).train(Source(poisoned={1, 2}))
    assert all(torch.isfinite(v).all() for v in state_of(stage).values())


def test_a_good_step_between_bad_ones_forgives(tmp_path):
    stage = encoder_stage({"max_bad_steps": 2})
    assert trainer(stage, tmp_path).train(Source(poisoned={0, 2})).finished


@pytest.mark.parametrize("part_size", [1, 2])
def test_statistics_are_the_means_over_parts(tmp_path, part_size):
    stage = encoder_stage({"part_size": part_size, "num_images": BATCH})
    norm = next(m for m in stage.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before, seen = norm.running_mean.clone(), []
    norm.register_forward_hook(lambda _, x, __: seen.append(x[0].mean(dim=(0, 2, 3))))
    trainer(stage, tmp_path).train(Source())
    expected = 0.9 * before + 0.1 * torch.stack(seen).mean(dim=0)
    assert len(seen) == BATCH // part_size
    torch.testing.assert_close(norm.running_mean, expected)
    assert norm.num_batches_tracked == 1  # a step counts once, whoever computes how many parts


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.0, 1.0, 1.0, 1.0]),
        ({"warmup_images": 8}, [1 / 8, 5 / 8, 1.0, 1.0]),
        ({"decay": "cosine"}, [1.0, 0.853553, 0.5, 0.146447]),
        ({"decay": "cosine", "final_lr": 4e-4}, [1.0, 0.912132, 0.7, 0.487868]),
    ],
)
def test_the_learning_rate_follows_its_schedule(tmp_path, settings, expected):
    adam = {"lr": 1e-3, **settings}
    notes = Notes()
    trainer(encoder_stage(adam=adam), tmp_path, notes).train(Source())
    rates = [values["lr/encoder"] for _, values in notes.figures]
    assert rates == pytest.approx([1e-3 * each for each in expected], rel=1e-4)
    assert learning_rate(AdamConfig(**adam), 12, 16) == pytest.approx(rates[-1], rel=1e-5)


def test_a_rate_to_end_at_needs_a_rate_that_falls():
    with pytest.raises(
        ValueError, match=r"final_lr 0.0001: the rate is constant; use decay: cosine"
    ):
        AdamConfig(lr=1e-3, final_lr=1e-4)
    with pytest.raises(ValueError, match=r"final_lr 0.01: expected at most lr 0.001"):
        AdamConfig(lr=1e-3, decay="cosine", final_lr=1e-2)


def test_gradients_are_clipped_to_the_configured_norm():
    net = torch.nn.Linear(2, 1, bias=False)
    player = Player({"net": net}, AdamConfig(lr=0.1, clip_norm=1.0))
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    assert player.gradient_norm() == 5
    player.update(player.gradient_norm(), 0, 1)
    torch.testing.assert_close(net.weight.grad, torch.tensor([[0.6, 0.8]]))


def test_r1_runs_every_nth_step_and_the_adversary_waits_for_its_turn(tmp_path):
    late = ADVERSARY | {"starts_at": 0.5}
    stage, notes = restorer_stage(adversary=late), Notes()
    before = state_of(stage)
    trainer(stage, tmp_path, notes).train(Source())
    asked = [("adversarial" in v, "r1" in v) for _, v in notes.figures]
    assert asked == [(False, False), (False, False), (True, True), (True, False)]
    assert not same(before, state_of(stage))
    steps = {s["step"].item() for s in stage.players["discriminator"].adam.state.values()}
    assert steps == {2.0}  # the steps before did not count


def test_the_average_follows_by_its_half_life(tmp_path):
    stage = restorer_stage(
        adversary=None, ema={"half_life_images": BATCH, "ramp": 0},
        run=RUN | {"num_images": BATCH},
    )  # fmt: skip
    name, first = next(iter(stage.net.named_parameters()))
    start = first.detach().clone()
    trainer(stage, tmp_path).train(Source())
    average = dict(stage.averages["restoration"].named_parameters())[name]
    torch.testing.assert_close(average, (start + first) / 2)
    assert decay_of(100, 4, 40, 0.1) == pytest.approx(0.5)  # the ramp: a tenth of 40 images


def test_resumed_training_ends_with_the_same_bits(tmp_path):
    whole, half, rest = restorer_stage(), restorer_stage(), restorer_stage()
    trainer(whole, tmp_path / "whole").train(Source())
    short = trainer(half, tmp_path / "parts")
    short.run = short.run.model_copy(update={"num_images": 2 * BATCH})
    short.train(Source())
    notes = Notes()
    trainer(rest, tmp_path / "parts", notes).train(Source())
    assert notes.lines[0] == "going on from step 2 of 4"
    assert same(state_of(whole), state_of(rest))
    assert whole.adversary.controller.probability == rest.adversary.controller.probability > 0
    newest = [sorted((tmp_path / n).glob("step-*"))[-1] for n in ("whole", "parts")]
    assert len({(f / "state.safetensors").read_bytes() for f in newest}) == 1


def test_a_changed_setting_is_refused_by_name(tmp_path):
    trainer(encoder_stage({"num_images": BATCH}), tmp_path).train(Source())
    with pytest.raises(TrainingError, match=r"made with adam\.lr 0\.0001, now 0\.5; use the old"):
        trainer(encoder_stage(adam={"lr": 0.5}), tmp_path).train(Source())
    trainer(encoder_stage(), tmp_path, origin={"faces": 1}).train(Source())  # of before: let pass
    with pytest.raises(TrainingError, match="made with faces 1, now 2"):
        trainer(encoder_stage(), tmp_path, origin={"faces": 2}).train(Source())


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    trainer(encoder_stage({"num_images": 2 * BATCH}), tmp_path).train(Source())
    newest = sorted(tmp_path.glob("step-*"))[-1] / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    notes = Notes()
    trainer(encoder_stage(), tmp_path, notes).train(Source())
    assert notes.lines == [
        f"{newest.parent}: damaged, the checkpoint before it is used",
        "going on from step 1 of 4",
    ]


def test_the_newest_and_the_best_are_kept(tmp_path):
    store = FolderStore(tmp_path)
    for step, loss in enumerate([0.3, 0.1, float("nan"), 0.1, 0.2, None], 1):
        facts = {} if loss is None else {"val/loss": loss}
        with store.write(step, facts) as folder:
            (folder / "x").write_text("x")
        store.prune(2, "val/loss")
    assert [int(n[-9:]) for n in store.names()] == [4, 5, 6]
    assert store.best("val/loss").step == 4
    assert best_of({}, "val/loss") is None
    assert superfluous({"a": {}, "b": {}}, 1, "val/loss") == ["a"]


def test_the_remains_of_a_killed_writer_go_away(tmp_path):
    (tmp_path / ".step-000000001.1").mkdir()
    with FolderStore(tmp_path).write(2, {}) as folder:
        (folder / "x").write_text("x")
    assert os.listdir(tmp_path) == ["step-000000002"]


@pytest.fixture
def file_limit():
    """Set the largest size a file may have; the system then answers as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_costs_a_checkpoint_and_not_the_last(tmp_path, file_limit):
    stage, notes = encoder_stage({"num_images": 3 * BATCH}), Notes()

    class Filling(Source):
        def batches(self, parts, first_step):
            for step, batch in enumerate(super().batches(parts, first_step), first_step):
                if step == 1:
                    file_limit(64 * 1024)
                yield batch

    with pytest.raises(TrainingError, match="the last checkpoint could not be written: the disk"):
        trainer(stage, tmp_path, notes).train(Filling())
    assert notes.lines == [
        "step 2: no checkpoint, the disk is full (File too large); the one before is intact, "
        "going on"
    ]
    assert os.listdir(tmp_path) == ["step-000000001"]
    assert FolderStore(tmp_path).newest().step == 1


def test_room_is_looked_for_before_the_first_step(tmp_path, file_limit):
    file_limit(64 * 1024)
    with pytest.raises(TrainingError, match=r"no room for a checkpoint of \d\.\d MB: the disk is"):
        trainer(encoder_stage(), tmp_path).train(Source())
    assert not os.listdir(tmp_path)


def test_state_survives_the_files(tmp_path):
    state = {"a": {0: torch.arange(3), 1: [1.5, None, "x"]}, "b": (True, torch.ones(2, 2))}
    save_state(state, tmp_path / "t", tmp_path / "j")
    back = load_state(tmp_path / "t", tmp_path / "j")
    assert torch.equal(back["a"][0], state["a"][0])
    assert back["a"][1] == state["a"][1]
    assert back["b"][0] is True
    json.loads((tmp_path / "j").read_text())


def test_moments_know_how_far_a_run_is():
    assert Moment(2, 8, 16, 1).progress == 0.5
