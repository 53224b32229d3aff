"""The quality network: calibration, file, training without labels."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from vsp_model.files import CheckpointError, verify
from vsp_model.quality import (
    BUILT_IN,
    SIZES,
    Calibration,
    QualityConfig,
    QualityInfo,
    QualityNet,
    load,
    save,
)
from vsp_model.train.quality import QualityBatch, QualityTrainConfig, losses, train

TINY = QualityConfig(channels=(4, 4, 8, 8), hidden=8)
LINE = Calibration(knots=(0.0, 0.5, 1.0))


def info(**changed) -> QualityInfo:
    values = {"config": TINY, "calibration": dict.fromkeys(SIZES, LINE), "facts": {"of": "a test"}}
    return QualityInfo(**(values | changed))


def test_quality_falls_strictly_within_0_and_1():
    knots = tuple(np.sort(np.random.default_rng(0).random(101)).tolist())
    quality = Calibration(knots=knots).quality
    told = [quality(severity) for severity in np.linspace(-0.05, 1.05, 500).tolist()]
    assert all(a > b for a, b in pairwise(told))
    assert 0 < told[-1] < 0.01 < 0.99 < told[0] < 1
    assert quality(float(np.median(knots))) == pytest.approx(0.5, abs=0.01)


def test_quality_far_outside_the_reference_is_finite():
    assert LINE.quality(1e6) == 0
    assert LINE.quality(-1e6) == 1


@pytest.mark.parametrize("knots", [(0.0, 1.0), (0.0, 0.5, 0.5), (1.0, 0.5, 0.0)])
def test_a_calibration_that_does_not_rise_is_refused(knots):
    with pytest.raises(ValueError, match="ascending"):
        Calibration(knots=knots)


@pytest.mark.parametrize("size", SIZES)
def test_one_severity_a_face_whatever_its_neighbours(size):
    net = QualityNet(TINY).eval()
    faces = torch.randn(3, 3, size, size)
    together, alone = net(faces), net(faces[1:2])
    assert together.shape == (3,)
    torch.testing.assert_close(together[1:2], alone)


def test_a_file_gives_back_what_was_saved(tmp_path):
    net, path = QualityNet(TINY), tmp_path / "quality.safetensors"
    digest = save(net, info(), path)
    again, known = load(path)
    assert known == info()
    assert verify(path) == digest
    assert save(again, known, tmp_path / "again.safetensors") == digest
    faces = torch.randn(1, 3, 64, 64)
    assert torch.equal(net(faces), again(faces))


def test_what_is_no_such_network_is_refused_in_one_line(tmp_path):
    net, path = QualityNet(TINY), tmp_path / "quality.safetensors"
    save(net, info(config=QualityConfig(channels=(4, 4, 8, 16), hidden=8)), path)
    with pytest.raises(CheckpointError, match="expected") as refused:
        load(path)
    assert "\n" not in str(refused.value)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="no safetensors"):
        load(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load(path)
    with pytest.raises(CheckpointError, match="no network of"):
        load(BUILT_IN.with_name("vspbfr-128.safetensors"))


def test_ranking_charges_a_wrong_order():
    severity = torch.tensor([0.0, 0.3, 0.6])
    right, wrong = (losses(told, severity, 0.1) for told in (severity, severity.flip(0)))
    assert wrong["ranking"] > 5 * right["ranking"]
    assert right["regression"] == 0


def test_ranking_asks_nothing_of_equals():
    assert losses(torch.tensor([0.1, 0.9]), torch.tensor([0.5, 0.5]), 0.1)["ranking"] == 0


def test_training_learns_the_strength_of_noise_and_repeats_itself():
    config = QualityTrainConfig(net=TINY, batch_size=8, num_steps=60, lr=5e-3, ema_half_life=100)
    batches = []
    for number in range(config.num_steps):
        generator = torch.Generator().manual_seed(number)
        severity = torch.rand(8, generator=generator)
        noise = torch.randn(8, 3, 32, 32, generator=generator)
        batches.append(QualityBatch(0.3 * severity[:, None, None, None] * noise, severity))
    net = train(batches, config)
    told = net(batches[0].faces)
    assert torch.corrcoef(torch.stack([told, batches[0].severity]))[0, 1] > 0.9
    again = train(batches[:3], config), train(batches[:3], config)
    assert torch.equal(*(each(batches[0].faces) for each in again))


def test_the_built_in_network_is_small_whole_and_says_where_it_comes_from():
    net, known = load()
    verify(BUILT_IN)
    assert BUILT_IN.stat().st_size < 5_000_000
    assert {"trained_on", "calibrated_on", "pictures", "kinds"} <= set(known.facts)
    assert not any(parameter.requires_grad for parameter in net.parameters())
