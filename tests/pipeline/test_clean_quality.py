"""Known damage, the quality score that ranks it, and how that score is fitted."""

import re
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage import data

from pipeline.cleaning.calibration import levels
from pipeline.cleaning.quality import fit as fit_quality
from pipeline.cleaning.quality.damage import (
    KINDS,
    TRAINED,
    UNSEEN,
    damage,
    difference,
    severity_of,
    strength_of,
)
from pipeline.cleaning.quality.scorer import QualityScorer, working_size
from pipeline.errors import UserError
from pipeline.images import decode, resize
from pipeline.plan import find_shards
from pipeline.shards import read_shard
from vsp_model.quality import BUILT_IN, SIZES, QualityConfig, QualityNet
from vsp_model.train.quality import QualityTrainConfig

TINY = QualityTrainConfig(net=QualityConfig(channels=(4, 4, 8, 8), hidden=8), batch_size=8)


@pytest.fixture(scope="module")
def scorer() -> QualityScorer:
    return QualityScorer()


def cameraman() -> np.ndarray:
    """The head of scikit-image's cameraman (CC0), which no training has seen."""
    camera = np.repeat(data.camera()[:, :, None], 3, axis=2)
    return resize(np.ascontiguousarray(camera[60:260, 120:320]), 128)


def portrait(side: int = 128) -> np.ndarray:
    return resize(np.ascontiguousarray(data.astronaut()[0:256, 96:352]), side)


def spearman(scorer, faces, kinds, severities=(0.2, 0.4, 0.6, 0.8, 1.0)) -> float:
    """Of severity and falling quality, everything together, clean faces too."""
    told = [(0.0, scorer.score(face)) for face in faces.values()]
    for kind in kinds:
        for severity in severities:
            for key, face in faces.items():
                told.append((severity, scorer.score(damage(face, kind, severity, seed=1, key=key))))
    return float(-spearmanr(*zip(*told, strict=True))[0])


# --------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("kind", KINDS)
def test_damage_grows_with_severity_and_repeats_itself(kind):
    face = portrait()
    steps = [damage(face, kind, severity, seed=0, key="a") for severity in (0, 0.3, 0.65, 1)]
    apart = [difference(step, face) for step in steps]
    assert apart == sorted(apart)
    assert apart[0] == 0
    assert 0.5 < severity_of(steps[-1], face) <= 1.5
    assert all(step.shape == face.shape and step.dtype == np.uint8 for step in steps)
    assert np.array_equal(steps[1], damage(face, kind, 0.3, seed=0, key="a"))
    assert np.array_equal(steps[0], face)


def test_kinds_of_one_severity_are_equally_far_from_the_original():
    face = portrait()
    for severity in (0.4, 0.8):
        told = [severity_of(damage(face, kind, severity, seed=0, key="a"), face) for kind in KINDS]
        assert np.median(told) == pytest.approx(severity, rel=0.25)
        assert max(told) < 2.2 * min(told)


