"""The quality condition by itself: its embedding, its percentiles, its dial."""

import math

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from vsp_model.ask import Ask, dial_of, refuse_others
from vsp_model.condition import NUM_KNOTS, ConditionConfig, Dial, QualityCondition, guided
from vsp_model.infer import explain

MODES = ("continuous", "quantile_bins")
WIDTH = 5
UNKNOWN = math.nan


def told(condition, *quality):
    with torch.no_grad():
        return condition(torch.tensor(quality))


def trained(mode="continuous", **settings):
    """As after training: every weight is drawn."""
    condition = QualityCondition(WIDTH, ConditionConfig(mode=mode, **settings))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in condition.parameters():
            parameter.normal_(generator=generator)
    return condition


@pytest.mark.parametrize("mode", MODES)
def test_a_new_condition_says_nothing(mode):
    condition = QualityCondition(WIDTH, ConditionConfig(mode=mode))
    assert torch.equal(told(condition, 0.0, 0.3, 1.0, UNKNOWN), torch.zeros(4, WIDTH))


@pytest.mark.parametrize("mode", MODES)
def test_a_new_condition_learns_from_its_first_step(mode):
    """The zeros must not stand in each other's way: with two of them no gradient would come."""
    condition = QualityCondition(WIDTH, ConditionConfig(mode=mode))
    condition(torch.tensor([0.3, UNKNOWN])).sum().backward()
    last = condition.second.weight if mode == "continuous" else condition.table
    assert last.grad.abs().sum() > 0
    assert torch.equal(condition.unknown.grad, torch.ones(WIDTH))


@pytest.mark.parametrize("mode", MODES)
def test_a_quality_beyond_the_range_is_the_end_of_it(mode):
    """The released code has no bin for 1, and counts from the end below 0."""
    condition = trained(mode)
    low, high, below, above = told(condition, 0.0, 1.0, -0.4, 7.0)
    assert torch.equal(below, low)
    assert torch.equal(above, high)
    assert not torch.equal(low, high)


@pytest.mark.parametrize("mode", MODES)
def test_unknown_has_an_embedding_of_its_own(mode):
    condition = trained(mode)
    unknown, middle = told(condition, UNKNOWN, 0.5)
    assert torch.equal(unknown, condition.unknown)
    assert not torch.equal(unknown, middle)


@pytest.mark.parametrize("mode", MODES)
def test_bits_do_not_depend_on_the_place(mode):
    condition = trained(mode)
    qualities = [0.1, UNKNOWN, 0.9, 0.45, 1.0]
    together = told(condition, *qualities)
    assert torch.equal(told(condition, *qualities[::-1]).flip(0), together)


def test_bins_are_rows_of_the_table_and_lines_between_them():
    condition = trained("quantile_bins", num_bins=5)
    table = condition.table.detach()
    assert torch.equal(told(condition, 0.0, 0.25, 0.5, 0.75, 1.0), table)
    between = told(condition, 0.3125)[0]  # a quarter of the way from row 1 to row 2
    expected = 0.75 * table[1] + 0.25 * table[2]
    assert between.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_waves_tell_neighbouring_qualities_apart():
    """The slowest is half a wave long: no two qualities look alike."""
    seen = []
    condition = trained()
    condition.first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    told(condition, *(torch.arange(21) / 20).tolist())
    assert torch.cdist(seen[0], seen[0]).fill_diagonal_(9).min() > 0.5
    expected = [math.sin(2 * math.pi * 0.3 * 2**k / 2) for k in range(6)]
    assert seen[0][6, :6].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_share_of_the_qualities_is_withheld_by_their_own_chances():
    condition = QualityCondition(WIDTH, ConditionConfig(drop=0.15))
    quality, chances = (
        torch.rand(4000),
        torch.rand(4000, generator=torch.Generator().manual_seed(1)),
    )
    seen = condition.withheld(quality, chances)
    assert torch.equal(seen.isnan(), chances < 0.15)
    assert seen.isnan().float().mean() == pytest.approx(0.15, abs=0.02)
    assert torch.equal(seen[~seen.isnan()], quality[chances >= 0.15])
    everything = QualityCondition(WIDTH, ConditionConfig(drop=0)).withheld(quality, chances)
    assert torch.equal(everything, quality)


def calibrated(scores):
    condition = QualityCondition(WIDTH, ConditionConfig())
    knots = np.quantile(scores, np.linspace(0, 1, NUM_KNOTS))
    condition.set_distribution(knots.tolist())
    return condition, knots


@pytest.mark.parametrize("decimals", [7, 1])  # few decimals: whole knots share a score
def test_percentiles_are_numpys_and_ties_lie_in_their_middle(decimals):
    scores = np.round(np.random.default_rng(5).beta(8, 3, 3000), decimals).astype(np.float32)
    condition, knots = calibrated(scores)
    asked = np.concatenate([scores[:500], [-1, 0, 2, scores.min(), scores.max()]])
    found = condition.percentile(torch.tensor(asked, dtype=torch.float32)).numpy()
    knots, even = knots.astype(np.float32), np.linspace(0, 1, NUM_KNOTS)
    upper, lower = np.interp(asked, knots, even), 1 - np.interp(-asked, -knots[::-1], even)
    assert (decimals > 1) == np.allclose(upper, lower, atol=1e-3)
    np.testing.assert_allclose(found, (lower + upper) / 2, atol=2e-5)
    rising = found[np.argsort(asked, kind="stable")]
    assert (np.diff(rising) >= 0).all()


