import itertools
import math

import numpy as np
import pytest

from pipeline.cleaning.accept import Verified, accept, content_change, doubt
from pipeline.cleaning.calibration.closeness import Closeness
from pipeline.cleaning.calibration.derive import longest_run, stranger_threshold, strangers, wilson
from pipeline.cleaning.calibration.levels import LEVELS, damage
from pipeline.cleaning.calibration.thresholds import (
    CalibrateConfig,
    Thresholds,
    Trial,
    derive,
    table_lines,
)
from pipeline.cleaning.tables import EMBEDDING_DIM, Decision, Inspected
from pipeline.images import Pixels

CONFIG = CalibrateConfig()
QUALITIES = (0.9, 0.7, 0.5, 0.3, 0.1)


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def people(count: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, EMBEDDING_DIM)))


def blurred_identity(person: np.ndarray, share: float, seed: int) -> np.ndarray:
    """What is left of who it is, `share` of it drowned in chance."""
    chance = people(len(person), seed)
    return unit((1 - share) * person + share * chance)


def make_trials(
    count: int = 60, closer: tuple[float, ...] = (0.5, 0.99, 1, 1, 1),
    lost: tuple[float, ...] = (0, 0.1, 0.3, 0.8, 0.95), *, identity: bool = True,
    person: str | None = None,
) -> list[Trial]:  # fmt: skip
    """Trials of a restorer that helps a share of the faces, at each level.

    Args:
        count: Images.
        closer: Share that comes closer to the truth, by level.
        lost: How much of the identity the damage takes, by level.
        identity: Whether there is an identity net.
        person: Who all of them are.
    """
    who = people(count)
    trials = []
    for place, (share, gone) in enumerate(zip(closer, lost, strict=True)):
        damaged = blurred_identity(who, gone, 10 + place)
        restored = blurred_identity(damaged, gone / 2, 20 + place)
        for n in range(count):
            helped = n < round(share * count)
            before = 0.1 * (place + 1)
            packed = [e[n].astype(np.float32).tobytes() if identity else None
                      for e in (damaged, restored)]  # fmt: skip
            wobble = 0.05 * math.sin(n)
            trials.append(Trial(
                key=f"face{n:03}", level=place + 1, quality=QUALITIES[place] + wobble,
                distance_before=before, distance_after=before * (0.5 if helped else 1.1),
                classic_before=QUALITIES[place] + wobble / 2, classic_after=0.95 + wobble / 2,
                content_change=0.01 + 0.001 * math.cos(n), num_faces_after=1,
                identity_damaged=packed[0], identity_restored=packed[1], person=person,
            ))  # fmt: skip
    return trials


@pytest.fixture(scope="module")
def usual() -> Thresholds:
    return derive(make_trials(), CONFIG, {"model": "double"})


