"""Judges of a training run: which must be there, and what a resumed run is told of them."""

import shutil

import pytest

from jobs.training import TrainingJob, find_judges, origin_of
from pipeline.errors import UserError
from pipeline.training.data import DataConfig
from tests.vsp_model.tiny_iqp import RUN, SIZE, TINY
from vsp_model.files import sha256_of
from vsp_model.quality import BUILT_IN
from vsp_model.train.iqp_codes import IQPCodesConfig


def config(mode="st_logits", **judges):
    values = {"model": TINY, "run": RUN, "quality_mode": mode}
    return IQPCodesConfig.model_validate(values | {"judges": judges})


def test_a_judge_that_a_score_is_trained_for_with_must_be_there(tmp_path):
    gone = {"path": str(tmp_path / "gone.safetensors")}
    with pytest.raises(UserError, match=r"^judges\.quality: .*gone"):
        find_judges(config(quality=gone))
    found, lines = find_judges(config("off", quality=gone))
    assert found.quality.path == ""
    assert any(line.startswith("quality: off") for line in lines)
    with pytest.raises(ValueError, match=r"judges: \{quality: \{path: built-in\}\}"):
        config()


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What an origin says of judges."""
    (tmp_path / "a.tar").touch()
    monkeypatch.setattr("jobs.training.find_parts", lambda job: {})

    def tell(stage_config):
        data = DataConfig(train=(str(tmp_path / "a.tar"),), size=SIZE)
        job = TrainingJob("iqp-codes", "iqp-codes", stage_config, data, (), "out", "cpu")
        return origin_of(job, 1)["judges"]

    return tell


def test_an_origin_tells_the_judge_and_its_monitor_by_what_they_hold(told, tmp_path):
    shipped = sha256_of(BUILT_IN)[:16]
    assert told(config("off")) == {"lpips": False, "identity": False}  # as before there were any
    quality = {"path": "built-in"}
    both = {"lpips": False, "identity": False, "quality": shipped, "monitor": "classic"}
    assert told(config(quality=quality)) == both
    own = tmp_path / "own.safetensors"
    shutil.copy(BUILT_IN, own)
    monitored = config(quality=quality, monitor={"path": str(own)})
    assert told(monitored)["monitor"] == shipped
    own.write_bytes(b"another")
    assert told(monitored)["monitor"] == sha256_of(own)[:16] != shipped
