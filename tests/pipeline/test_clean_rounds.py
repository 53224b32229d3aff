"""Rounds of the loop: the stop rule, figures out of manifests and sets, the comparison of arms."""

import io
import itertools
import json

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pipeline import images
from pipeline.cleaning.loop import proof, rounds, sets
from pipeline.cleaning.loop.rounds import Figures, StopConfig
from pipeline.cleaning.tables import MANIFEST_SCHEMA
from pipeline.errors import UserError
from pipeline.tar import TarWriter

GOOD = Figures(
    round=0, num_images=1000, num_tried=120, num_accepted=80, num_rejected=5,
    scorer="niqe-small", gain=0.1, gain_low=0.08, gain_high=0.12, below=0.0,
    distance_before=50.0, distance_after=45.0, identity_before=0.96, identity_after=0.961,
    spread_before=300.0, spread_after=303.0, shifts={"labels.gender": 0.001},
)  # fmt: skip


def told(rounds_wanted=2, config=None, **changes):
    return rounds.stops(GOOD.model_copy(update=changes), rounds_wanted, config or StopConfig())


# ------------------------------------------------------------------------------ the stop rule


def test_a_good_round_goes_on():
    assert told() == []


@pytest.mark.parametrize(
    ("rule", "changes", "refuses", "is_idle"),
    [
        (1, {"gain": 0.0049}, False, True),
        (2, {"num_accepted": 19}, False, True),
        (3, {"below": 0.011}, True, False),
        (4, {"distance_after": 50.0}, True, False),
        (4, {"distance_after": 50.1}, True, False),
        (5, {"round": 1}, False, False),
        (6, {"identity_after": 0.96 * 0.979}, True, False),
        (6, {"spread_after": 300 * 1.021}, True, False),
        (6, {"shifts": {"labels.gender": 0.03}}, True, False),
    ],
)
def test_each_rule_ends_the_loop(rule, changes, refuses, is_idle):
    (stop,) = told(**changes)
    assert (stop.rule, stop.refuses, stop.is_idle) == (rule, refuses, is_idle)
    assert stop.words


@pytest.mark.parametrize(
    "changes",
    [
        {"gain": 0.005}, {"num_accepted": 20}, {"below": 0.01}, {"distance_after": 49.9},
        {"identity_after": 0.96 * 1.019}, {"gain": None}, {"below": None},
        {"distance_before": None, "distance_after": None}, {"spread_after": None},
    ],
)  # fmt: skip
def test_at_the_limit_or_unmeasured_nothing_ends(changes):
    assert told(**changes) == []


def test_one_round_ends_by_the_number_asked_for_and_is_trained_on():
    (stop,) = told(rounds_wanted=1)
    assert stop.rule == 5
    assert not stop.refuses
    assert not stop.is_idle


@pytest.mark.parametrize(
    ("after", "held_out", "ends"),
    [(280.0, 270.0, False), (330.0, 350.0, False), (280.0, 310.0, True), (280.0, None, True)],
)
def test_a_spread_may_shift_towards_the_held_out_faces(after, held_out, ends):
    found = told(spread_after=after, spread_held_out=held_out)
    assert [stop.rule for stop in found] == ([6] if ends else [])


def test_nothing_accepted_is_told_by_the_rule_of_shares_alone():
    found = told(num_accepted=0, gain=None, below=None, distance_after=50.0)
    assert [stop.rule for stop in found] == [2]


def test_limits_can_be_set():
    loose = StopConfig(min_gain=0, min_accepted=0.5, max_below=1, max_shift=1)
    assert [stop.rule for stop in told(config=loose, below=0.9)] == [2]


# ----------------------------------------------------------------------- out of the manifest


def manifest(*rows):
    """A manifest of the columns that rounds look at; rows: outcome, identity, threshold, fields."""
    values = [
        {"shard": "a", "key": f"k{n}", "outcome": outcome, "identity": identity,
         "identity_threshold": threshold, "fields": None if fields is None else json.dumps(fields)}
        for n, (outcome, identity, threshold, fields) in enumerate(rows)
    ]  # fmt: skip
    schema = pa.schema([MANIFEST_SCHEMA.field(name) for name in rounds.MANIFEST_COLUMNS])
    return pa.Table.from_pylist(values, schema)