def face(size: int = 128) -> Pixels:
    import skimage.data

    whole = skimage.data.astronaut()[10:210, 120:320]
    import cv2

    return np.asarray(cv2.resize(whole, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


# ------------------------------------------------------------------------------------ levels


def test_more_damage_is_further_from_the_truth():
    truth = face()
    distance = Closeness(None).distance
    found = [distance(damage(truth, level.number, seed=0, key="a"), truth) for level in LEVELS]
    assert found == sorted(found)
    assert 0 < found[0] < 0.1
    assert found[-1] > 0.4


def test_damage_depends_on_seed_key_and_level_alone():
    truth = face()
    first = damage(truth, 3, seed=0, key="a")
    assert first.shape == truth.shape
    assert np.array_equal(first, damage(truth.copy(), 3, seed=0, key="a"))
    for seed, key in ((1, "a"), (0, "b")):
        assert not np.array_equal(first, damage(truth, 3, seed=seed, key=key))


def test_damage_is_scaled_with_the_size():
    level = LEVELS[3]
    assert level.blur_at(256) == 2 * level.blur_at(128)
    assert level.low_side_at(512) == 512 // level.reduction
    # With the root of the size: a small face keeps more of its pixels.
    assert level.low_side_at(128) == math.floor(128 / (level.reduction / 2))


def test_damage_refuses_what_is_no_square():
    with pytest.raises(ValueError, match="square"):
        damage(np.zeros((64, 60, 3), np.uint8), 1, seed=0, key="a")


# --------------------------------------------------------------------------------- closeness


def test_closeness_without_weights_is_zero_for_the_truth_and_names_itself():
    closeness = Closeness(None)
    assert closeness.distance(face(), face()) == 0
    assert closeness.sha256 == ""
    assert "SSIM" in closeness.name
    with pytest.raises(ValueError, match="truth"):
        closeness.distance(face(), face(64))


def test_closeness_takes_lpips_where_it_is_at_hand(shared_dir):
    closeness = Closeness(shared_dir / "weights" / "squeezenet1_1_imagenet1k_fp16.safetensors")
    truth = face()
    mild, severe = (damage(truth, level, seed=0, key="a") for level in (1, 4))
    assert "LPIPS" in closeness.name
    assert len(closeness.sha256) == 64
    assert closeness.distance(truth, truth) == 0
    assert closeness.distance(mild, truth) < closeness.distance(severe, truth)


# -------------------------------------------------------------------------------- statistics


def test_wilson_holds_the_share_and_is_exact_at_its_ends():
    low, high = wilson(27, 30)
    assert (round(low, 3), round(high, 3)) == (0.744, 0.965)  # Newcombe 1998's method 3
    assert wilson(0, 30)[0] == 0
    assert wilson(30, 30)[1] == 1
    assert wilson(0, 0) == (0, 1)


def test_pairs_of_one_person_are_no_strangers():
    same = np.zeros((3, 3), bool)
    np.fill_diagonal(same, True)
    same[0, 2] = same[2, 0] = True
    apart = strangers(["x", None, None], same)
    assert apart.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    assert not strangers(["x", "x"], np.eye(2, dtype=bool)).any()


def test_new_strangers_pass_a_derived_threshold_as_seldom_as_promised():
    far = 0.01
    shares = []
    for seed in range(5):
        who = people(100, seed)
        apart = ~np.eye(100, dtype=bool)
        threshold = stranger_threshold(who @ who.T, apart, far=far, confidence=0.95)
        others = people(1000, 100 + seed)
        shares.append(float((who @ others.T >= threshold).mean()))
    assert max(shares) <= far
    assert min(shares) > far / 20  # and it is no threshold that nothing passes


def test_few_images_get_a_higher_threshold_than_many():
    def found(count: int) -> float:
        who = people(count)
        apart = ~np.eye(count, dtype=bool)
        return stranger_threshold(who @ who.T, apart, far=1e-3, confidence=0.95)

    assert found(30) > 0.2  # a normal tail: 3.09 times the spread of 1 / sqrt(128) is 0.27
    assert stranger_threshold(np.eye(2), np.zeros((2, 2), bool), far=0.1, confidence=0.9) > 1


def test_the_longest_run_counts_and_of_equal_ones_the_severe():
    assert list(longest_run([True, False, True, True, False])) == [2, 3]
    assert list(longest_run([True, False, False, True])) == [3]
    assert list(longest_run([False, False])) == []


# ---------------------------------------------------------------------------------- deriving


def test_levels_that_profit_and_keep_identity_are_restored(usual):
    assert [level.refusal for level in usual.levels] == [
        "no_profit", "", "", "identity_unmeasurable", "identity_unmeasurable",
    ]  # fmt: skip
    assert usual.refusal == ""
    assert [level.num_closer for level in usual.levels] == [30, 59, 60, 60, 60]
    assert usual.levels[1].closer_low == wilson(59, 60)[0]


def test_the_gate_lies_between_the_mildest_restored_level_and_its_neighbour(usual):
    assert usual.levels[1].quality < usual.keep_quality < usual.levels[0].quality
    assert usual.keep_quality == pytest.approx(0.8, abs=0.005)
    milder = [trial.quality for trial in make_trials() if trial.level == 1]
    assert np.mean(np.array(milder) < usual.keep_quality) <= CONFIG.milder_below


def test_the_gate_is_lower_where_the_levels_overlap():
    trials = [
        t if t.level != 1 else Trial(**{**as_dict(t), "quality": 0.9 - 0.4 * (n % 5 == 0)})
        for n, t in enumerate(make_trials())
    ]
    found = derive(trials, CONFIG, {})
    assert found.keep_quality == pytest.approx(0.5, abs=0.05)


def as_dict(trial: Trial) -> dict[str, object]:
    return {name: getattr(trial, name) for name in Trial.__dataclass_fields__}


def test_a_quality_stands_for_the_nearest_level(usual):
    qualities = np.array([0.99, 0.9, 0.79, 0.7, 0.5, 0.2, 0.0, np.nan])
    assert usual.levels_of(qualities).tolist() == [1, 1, 2, 2, 3, 5, 5, 0]
    assert usual.level_of(1.2) is None
    assert usual.level_of(0.5) == 3


def test_nothing_depends_on_the_order_of_the_trials(usual):
    shuffled = np.random.default_rng(1).permutation(np.array(make_trials(), object)).tolist()
    assert derive(shuffled, CONFIG, {"model": "double"}) == usual


def test_thresholds_survive_json(usual):
    assert Thresholds.model_validate_json(usual.model_dump_json()) == usual


def test_gain_and_change_come_from_the_faces_that_came_closer():
    trials = [
        t if t.distance_after < t.distance_before
        else Trial(**{**as_dict(t), "content_change": 0.9, "classic_after": 0.0})
        for t in make_trials()
    ]  # fmt: skip
    found = derive(trials, CONFIG, {})
    assert found.levels[0].max_change < 0.02
    assert found.levels[1].min_gain == pytest.approx(0.25, abs=0.03)
    assert found.levels[0].min_gain >= CONFIG.min_gain


@pytest.mark.parametrize(
    ("trials", "refusal", "word"),
    [
        ([], "uncalibrated", "0 good faces"),
        (make_trials(count=29), "uncalibrated", "fewer than 30"),
        (make_trials(closer=(0, 0.2, 0.5, 0.8, 0.89)), "no_profit", "90%"),
        (make_trials(identity=False), "identity_unmeasurable", "cannot tell people apart"),
        (make_trials(lost=(0.9,) * 5), "identity_unmeasurable", "cannot tell people apart"),
        (make_trials(person="the same"), "identity_unmeasurable", "cannot tell people apart"),
    ],
    ids=["none", "few", "no profit", "no net", "no identity left", "one person"],
)
def test_nothing_is_cleaned_without_evidence(trials, refusal, word):
    found = derive(trials, CONFIG, {})
    assert found.refusal == refusal
    assert found.keep_quality is None
    assert word in found.conclusion
    assert all(level.refusal for level in found.levels)
    assert found.conclusion == table_lines(found)[-1]


def test_a_small_share_of_few_trials_is_not_believed():
    # 27 of 30 are 90 %, but may as well be 74 %.
    found = derive(make_trials(count=30, closer=(0.9,) * 5), CONFIG, {})
    assert found.refusal == "no_profit"
    assert derive(make_trials(count=120, closer=(0.97,) * 5), CONFIG, {}).refusal == ""


def test_a_mild_level_that_profits_below_one_that_does_not_is_left_alone():
    found = derive(make_trials(closer=(1, 0.5, 1, 1, 1)), CONFIG, {})
    assert [level.profits for level in found.levels] == [True, False, True, True, True]
    assert [level.refusal for level in found.levels][:3] == ["no_profit", "no_profit", ""]


def test_a_restorer_that_does_nothing_is_not_taken_for_one_that_keeps_identity():
    # Restored = damaged: the cosine is 1 at every level, but nobody is known again at the last.
    trials = [
        Trial(**{**as_dict(t), "identity_restored": t.identity_damaged}) for t in make_trials()
    ]
    found = derive(trials, CONFIG, {})
    assert found.levels[4].genuine_share == 1
    assert found.levels[4].known_share < 0.5
    assert found.levels[4].refusal == "identity_unmeasurable"


def test_equal_keys_in_two_shards_are_two_faces(usual):
    trials = [
        Trial(
            **{**as_dict(t), "key": f"face{int(t.key[4:]) % 30}", "shard": str(t.key > "face029")}
        )
        for t in make_trials()
    ]
    found = derive(trials, CONFIG, {})
    assert [level.known_share for level in found.levels] == [
        level.known_share for level in usual.levels
    ]
    assert found.keep_quality == usual.keep_quality


def test_a_level_without_trials_leaves_the_whole_set_alone():
    found = derive([t for t in make_trials() if t.level < 5], CONFIG, {})
    assert found.refusal == "uncalibrated"
    assert "0 good faces" in found.conclusion


def test_medians_never_rise_and_identity_thresholds_never_fall():
    trials = [Trial(**{**as_dict(t), "quality": 1 - t.quality}) for t in make_trials()]
    found = derive(trials, CONFIG, {})
    for milder, worse in itertools.pairwise(found.levels):
        assert worse.quality <= milder.quality
        assert worse.identity_threshold >= milder.identity_threshold


def test_the_table_has_a_line_a_level_and_says_what_follows(usual):
    lines = table_lines(usual)
    assert len(lines) == 1 + len(LEVELS) + 2
    assert "98%" in lines[2]
    assert "91% to 100%" in lines[2]
    assert lines[2].endswith("restored")
    assert lines[4].endswith("kept: identity_unmeasurable")
    assert "levels 2 and 3" in lines[-1]


# ----------------------------------------------------------------------------------- accept


def verified(**changes: object) -> Verified:
    good: dict[str, object] = {
        "identity": 0.95, "classic_before": 0.5, "classic_after": 0.95, "num_faces_after": 1,
        "content_change": 0.01,
    }  # fmt: skip
    return Verified(**(good | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"num_faces_after": 0}, "face_lost"),
        ({"num_faces_after": 2}, "face_gained"),
        ({"identity": None}, "identity_unmeasurable"),
        ({"identity": 0.1}, "identity"),
        ({"identity": math.nan}, "identity"),
        ({"content_change": 0.2}, "content_changed"),
        ({"content_change": math.nan}, "content_changed"),
        ({"classic_before": 2.0, "classic_after": 3.0}, "not_damaged"),
        ({"classic_before": math.nan}, "not_damaged"),
        ({"classic_after": 0.5}, "quality_not_better"),
        ({"classic_after": math.nan}, "quality_not_better"),
        # The first that fails is told.
        ({"num_faces_after": 0, "identity": 0.1, "classic_after": 0.1}, "face_lost"),
        ({"identity": 0.1, "content_change": 0.5, "classic_after": 0.1}, "identity"),
        ({"content_change": 0.5, "classic_after": 0.1}, "content_changed"),
    ],
)
def test_the_checks_and_their_order(usual, changes, why):
    assert accept(verified(**changes), 3, usual) == why


