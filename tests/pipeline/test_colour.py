"""Casts, faded prints, water: colours of the degraded picture change, and nothing else does."""

import hashlib
import json

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from skimage import data

from pipeline.colour import (
    LEFT_PER_METRE,
    CastConfig,
    CastParams,
    ColourConfig,
    FadedConfig,
    FadedParams,
    UnderwaterConfig,
    UnderwaterParams,
    distance_map,
    draw_colour,
    recolour,
)
from pipeline.degradation import DegradationConfig, degrade_pair, draw_noise, draw_params
from pipeline.images import resize
from pipeline.presets import PRESETS

CONFIGS = (CastConfig(), FadedConfig(), UnderwaterConfig())
COLOURED = ("colour-cast", "faded", "underwater")
# Sha256 of each earlier preset's settings and of ten of its draws, as they were before colours.
RECORDED = {
    "stage-2": "43fe3610b51036d9",
    "free-form": "9511f96148abdd3a",
    "gfpgan": "089433e9b2056d1b",
    "codeformer": "3f7faa15a7b496f3",
    "codeformer-small": "68b14b9c0a7bb558",
    "vqfr-2": "a24fbf08ad35d15c",
    "difface": "97f321f9282fa221",
    "mild": "0e3c691de6e873a2",
    "heavy": "8cab98282191b31e",
}


@pytest.fixture(scope="module")
def picture():
    return resize(np.ascontiguousarray(data.astronaut()), 96)


def as_float(image):
    return image.astype(np.float32) / np.float32(255)


def drawn(name, count=10):
    config = PRESETS[name].config
    return [draw_params(config, 128, seed=7, key=str(n)) for n in range(count)]


def digest(name):
    facts = [PRESETS[name].config.model_dump(mode="json"), *(p.record() for p in drawn(name))]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", RECORDED)
def test_earlier_presets_draw_what_they_drew(name):
    assert digest(name) == RECORDED[name]


@pytest.mark.parametrize("name", COLOURED)
def test_colour_changes_no_other_draw(name, picture):
    for plain, coloured in zip(drawn("mild"), drawn(name), strict=True):
        assert coloured.colour is not None
        assert coloured._replace(colour=None) == plain
        noise = draw_noise(plain.low_side, seed=7, key="a")
        assert np.array_equal(noise, draw_noise(coloured.low_side, seed=7, key="a"))
    truth = degrade_pair(picture, "a", 7, 64, PRESETS["mild"].config).truth
    assert np.array_equal(degrade_pair(picture, "a", 7, 64, PRESETS[name].config).truth, truth)


def test_only_these_presets_are_about_colour():
    assert {name for name, preset in PRESETS.items() if not preset.config.keeps_colour} == set(
        COLOURED
    )


@pytest.mark.parametrize("name", COLOURED)
def test_a_record_says_all_that_was_drawn(name, picture):
    pair = degrade_pair(picture, "a", 7, 64, PRESETS[name].config)
    told = json.loads(json.dumps(pair.params.record()))["colour"]
    kinds = {"cast": CastParams, "faded": FadedParams, "underwater": UnderwaterParams}
    params = kinds[told["kind"]](**told)
    clean = as_float(picture)
    assert np.array_equal(recolour(clean, params), recolour(clean, pair.params.colour))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_equal_arguments_give_equal_bits_and_others_do_not(config, picture):
    clean = as_float(picture)
    made = [recolour(clean, draw_colour(config, seed=s, key=k)) for s, k in ((1, "a"),) * 2]
    assert np.array_equal(*made)
    assert (made[0].dtype, made[0].shape) == (np.float32, clean.shape)
    assert made[0].min() >= 0
    assert made[0].max() <= 1
    others = [draw_colour(config, seed=s, key=k) for s, k in ((1, "b"), (2, "a"))]
    assert not any(np.array_equal(recolour(clean, params), made[0]) for params in others)