def test_counts_and_accepted():
    table = manifest(
        ("kept", None, None, None), ("restored", 0.7, 0.5, None), ("fallback", 0.2, 0.5, None),
        ("rejected", None, None, None), ("failed", None, None, None),
        ("forgotten", None, None, None),
    )  # fmt: skip
    expected = {"num_images": 4, "num_tried": 2, "num_accepted": 1, "num_rejected": 1}
    assert rounds.counts(table) == expected
    assert rounds.accepted(table) == {("a", "k1")}


def test_share_below_looks_at_accepted_faces_and_takes_another_likeness():
    table = manifest(
        ("restored", 0.7, 0.5, None), ("restored", 0.4, 0.5, None), ("fallback", 0.1, 0.5, None)
    )
    assert rounds.share_below(table) == 0.5
    assert rounds.share_below(table, {("a", "k0"): 0.49, ("a", "k1"): 0.49}) == 1
    assert rounds.share_below(manifest(("kept", 0.1, 0.5, None))) is None


def test_an_accepted_face_without_threshold_counts_as_below():
    assert rounds.share_below(manifest(("restored", 0.9, None, None))) == 1


def test_attributes_are_compared_before_and_after():
    rows = [("kept", None, None, {"sex": "f", "id": str(n)}) for n in range(30)]
    rows += [("rejected", None, None, {"sex": "m", "id": str(n + 30)}) for n in range(10)]
    shifts = rounds.attribute_shifts(manifest(*rows))
    assert shifts == {"sex": pytest.approx(0.25)}  # "id" has a value an image: no attribute
    same = [("kept", None, None, {"sex": sex}) for sex in "fmfm"]
    assert rounds.attribute_shifts(manifest(*same)) == {"sex": 0}


def test_everybody_gone_is_the_largest_shift():
    rows = [("rejected", None, None, {"sex": sex}) for sex in "fm"]
    assert rounds.attribute_shifts(manifest(*rows)) == {"sex": 1}


def test_median_gain():
    before, after = np.array([10, 10, 10, np.nan, 10]), np.array([9, 8, 10, 5, np.nan])
    found = rounds.median_gain(before, after)
    assert found["gain"] == pytest.approx(0.1)
    assert 0 <= found["gain_low"] <= 0.1 <= found["gain_high"] <= 0.2
    assert found == rounds.median_gain(before, after)
    assert rounds.median_gain(np.array([]), np.array([]))["gain"] is None


def test_tables_have_a_cell_for_each_head_and_dashes_for_what_is_unknown():
    empty = Figures(round=0, num_images=10, num_tried=0, num_accepted=0, num_rejected=0)
    for figures in (GOOD, empty):
        row = rounds.row_of(figures)
        assert len(row) == len(rounds.HEAD)
    assert rounds.row_of(empty)[6:] == ["-"] * 6
    assert "50 to 45" in rounds.row_of(GOOD)
    assert rounds.markdown(["a", "b"], [["x|y", "z"]])[-1] == "| x/y | z |"


# ----------------------------------------------------------------------------- whole sets


def coarse_face(number, size=64):
    coarse = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def write_shard(path, faces):
    file = io.BytesIO()
    tar = TarWriter(file)
    for key, pixels in faces.items():
        tar.add(f"{key}.png", images.encode(pixels, "png"))
    tar.finish()
    path.write_bytes(file.getvalue())
    return str(path)


@pytest.fixture
def plain_ruler(monkeypatch, tmp_path):
    """Without any weight file."""
    monkeypatch.setenv("VSP_WEIGHTS", str(tmp_path / "none"))
    return sets.make_ruler(64)


def test_without_weights_a_plain_feature_measures_and_says_so(plain_ruler):
    assert plain_ruler.identities is None
    assert sets.PlainExtractor.id in plain_ruler.feature
    assert plain_ruler.scorer == "niqe-small"
    assert sets.make_ruler(32).natural is None


def test_a_set_is_nearer_to_its_like_than_blurred(plain_ruler, tmp_path):
    faces = {f"f{n}": coarse_face(n) for n in range(24)}
    blurred = {key: cv2.GaussianBlur(face, (0, 0), 3) for key, face in faces.items()}
    first = write_shard(tmp_path / "a.tar", faces)
    second = write_shard(tmp_path / "b.tar", blurred)
    seen = sets.measure((first,), plain_ruler, {("a", "f3")})
    other = sets.measure((second,), plain_ruler)
    assert seen.features.count == 24
    assert set(seen.scores) == {("a", "f3")}
    assert sets.distance(seen.features, seen.features) == pytest.approx(0, abs=1e-6)
    assert sets.distance(other.features, seen.features) > 1
    assert seen.identity_spread is None