def test_the_threshold_itself_is_accepted_and_what_lies_below_is_not(usual):
    bound = usual.at(2).identity_threshold
    assert accept(verified(identity=bound, classic_before=0.7), 2, usual) == ""
    below = math.nextafter(bound, 0)
    assert accept(verified(identity=below, classic_before=0.7), 2, usual) == "identity"


def test_a_level_without_a_measurable_identity_takes_nothing(usual):
    assert accept(verified(identity=1.0), 5, usual) == "identity_unmeasurable"


@pytest.mark.parametrize("level", [2, 3])
def test_another_persons_face_is_not_accepted(usual, level):
    """A restorer that returns somebody else: restored, damaged or clean, to everybody."""
    who = people(60)
    damaged = np.stack([np.frombuffer(t.identity_damaged, np.float32) for t in make_trials()
                        if t.level == level])  # fmt: skip
    tried = accepted = 0
    for answers in (people(400, 77), who):
        for i, j in itertools.product(range(60), range(0, len(answers), 7)):
            if answers is who and i == j:
                continue
            tried += 1
            likeness = float(damaged[i] @ answers[j])
            accepted += accept(verified(identity=likeness), level, usual) == ""
    assert tried >= 300
    assert wilson(accepted, tried)[1] <= 0.01


# --------------------------------------------------------------------------- content change


