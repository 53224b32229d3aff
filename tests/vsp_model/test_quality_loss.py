"""Training for a score: how it is switched."""

import pytest
import yaml
from pydantic import ValidationError

from tests.vsp_model.tiny_iqp import RUN, TINY
from vsp_model.train.iqp_codes import IQPCodesConfig


def config_of(mode):
    """As a file has it, or `--set`."""
    values = {"model": TINY, "run": RUN, "judges": {"quality": {"path": "built-in"}}}
    return IQPCodesConfig.model_validate(values | yaml.safe_load(f"quality_mode: {mode}"))


@pytest.mark.parametrize("mode", ["off", "'off'", "st_encoder", "st_logits"])
def test_every_mode_can_be_written(mode):
    """A bare `off` is false to YAML, and was refused."""
    config = config_of(mode)
    assert config.quality_mode == mode.strip("'")
    assert config.asks_quality == ("off" not in mode)


@pytest.mark.parametrize("wrong", ["on", "0", "null", "st_codes"])
def test_other_words_are_refused(wrong):
    with pytest.raises(ValidationError, match="quality_mode\n  Input should be 'off'"):
        config_of(wrong)
