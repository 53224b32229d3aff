"""The ablation driver: a variant differs from the full model in one place and nowhere else."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from jobs.training import read_settings
from vsp_model.vspbfr import VSPBFR

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def driver():
    """The program, imported as it is run: its folder is on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("ablations", BENCHMARKS / "ablations.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "ablations", module)
        spec.loader.exec_module(module)
        yield module


def settings(driver, name):
    run = driver.RUNS[name]
    return read_settings(run.stage, driver.CONFIGS / f"{run.stage}.yaml", {}, run.overrides)[1]


def test_every_run_begins_with_an_earlier_one_of_the_same_network(driver):
    names = list(driver.RUNS)
    for name, run in driver.RUNS.items():
        ours = settings(driver, name).model
        assert not run.source or names.index(run.source) < names.index(name)
        if run.source.startswith("diffuser"):
            assert ours.diffuser == settings(driver, run.source).model.diffuser


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("no-diffuser", "model.diffuser"),
        ("no-smart", "model.restoration.smart"),
        ("no-prompt", "model.restoration.style_prompt"),
        ("no-priors", "model.restoration.facial_priors"),
        ("full-seed-1", "run.seed"),
    ],
)
def test_a_variant_differs_in_one_place(driver, name, place):
    full, other = (settings(driver, n).model_dump(mode="json") for n in ("full", name))
    *path, last = place.split(".")
    there, here = other, full
    for key in path:
        there, here = there[key], here[key]
    assert there[last] != here[last]
    there[last] = here[last]
    assert other == full


def test_the_steps_of_the_curve_have_equal_budgets(driver):
    configs = [settings(driver, f"diffuser-{n}") for n in driver.STEPS]
    assert [config.model.diffuser.num_steps for config in configs] == list(driver.STEPS)
    assert len({config.run.model_dump_json() for config in configs}) == 1


@pytest.mark.parametrize("name", ["full", "no-diffuser", "no-smart", "no-prompt", "no-priors"])
def test_every_variant_restores(driver, name):
    torch.manual_seed(0)
    net = VSPBFR(settings(driver, name).model).eval()
    lq = torch.zeros(2, 3, driver.SIZE, driver.SIZE)
    out = net.restore(lq, ["a", "b"])
    assert out.shape == lq.shape
    assert out.isfinite().all()


def test_the_verdict_is_that_of_the_interval_and_the_direction(driver):
    worse = {"mean": 0.2, "low": 0.1, "high": 0.3}
    assert driver.verdict(worse, more_is_better=False) == "base"
    assert driver.verdict(worse, more_is_better=True) == "variant"
    assert driver.verdict(worse | {"low": -0.1}, more_is_better=True) == "="