def test_content_change_sees_background_place_and_colour_but_not_noise():
    before = face()
    rng = np.random.default_rng(0)
    noisy = np.clip(before + rng.normal(0, 12, before.shape), 0, 255).astype(np.uint8)
    noise = content_change(noisy, before)
    moved = np.roll(before, 4, axis=1)
    tinted = np.clip(before + np.array([12.0, 0, -12]), 0, 255).astype(np.uint8)
    swapped = before.copy()
    swapped[:, :24] = 255 - swapped[:, :24]
    assert content_change(before, before) == 0
    assert noise < 0.01
    for changed in (moved, tinted, swapped):
        assert content_change(before, changed) > 2 * noise
    black = np.zeros_like(before)
    assert content_change(black, np.full_like(before, 255)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="after"):
        content_change(before, face(64))


# ------------------------------------------------------------------------------------- doubt


def seen(quality: float, classic: float) -> Inspected:
    return Inspected(0, "a", "inspected", quality=quality, classic=classic)


def test_doubt_rises_at_the_threshold_at_the_gate_and_where_scorers_disagree(usual):
    decided = Decision(0, "a", "restore", "worst", level=3)
    clear = doubt(seen(0.5, 0.5), decided, verified(identity=0.99), usual)
    level = usual.at(3)
    near = verified(identity=level.identity_threshold + 0.01)
    assert clear < 0.2
    assert doubt(seen(0.5, 0.5), decided, near, usual) > 0.8
    assert doubt(seen(0.5, 0.5), decided, verified(identity=None), usual) == 1
    apart = doubt(seen(0.5, 0.9), decided, verified(identity=0.99), usual)
    assert clear < apart < doubt(seen(0.5, 0.9), decided, near, usual) < 1
    kept = Decision(0, "a", "keep", "not_worst", level=1)
    at_gate = doubt(seen(usual.keep_quality, usual.keep_quality), kept, None, usual)
    assert 0.4 < at_gate <= 0.7
    assert at_gate > doubt(seen(0.9, 0.9), kept, None, usual)


def test_nothing_is_doubted_where_nothing_was_measured(usual):
    decided = Decision(0, "a", "keep", "no_image")
    assert doubt(Inspected(0, "a", "copied"), decided, None, usual) == 0
    assert doubt(seen(0.5, 0.5), decided, None, None) == 0