def test_another_key_or_seed_is_other_damage():
    noise = damage(portrait(), "noise", 0.5, seed=0, key="a")
    assert not np.array_equal(noise, damage(portrait(), "noise", 0.5, seed=0, key="b"))
    assert not np.array_equal(noise, damage(portrait(), "noise", 0.5, seed=1, key="a"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [32, 64, 200])
def test_damage_fits_every_size(kind, side):
    face = portrait(side)
    damaged = damage(face, kind, 0.8, seed=0, key="a")
    assert damaged.shape == face.shape
    assert severity_of(damaged, face) > (0.2 if side > 32 else 0)


def test_strengths_are_named_by_severity():
    assert strength_of("jpeg", 0) == 0
    assert strength_of("blur", 0.25) < strength_of("blur", 0.3)
    assert set(UNSEEN) | set(TRAINED) == set(KINDS)
    assert not set(UNSEEN) & set(TRAINED)


# ---------------------------------------------------------------------------------------- score


def test_severity_is_ranked_without_any_data_at_hand(scorer):
    faces = {"astronaut": portrait(), "cameraman": cameraman()}
    assert spearman(scorer, faces, TRAINED) >= 0.85
    assert all(spearman(scorer, faces, (kind,)) >= 0.7 for kind in ("motion", "median"))


def test_levels_of_damage_are_told_apart(scorer):
    face = portrait()
    told = [scorer.score(face)]
    told += [scorer.score(levels.damage(face, n, seed=0, key="a")) for n in range(1, 6)]
    assert told == sorted(told, reverse=True)
    assert told[0] > 0.8
    assert told[-1] < 0.15


@pytest.mark.parametrize("shape", [(32, 32), (33, 70), (64, 64), (100, 99), (129, 128), (600, 600)])
def test_every_size_has_a_score(scorer, shape):
    face = cv2.resize(portrait(256), shape[::-1], interpolation=cv2.INTER_AREA)
    clean, worse = scorer.score(face), scorer.score(cv2.GaussianBlur(face, (0, 0), shape[0] / 30))
    assert 0 <= worse < clean - 0.2 < clean <= 1


def test_a_face_is_judged_at_the_side_it_has():
    assert [working_size(side) for side in (20, 32, 63, 64, 127, 128, 1024)] == [
        32, 32, 32, 64, 64, 128, 128,
    ]  # fmt: skip


def test_small_faces_are_judged_as_small_faces(scorer):
    assert all(scorer.score(portrait(side)) > 0.7 for side in SIZES)
    blown_up = cv2.resize(portrait(32), (128, 128), interpolation=cv2.INTER_CUBIC)
    assert scorer.score(blown_up) < 0.5


def test_plain_and_odd_pictures_have_finite_scores(scorer):
    for value in (0, 128, 255):
        assert 0 <= scorer.score(np.full((128, 128, 3), value, np.uint8)) <= 1


def test_the_same_bits_whatever_else_runs(scorer):
    faces = [damage(portrait(), kind, 0.5, seed=0, key="a") for kind in KINDS]
    before = torch.get_num_threads()
    alone = [scorer.score(face) for face in faces]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(scorer.score, faces * 4))
    assert together == alone * 4
    try:
        torch.set_num_threads(3)
        assert [scorer.score(face) for face in faces] == alone
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_scorer_is_known_by_its_file(scorer):
    recorded = BUILT_IN.with_name(f"{BUILT_IN.name}.sha256").read_text().split()[0]
    assert scorer.sha256 == recorded


def test_a_missing_network_is_one_line(tmp_path):
    with pytest.raises(UserError, match="fit-quality"):
        QualityScorer(tmp_path / "nothing.safetensors")


# ------------------------------------------------------------------------------------------ fit


def some_faces(count: int) -> dict[str, np.ndarray]:
    whole, draw = data.coffee(), np.random.default_rng(0)
    places = draw.integers(0, (400 - 160, 600 - 160), (count, 2)).tolist()
    return {
        f"face-{n}": resize(np.ascontiguousarray(whole[y : y + 160, x : x + 160]), 128)
        for n, (y, x) in enumerate(places)
    }


def test_held_out_faces_follow_from_their_keys():
    faces = some_faces(60)
    trained, held_out = fit_quality.split(faces)
    assert set(trained) | set(held_out) == set(faces)
    assert not set(trained) & set(held_out)
    assert 4 <= len(held_out) <= 25
    assert fit_quality.split(dict(reversed(faces.items())))[1].keys() == held_out.keys()


def test_too_few_faces_are_refused():
    with pytest.raises(UserError, match="too few"):
        fit_quality.split(some_faces(5))


def test_batches_follow_from_seed_and_number():
    config = TINY.model_copy(update={"num_steps": 6})
    faces = some_faces(6)
    first, again = (list(fit_quality.batches(faces, config)) for _ in range(2))
    assert len(first) == 6
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.faces, other.faces)
        assert torch.equal(one.severity, other.severity)
    severities = torch.cat([batch.severity for batch in first])
    assert severities.min() == 0
    assert 0.5 < severities.max() <= 1.5
    assert all(batch.faces.abs().max() <= 1 and batch.faces.shape[-1] in SIZES for batch in first)


