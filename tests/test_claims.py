"""The driver of the claims: arms differ in one place each, and when a difference counts."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.training import read_settings

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
NAMES = ("claims_train", "claims_tables", "claims_damage")
FACES = 40


@pytest.fixture(scope="module")
def drivers():
    """The program's modules, imported as it is run: their folder is on the path."""
    there = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in NAMES}
    for name in set(sys.modules) - there:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


def model_of(drivers, arm):
    run = drivers["claims_train"].ARMS[arm]
    return read_settings(run.stage, run.file, {}, run.overrides)[1].model_dump(mode="json")


@pytest.mark.parametrize(
    ("after", "before", "places"),
    [
        ("idm-told", "idm-untold", ["unet.condition"]),
        ("books-dual", "books-single", ["books.num_codes", "books.num_codes_hq"]),
        ("iqp-dual", "iqp-single", ["books.num_codes", "books.num_codes_hq"]),
        ("iqp-single", "iqp-single-untold", ["condition"]),
        ("idm-round-1-upper", "idm-round-1-pristine", []),
    ],
)
def test_two_arms_differ_where_the_claim_says_and_nowhere_else(drivers, after, before, places):
    first, second = model_of(drivers, after), model_of(drivers, before)
    for place in places:
        *path, last = place.split(".")
        ours, theirs = first["model"], second["model"]
        for key in path:
            ours, theirs = ours[key], theirs[key]
        assert ours[last] != theirs[last]
        ours[last] = theirs[last]
    assert first == second


def test_both_have_as_many_codes_in_all(drivers):
    books = [model_of(drivers, f"books-{kind}")["model"]["books"] for kind in ("dual", "single")]
    dual, single = (each["num_codes"] + each["num_codes_hq"] for each in books)
    assert dual == single


@pytest.fixture
def compared(drivers):
    """Gains of three seeds over faces, with noise of the faces that the seeds share."""
    tables = drivers["claims_tables"]
    drawn = (
        np.random.default_rng(0).multinomial(FACES, np.full(FACES, 1 / FACES), 500).astype(float)
    )

    def compare(gains, noise):
        shared = np.random.default_rng(1).standard_normal(FACES)
        shared = noise * (shared - shared.mean())
        after = [gain + shared for gain in gains]
        return tables.difference(after, [np.zeros(FACES)] * len(gains), drawn)

    return compare


@pytest.mark.parametrize(
    ("gains", "noise", "mark"),
    [
        ((1.0, 1.1, 0.9), 0.1, "**"),
        ((1.0, 0.1, 0.4), 0.1, "*"),  # seeds scatter, the faces do not
        ((1.0, 1.1, 0.9), 30.0, "(t)"),  # and the other way round
        ((1.0, 1.1, -0.01), 0.1, ""),  # one seed disagrees
        ((1.0, 0.1, 0.4), 30.0, ""),
        ((1.0, 1.0), 0.1, ""),  # two seeds decide nothing
        ((0.0, 0.0, 0.0), 0.0, ""),
    ],
)
def test_a_difference_counts_where_seeds_agree_and_an_interval_says_so(
    compared, gains, noise, mark
):
    assert compared(gains, noise).mark == mark


@pytest.mark.parametrize(
    ("metric", "gain", "word"),
    [("psnr", 1.0, "better **"), ("niqe-small", 1.0, "worse **"), ("sharpness", -1.0, "less **")],
)
def test_the_verdict_knows_which_way_is_better(drivers, compared, metric, gain, word):
    assert drivers["claims_tables"].verdict(metric, compared([gain] * 3, 0.1)) == word


def test_two_faces_in_three_are_damaged_by_known_amounts(drivers):
    damage = drivers["claims_damage"]
    strengths = np.array([damage.strength_of(f"face-{n}") for n in range(3000)])
    assert 0.63 < (strengths > 0).mean() < 0.70
    assert strengths.max() <= 1
    assert 0.35 < (strengths[strengths > 0] > damage.WORTH_IT).mean() < 0.45
    assert damage.strength_of("face-7") == strengths[7]


def test_a_stronger_damage_is_farther_from_the_truth(drivers, monkeypatch):
    damage = drivers["claims_damage"]
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    face = damage.Face("a", pixels, b"{}")
    errors = []
    for strength in (0.0, 0.2, 0.6, 1.0):
        monkeypatch.setattr(damage, "strength_of", lambda key, strength=strength: strength)
        errors.append(np.abs(damage.damaged(face).pixels.astype(int) - pixels).mean())
    assert errors[0] == 0
    assert errors == sorted(set(errors))