def test_a_cast_is_a_curve_of_each_channel():
    gray = np.full((2, 2, 3), 0.25, np.float32)
    cast = CastParams((1.0, 2.0, 4.0), (0.5, 1.0, 1.0), (0.1, -0.1, 0.5))
    assert recolour(gray, cast)[0, 0] == pytest.approx([0.6, 0.4, 1.0])
    neutral = CastParams((1.0,) * 3, (1.0,) * 3, (0.0,) * 3)
    assert np.array_equal(recolour(gray, neutral), gray)


def test_a_faded_print_is_paler_flatter_and_yellow(picture):
    clean = as_float(picture)
    faded = recolour(clean, FadedParams(black=0.2, white=0.8, colour=0.5, yellow=0.2))
    assert faded[..., 0].min() > 0.15
    assert faded.max() <= 0.81
    assert np.ptp(faded, axis=2).mean() < np.ptp(clean, axis=2).mean()
    white = recolour(np.ones((1, 1, 3), np.float32), FadedParams(0.2, 0.8, 0.5, 0.2))
    assert white[0, 0] == pytest.approx([0.8, 0.76, 0.64])
    same = recolour(clean, FadedParams(0.0, 1.0, 1.0, 0.0))
    assert np.abs(same - clean).max() < 1e-6


@pytest.mark.parametrize("water", LEFT_PER_METRE)
def test_water_takes_what_its_table_says_and_gives_the_veil(water):
    """x exp(-beta d) + veil (1 - exp(-beta d)) at 2 m everywhere."""
    params = UnderwaterParams(water, 2.0, 2.0, (0.5,) * 16, (0.3, 0.6, 0.9))
    left = np.array(LEFT_PER_METRE[water]) ** 2
    black, white = (np.full((2, 2, 3), v, np.float32) for v in (0, 1))
    veil = np.array(params.veil) * (1 - left)
    assert recolour(black, params)[0, 0] == pytest.approx(veil, abs=1e-6)
    assert recolour(white, params)[0, 0] == pytest.approx(left + veil, abs=1e-6)
    far = params._replace(near_m=500.0, far_m=500.0)
    assert recolour(white, far)[0, 0] == pytest.approx(params.veil, abs=1e-3)


def test_clear_water_takes_red_and_murky_water_blue():
    clear, murky = LEFT_PER_METRE["I"], LEFT_PER_METRE["9"]
    assert clear[0] < clear[1] < clear[2]
    assert murky[0] > murky[1] > murky[2]


def test_distances_are_smooth_and_the_clearest_channel_keeps_its_share():
    config = UnderwaterConfig()
    waters = set()
    for n in range(100):
        params = draw_colour(config, seed=0, key=str(n))
        waters.add(params.water)
        metres = distance_map(params, 64, 64)
        assert 0.5 <= params.near_m <= metres.min() + 1e-4
        assert metres.max() <= params.far_m + 1e-4 <= 15.001
        assert max(LEFT_PER_METRE[params.water]) ** params.far_m >= config.least_left - 1e-9
        assert np.abs(np.diff(metres)).max() <= (params.far_m - params.near_m) / 8 + 1e-6
        assert 0.6 - 1e-9 <= max(params.veil) <= 1
    assert waters == set(LEFT_PER_METRE)


def test_a_mistake_in_the_settings_is_refused():
    check = TypeAdapter(ColourConfig).validate_python
    assert check({"kind": "faded"}) == FadedConfig()
    for wrong in (
        {"kind": "sepia"},
        {"kind": "faded", "white": (0.9, 0.5)},
        {"kind": "underwater", "waters": ("X",)},
        {"kind": "cast", "gain": (0, 1)},
    ):
        with pytest.raises(ValidationError):
            check(wrong)
    with pytest.raises(ValidationError):
        DegradationConfig(colour={"kind": "cast", "yellow": (0, 1)})


def test_a_setting_survives_its_yaml():
    for name in COLOURED:
        config = PRESETS[name].config
        assert DegradationConfig.model_validate(config.model_dump(mode="json")) == config
    assert "colour" not in PRESETS["mild"].config.model_dump()