def test_no_kind_that_is_kept_for_the_test_is_trained(monkeypatch):
    used = set()

    def noted(pixels, kind, severity, *, seed, key):
        used.add(kind)
        return damage(pixels, kind, severity, seed=seed, key=key)

    monkeypatch.setattr(fit_quality, "damage", noted)
    config = TINY.model_copy(update={"num_steps": 30})
    list(fit_quality.batches(some_faces(4), config))
    assert used == set(TRAINED)


@pytest.mark.slow
def test_calibration_makes_the_reference_even():
    torch.manual_seed(1)
    net = QualityNet(TINY.net).eval()
    faces = some_faces(3)
    found = fit_quality.calibrate(net, faces)
    assert tuple(found) == SIZES
    small = [resize(face, 32) for face in faces.values()]
    reference = [
        damage(face, TRAINED[n % len(TRAINED)], level / 10, seed=0, key="a")
        for n in range(len(TRAINED))
        for face in small
        for level in range(11)
    ]
    told = [found[32].quality(severity) for severity in fit_quality.predict(net, reference)]
    assert np.quantile(told, (0.25, 0.5, 0.75)) == pytest.approx((0.25, 0.5, 0.75), abs=0.12)


@pytest.mark.slow
def test_the_command_writes_a_network_that_scores(tmp_path, capsys):
    from jobs.cli import main
    from pipeline.images import encode

    (tmp_path / "in").mkdir()
    for key, face in some_faces(40).items():
        (tmp_path / "in" / f"{key}.png").write_bytes(encode(face, "png"))
    (tmp_path / "in" / "other.png").write_bytes(encode(portrait(), "png"))
    out = tmp_path / "q.safetensors"
    words = ["weights", "fit-quality", str(tmp_path / "in"), str(out), "--keys", "face-*"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--steps", "1"])
    assert stop.value.code in (0, None)
    told = re.search(r"trained on (\d+) faces, calibrated on (\d+)", capsys.readouterr().out)
    assert int(told[1]) + int(told[2]) == 40
    assert 0 <= QualityScorer(out).score(portrait()) <= 1


# ----------------------------------------------------------------------------- with shared faces


def shared_faces(shared_dir, name: str, keys: str, limit: int, *, held_out: bool = False):
    found = {}
    for shard in find_shards(str(shared_dir / "data" / name)):
        for sample in read_shard(shard):
            if not fnmatchcase(sample.key, keys):
                continue
            if not held_out or fit_quality.is_held_out(sample.key):
                found[sample.key] = resize(decode(sample.image.data)[1], 128)
            if len(found) == limit:
                return found
    return found


# Photos of other kinds than the portraits of training are softer: there, sharpening is no damage.
@pytest.mark.parametrize(
    ("keys", "least"), [("congress_*", 0.95), ("aaf_*", 0.84), ("meb_*", 0.88)]
)
@pytest.mark.slow
def test_severity_is_ranked_on_people_never_seen(scorer, shared_dir, keys, least):
    faces = shared_faces(shared_dir, "faces-val", keys, 5)
    assert spearman(scorer, faces, TRAINED) >= least
    assert all(spearman(scorer, faces, (kind,)) >= 0.75 for kind in ("motion", "median"))


def test_clean_public_domain_faces_are_judged_clean(scorer, shared_dir):
    faces = shared_faces(shared_dir, "faces-train", "congress_*", 40, held_out=True)
    mild = [
        scorer.score(damage(face, kind, 0.3, seed=1, key=key))
        for number, (key, face) in enumerate(faces.items())
        for kind in [TRAINED[number % len(TRAINED)]]
    ]
    clean = [scorer.score(face) for face in faces.values()]
    assert np.mean(np.array(clean) > np.median(mild)) >= 0.95
