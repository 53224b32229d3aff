"""Training IQP: neither workers nor pauses change the result."""

import threading

import pytest
import torch

from tests.vsp_model.tiny_iqp import (
    BATCH,
    BOOKS,
    Notes,
    Source,
    brightness,
    same,
    stage_of,
    state_of,
)
from vsp_model.train.distributed import Alone
from vsp_model.train.judges import Judges
from vsp_model.train.loop import Trainer
from vsp_model.train.sameness import changed_setting, config_identity
from vsp_model.train.store import FolderStore

pytestmark = pytest.mark.usefixtures("one_thread")


class Meeting:
    """What two workers in one process share."""

    def __init__(self):
        self.barrier = threading.Barrier(2)
        self.said = [None, None]


class Worker:
    """One of two workers (``Comm``)."""

    world = 2

    def __init__(self, rank, meeting):
        self.rank, self.meeting = rank, meeting

    def _exchange(self, value):
        self.meeting.said[self.rank] = value
        self.meeting.barrier.wait(60)
        said = list(self.meeting.said)
        self.meeting.barrier.wait(60)
        return said

    @torch.no_grad()
    def sum_(self, tensors):
        first, second = self._exchange([t.clone() for t in tensors])
        for tensor, a, b in zip(tensors, first, second, strict=True):
            tensor.copy_(a + b)

    @torch.no_grad()
    def broadcast_(self, tensors):
        first, _ = self._exchange([t.clone() for t in tensors])
        for tensor, a in zip(tensors, first, strict=True):
            tensor.copy_(a)

    def barrier(self):
        self._exchange(None)

    def agree(self, flag):
        return any(self._exchange(flag))


@pytest.fixture
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


PATCHES = {"network": {"channels": 16, "num_layers": 1}, "starts_at": 0.0}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("books", {"model": {"books": BOOKS}, "patches": PATCHES}),
        pytest.param("books", {}, marks=pytest.mark.slow),
        ("codes", {}),
        pytest.param("codes", {"quality_mode": "st_encoder"}, marks=pytest.mark.slow),
        pytest.param("codes", {"quality_mode": "st_logits"}, marks=pytest.mark.slow),
        pytest.param(
            "fidelity", {"train_encoder": True, "random_share": 0.5}, marks=pytest.mark.slow
        ),
        pytest.param(
            "fidelity",
            {"patches": PATCHES | {"starts_at": 0.1}, "late": {}},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_workers_are_one(tmp_path, doubles, kind, settings):
    run = {"num_images": 20 * BATCH, "part_size": 2, "checkpoint_images": 100 * BATCH,
           "log_images": 20 * BATCH, "preview_images": 100 * BATCH}  # fmt: skip
    judges = Judges(quality=brightness, monitor=brightness)
    alone, *pair = [stage_of(kind, judges, run=run, **settings) for _ in range(3)]
    Trainer(alone, Alone(), FolderStore(tmp_path / "1"), Notes()).train(Source())
    meeting, faults = Meeting(), []

    def work(rank):
        store = FolderStore(tmp_path / "2")
        try:
            Trainer(pair[rank], Worker(rank, meeting), store, Notes()).train(Source())
        except Exception as error:
            faults.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    one, other = state_of(alone), state_of(pair[0])
    assert same(other, state_of(pair[1]))
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, atol=1e-10, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
    moved = state_of(stage_of(kind, run=run, **settings))
    assert not same(one, moved)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("books", {"model": {"books": BOOKS}, "patches": PATCHES, "adam": {"lr": 1e-3}}),
        ("codes", {"quality_mode": "st_logits", "guard": {"every_steps": 2}}),
        ("fidelity", {}),
        ("fidelity", {"patches": PATCHES, "train_encoder": True}),
    ],
)
def test_a_resumed_run_has_the_same_losses_and_weights(tmp_path, kind, settings):
    judges = Judges(quality=brightness, monitor=brightness)
    whole = stage_of(kind, judges, **settings)
    notes = Notes()
    Trainer(whole, Alone(), FolderStore(tmp_path / "whole"), notes).train(Source())
    folder, again = FolderStore(tmp_path / "half"), Notes()
    half = {"num_images": 2 * BATCH}
    Trainer(stage_of(kind, judges, run=half, **settings), Alone(), folder, Notes()).train(Source())
    resumed = stage_of(kind, judges, **settings)
    Trainer(resumed, Alone(), folder, again).train(Source())
    assert same(state_of(resumed), state_of(whole))
    assert again.figures == notes.figures[2:]


def test_what_joined_later_and_is_off_leaves_a_run_what_it_was():
    """Or a run of before could not be resumed, and would give a file with another hash."""
    before = config_identity(stage_of("fidelity").config)
    assert not {"patches", "late"} & before.keys()
    assert "final_lr" not in before["adam"]
    assert config_identity(stage_of("books").config)["patches"] is None  # as ever
    adam = {"lr": 1e-3, "decay": "cosine", "final_lr": 1e-4}
    now = config_identity(stage_of("fidelity", adam=adam, late={}, patches=PATCHES).config)
    assert {"patches", "late"} <= now.keys()
    assert now["adam"]["final_lr"] == 1e-4


def test_a_guard_decides_only_where_a_score_is_trained_for():
    """Its settings joined later, too, and their defaults have changed."""
    off = stage_of("codes").config
    assert changed_setting(config_identity(off) | {"guard": {"every_steps": 100}}, off) is None
    on = stage_of("codes", quality_mode="st_logits", guard={"fall": None}).config
    stored = config_identity(on)
    assert "fall" not in stored["guard"]
    assert changed_setting(stored, on) is None
    stored["guard"]["every_steps"] = 100
    assert changed_setting(stored, on) == ("guard.every_steps", 100, 25)