def test_percentiles_of_the_training_set_are_even():
    scores = np.random.default_rng(6).beta(8, 3, 3000)
    condition, _ = calibrated(scores)
    found = condition.percentile(torch.tensor(scores)).numpy()
    counts, _ = np.histogram(found, bins=10, range=(0, 1))
    assert (abs(counts - 300) <= 3).all()


def test_no_score_has_no_percentile():
    condition, _ = calibrated(np.linspace(0.2, 0.8, 50))
    found = condition.percentile(torch.tensor([UNKNOWN, 0.1, 0.9]))
    assert found.isnan().tolist() == [True, False, False]
    assert found[1:].tolist() == [0, 1]


def test_without_scores_no_score_has_a_percentile():
    condition, _ = calibrated(np.linspace(0.2, 0.8, 50))
    assert condition.scored
    condition.set_distribution([UNKNOWN] * NUM_KNOTS)
    assert not condition.scored
    assert condition.percentile(torch.tensor([0.1, 0.5, UNKNOWN])).isnan().all()
    loaded, _ = calibrated(np.linspace(0.2, 0.8, 50))
    loaded.load_state_dict(condition.state_dict())
    assert not loaded.scored


def test_one_score_for_all_is_no_error():
    condition, _ = calibrated(np.full(20, 0.5))
    found = condition.percentile(torch.tensor([0.4, 0.5, 0.6]))
    assert found.tolist() == [0, 0.5, 1]


def test_the_best_score_is_the_top_where_it_is_the_only_one():
    alone, shared = np.linspace(0.2, 0.8, 50), np.r_[np.linspace(0.2, 0.7, 30), [0.8] * 20]
    for scores, low, high in ((alone, 1, 1), (shared, 0.75, 0.85)):
        condition, knots = calibrated(scores)
        best, beyond = condition.percentile(torch.tensor([knots[-1], 0.9])).tolist()
        assert low <= best <= high
        assert beyond == 1


# The dial.


def line(quality):
    """A prediction that tells what it was asked: 10 for unknown."""
    return torch.where(quality.isnan(), 10.0, quality)[:, None]


@pytest.mark.parametrize(
    ("guidance", "expected"), [(1.0, 0.5), (0.0, 10.0), (2.0, -9.0), (0.5, 5.25)]
)
def test_guidance_goes_from_unknown_towards_the_quality_and_beyond(guidance, expected):
    found = guided(line, Dial(0.5, guidance), torch.zeros(2, 3))
    assert found.tolist() == [[expected], [expected]]


@pytest.mark.parametrize("dial", [Dial(0.5, 1.0), Dial(UNKNOWN, 1.0), Dial(UNKNOWN, 3.0)])
def test_without_guidance_the_network_runs_once(dial):
    calls = []
    guided(lambda quality: calls.append(quality) or quality, dial, torch.zeros(2, 3))
    assert len(calls) == 1
    assert not dial.guides


def test_what_is_asked_becomes_a_dial():
    config = ConditionConfig(default=0.7)
    assert dial_of(Ask(), config, "vspbfr") == Dial(0.7, 1.0)
    assert dial_of(Ask(quality=0.0, guidance=2.0), config, "vspbfr") == Dial(0.0, 2.0)
    assert math.isnan(dial_of(Ask(quality="unknown"), config, "vspbfr").quality)
    assert math.isnan(dial_of(Ask(), ConditionConfig(), "vspbfr").quality)
    assert dial_of(Ask(), None, "vspbfr") is None


@pytest.mark.parametrize("nan", [math.nan, ".nan", "nan", np.float32("nan")])
def test_nan_says_unknown_wherever_it_comes_from(nan):
    value = yaml.safe_load(nan) if isinstance(nan, str) else nan
    assert Ask.model_validate({"quality": value}).quality == "unknown"
    assert ConditionConfig.model_validate({"default": value}).default == "unknown"


@pytest.mark.parametrize("word", ["high", "", [0.5], {}, False, True])
def test_a_quality_that_is_no_number_is_one_mistake(word):
    for config, field in ((Ask, "quality"), (ConditionConfig, "default")):
        with pytest.raises(ValidationError) as raised:
            config.model_validate({field: word})
        assert explain(raised.value) == f"{field}: expected 0 to 1, or unknown"
        assert raised.value.error_count() == 1


@pytest.mark.parametrize("quality", [-0.01, 1.01, 50.0, math.inf])
def test_a_quality_out_of_range_is_refused(quality):
    with pytest.raises(ValueError, match=r"^quality: \S+, expected 0 to 1 or unknown$"):
        dial_of(Ask(quality=quality), ConditionConfig(), "vspbfr")


@pytest.mark.parametrize("ask", [Ask(quality=0.5), Ask(quality="unknown"), Ask(guidance=2.0)])
def test_a_model_without_the_condition_is_asked_for_none(ask):
    with pytest.raises(ValueError, match="this vspbfr model was trained without a quality condi"):
        dial_of(ask, None, "vspbfr")


def test_what_saw_no_scores_knows_unknown_alone():
    config = ConditionConfig(default=0.9)
    for ask in (Ask(), Ask(quality="unknown")):
        assert math.isnan(dial_of(ask, config, "iqp", scored=False).quality)
    for ask in (Ask(quality=0.5), Ask(guidance=2.0), Ask(quality="unknown", guidance=2.0)):
        with pytest.raises(ValueError, match=r"^quality: this iqp model was trained without score"):
            dial_of(ask, config, "iqp", scored=False)


def test_wishes_of_other_systems_are_refused():
    with pytest.raises(ValueError, match=r"^steps: not known to vspbfr models$"):
        refuse_others(Ask(steps=3), "vspbfr")
    refuse_others(Ask(quality=0.4, guidance=2.0, steps=3), "idm", "steps")
