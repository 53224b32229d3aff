"""Every random number comes from (seed, key) alone."""

import random
import threading

import numpy as np
import pytest
import torch

from vsp_model.randomness import RandomInputs, RandomShapes, draw, generator_for, noise_maps

SHAPES = RandomShapes(
    num_tokens=6,
    style_dim=8,
    num_slots=6,
    prior_sides=(4, 8, 8),
    restoration_sides=(16, 8, 4),
)
PINNED = {
    "start": [1.226179, -0.809737, -0.180864],
    "z": [0.5096, -1.650071, 1.974214],
    "prior": [0.153745, 1.140036, 1.328176],
    "restoration": [-0.308648, -1.948325, 0.668871],
}


def tensors(inputs: RandomInputs):
    """Every tensor of the inputs, flat."""
    parts = [inputs.start, inputs.z, inputs.inject]
    return [
        *(p for p in parts if p is not None),
        *(inputs.prior_noise or []),
        *(inputs.restoration_noise or []),
    ]


def row(inputs, i):
    return [t[i] for t in tensors(inputs)]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_shapes_and_types():
    inputs = draw(SHAPES, ["a", "b"])
    assert inputs.start.shape == (2, 6, 8)
    assert inputs.z.shape == (2, 1, 8)
    assert inputs.inject is None
    assert [m.shape for m in inputs.prior_noise] == [(2, 1, s, s) for s in (4, 8, 8)]
    assert [m.shape for m in inputs.restoration_noise] == [(2, 1, s, s) for s in (16, 8, 4)]
    assert {t.dtype for t in tensors(inputs)} == {torch.float32}


@pytest.mark.parametrize("mixing", [False, True])
def test_a_draw_does_not_depend_on_neighbours_order_or_thread(mixing):
    keys = ["a", "b", "c"]
    together = draw(SHAPES, keys, 5, mixing=mixing)
    reordered = draw(SHAPES, ["c", "x", "a"], 5, mixing=mixing)
    assert same(row(together, 2), row(reordered, 0))
    assert same(row(together, 0), row(reordered, 2))
    alone = []
    threads = [
        threading.Thread(target=lambda k=k: alone.append((k, draw(SHAPES, [k], 5, mixing=mixing))))
        for k in keys
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key, inputs in alone:
        assert same(row(together, keys.index(key)), row(inputs, 0))


def test_another_seed_key_or_purpose_gives_other_numbers():
    base = draw(SHAPES, ["a"], 0)
    for other in (draw(SHAPES, ["a"], 1), draw(SHAPES, ["b"], 0)):
        for a, b in zip(tensors(base), tensors(other), strict=True):
            assert not torch.isclose(a, b).any()
    assert not torch.equal(base.prior_noise[0], base.restoration_noise[2])
    streams = [generator_for(*args) for args in ((1, "1", "x"), (11, "", "x"), (1, "1", "y"))]
    assert len({s.random() for s in streams}) == 3


def test_the_numbers_are_pinned():
    """A change of the stream would change every restoration ever published with a seed."""
    inputs = draw(SHAPES, ["face"], 42)
    assert inputs.start[0, 0, :3].tolist() == pytest.approx(PINNED["start"], abs=1e-6)
    assert inputs.z[0, 0, :3].tolist() == pytest.approx(PINNED["z"], abs=1e-6)
    assert inputs.prior_noise[0].flatten()[:3].tolist() == pytest.approx(PINNED["prior"], abs=1e-6)
    first = inputs.restoration_noise[0].flatten()[:3].tolist()
    assert first == pytest.approx(PINNED["restoration"], abs=1e-6)


def test_the_numbers_are_standard_normal():
    shapes = RandomShapes(18, 512, 16, (64,), (64,))
    inputs = draw(shapes, [str(i) for i in range(8)])
    for values in (inputs.start, inputs.z, *inputs.prior_noise, *inputs.restoration_noise):
        assert abs(values.mean()) < 0.06
        assert values.std().item() == pytest.approx(1, abs=0.05)


def test_mean_mode_is_the_same_for_every_key_and_seed_and_injects_nothing():
    inputs = draw(SHAPES, ["a", "b"], 0, "mean")
    assert same(row(inputs, 0), row(inputs, 1))
    assert same(row(inputs, 0), row(draw(SHAPES, ["z"], 9, "mean"), 0))
    assert inputs.prior_noise is None
    assert inputs.restoration_noise is None
    assert not torch.equal(inputs.start, draw(SHAPES, ["a", "b"], 0).start)


def test_mixing_adds_a_second_style_and_keeps_the_rest():
    plain, mixed = draw(SHAPES, ["a"]), draw(SHAPES, ["a"], mixing=True)
    assert mixed.z.shape == (1, 2, 8)
    assert torch.equal(mixed.z[:, :1], plain.z)
    assert torch.equal(mixed.start, plain.start)
    assert same(mixed.prior_noise, plain.prior_noise)


def test_mixing_happens_for_half_of_the_images_at_every_slot_alike():
    inject = draw(SHAPES, [str(i) for i in range(2000)], mixing=True).inject
    assert inject.dtype == torch.int64
    mixed = inject[inject < 6]
    assert len(mixed) / 2000 == pytest.approx(0.5, abs=0.04)
    counts = torch.bincount(mixed, minlength=6)
    assert counts[0] == 0
    assert (counts[1:] > 150).all()


def test_a_longer_list_of_maps_begins_with_the_shorter_one():
    short, long = (noise_maps(sides, ["a"], 3, "prior") for sides in ([4, 8], [4, 8, 8, 16]))
    assert same(short, long[:2])
    assert len(long) == 4


def test_global_generators_are_left_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = draw(SHAPES, ["a"])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    torch.manual_seed(2)
    assert same(tensors(first), tensors(draw(SHAPES, ["a"])))


def test_moving_keeps_the_values():
    inputs = draw(SHAPES, ["a"], mixing=True)
    moved = inputs.to("meta")
    assert [t.shape for t in tensors(moved)] == [t.shape for t in tensors(inputs)]
    assert {t.device.type for t in tensors(moved)} == {"meta"}
    assert same(tensors(inputs.to("cpu")), tensors(inputs))
    assert draw(SHAPES, ["a"], 0, "mean").to("meta").prior_noise is None