def test_spread_is_the_mean_squared_distance_of_pairs(plain_ruler, tmp_path):
    faces = [coarse_face(n) for n in range(7)]
    shard = write_shard(tmp_path / "a.tar", {f"f{n}": face for n, face in enumerate(faces)})
    features = sets.features_of(iter(faces), plain_ruler).astype(float)
    pairs = itertools.combinations(features, 2)
    expected = np.mean([np.square(x - y).sum() for x, y in pairs])
    assert sets.measure((shard,), plain_ruler).spread == pytest.approx(expected)


def test_a_damaged_picture_is_passed_over_and_an_empty_set_refused(plain_ruler, tmp_path):
    shard = write_shard(tmp_path / "a.tar", {"f0": coarse_face(0), "f1": coarse_face(1)})
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[700:760] = bytes(60)  # inside the first picture
    (tmp_path / "a.tar").write_bytes(data)
    assert sets.measure((shard,), plain_ruler).features.count == 1
    broken = tmp_path / "b.tar"
    write_shard(broken, {"f0": coarse_face(0)})
    head = bytearray(broken.read_bytes())
    head[512:600] = bytes(88)
    broken.write_bytes(head)
    with pytest.raises(UserError, match="no face"):
        sets.measure((str(broken),), plain_ruler)


def test_a_shard_of_which_nothing_is_left_is_no_obstacle(plain_ruler, tmp_path):
    write_shard(tmp_path / "a.tar", {})
    write_shard(tmp_path / "b.tar", {"f0": coarse_face(0), "f1": coarse_face(1)})
    assert sets.measure((str(tmp_path),), plain_ruler).features.count == 2


# -------------------------------------------------------------------------------- the proof


def arms(raw, cleaned, reference="held-out"):
    return [
        proof.Arm(arm=arm, seed=seed, reference=reference, distance=value, error=None)
        for arm, values in (("raw", raw), ("cleaned", cleaned))
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("raw", "cleaned", "verdict"),
    [
        ([100, 110, 105], [90, 99, 94.5], "better"),
        ([90, 99, 94.5], [100, 110, 105], "worse"),
        ([100, 110, 105], [90, 120, 104], "no difference can be detected at this budget"),
        ([100], [50], "no difference can be detected at this budget"),
    ],
)
def test_the_verdict_is_of_paired_seeds(raw, cleaned, verdict):
    found = proof.compare(arms(raw, cleaned), "held-out")
    assert found.verdict == verdict
    assert found.num_seeds == len(raw)
    assert len(proof.row_of(found)) == len(proof.HEAD)


def test_the_test_is_students_on_differences():
    from scipy import stats

    raw, cleaned = [100.0, 110.0, 105.0], [97.0, 104.0, 104.0]
    found = proof.compare(arms(raw, cleaned), "held-out")
    expected = stats.ttest_rel(cleaned, raw)
    assert found.p_value == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval()
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.same_sign == 3


def test_only_pairs_count():
    some = arms([100, 110], [90, 100]) + arms([1], [2], "raw set")
    some.append(proof.Arm(arm="raw", seed=9, reference="held-out", distance=1.0, error=None))
    assert proof.compare(some, "held-out").num_seeds == 2
    with pytest.raises(ValueError, match="no seed"):
        proof.compare(arms([1], []), "held-out")


def test_caution_about_few_seeds():
    assert "sign test" in proof.caution(3)
    assert "sign test" not in proof.caution(6)


def test_drawn_faces_follow_from_seed_and_number():
    from jobs.models import built_in_model

    draw = [
        list(proof.drawn_faces(built_in_model(), n, seed)) for n, seed in ((3, 0), (2, 0), (2, 1))
    ]
    assert draw[0][0].shape == (64, 64, 3)
    assert all(np.array_equal(a, b) for a, b in zip(draw[0], draw[1], strict=False))
    assert not np.array_equal(draw[1][0], draw[2][0])
    assert not np.array_equal(draw[0][0], draw[0][1])
