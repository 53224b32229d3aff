"""IQP on colours: the settings are those of the preset, and pictures that it never saw gain."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.training import read_settings
from pipeline.degradation import MIN_SIZE
from pipeline.presets import PRESETS

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SHARE = 0.15


@pytest.fixture(scope="module")
def driver():
    """The program, imported as it is run."""
    with pytest.MonkeyPatch.context() as patch:
        spec = importlib.util.spec_from_file_location("colour_driver", BENCHMARKS / "colour.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "colour_driver", module)
        spec.loader.exec_module(module)
        yield module


def test_the_stages_share_one_network_and_the_ranges_of_the_preset(driver):
    read = [read_settings(s, driver.CONFIGS / f"{s}.yaml", {}, ()) for s in driver.STAGES]
    models = [config.model for _, config, _ in read]
    assert models[0] == models[1] == models[2]
    underwater = PRESETS["underwater"].config.model_copy(update={"flip_probability": 0.5})
    assert [data.degradation for _, _, data in read[1:]] == [underwater] * 2
    assert models[0].colour_transfer == underwater.keeps_colour
    assert all(data.size == driver.SIZE >= MIN_SIZE for _, _, data in read)


def test_crops_are_of_other_pictures_and_are_the_same_again(driver):
    assert not set(driver.TRAINED) & set(driver.TRIED)
    one, two = (driver.crops("coffee", 3) for _ in range(2))
    assert list(one) == ["coffee-000", "coffee-001", "coffee-002"]
    assert all(np.array_equal(one[key], two[key]) for key in one)
    assert {crop.shape for crop in one.values()} == {(driver.SIZE, driver.SIZE, 3)}


@pytest.mark.slow
def test_pictures_that_no_stage_saw_gain(driver, tmp_path):
    """A small part of the benchmark's budget: the lower end of the gain's interval is above 0."""
    before = torch.get_num_threads()
    try:
        measured = driver.run(tmp_path, SHARE, ["run.threads=1"])
    finally:
        torch.set_num_threads(before)
    gain = measured["IQP"]["gain"]
    assert gain.count == driver.NUM_TRIED * len(driver.TRIED)
    assert gain.low > 0, driver.table(measured)
    assert (tmp_path / "pictures.png").exists()
