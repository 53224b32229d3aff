from pathlib import Path

import pytest
import torch
import yaml

from pipeline.baselines.own import FaceByFace
from pipeline.benchmark import cost
from pipeline.benchmark.cost import count, images_per_s, measure
from pipeline.replica import ReplicaConfig

TINY = Path(__file__).resolve().parents[2] / "configs" / "ablations" / "model.yaml"


def test_a_network_is_counted_and_timed_and_threads_are_given_back(monkeypatch):
    monkeypatch.setattr(cost, "MAX_ROUNDS", 3)
    model = yaml.safe_load(TINY.read_text())["model"]
    config = ReplicaConfig.model_validate(
        {"model": {"kind": "untrained", "path": TINY, "config": model}, "batch_size": 2}
    )
    threads = torch.get_num_threads()
    found = measure(config)
    assert torch.get_num_threads() == threads
    assert found.params_m == pytest.approx(2.284, abs=0.001)
    assert found.gmacs == pytest.approx(0.2425, abs=0.0001)
    assert found.images_per_s > 0
    assert found.as_dict()["batch_size"] == 2.0


def test_only_networks_are_counted():
    restorer = FaceByFace(lambda face: face, 8)
    assert images_per_s(restorer, 4) > 0
    with pytest.raises(TypeError, match="no network"):
        count(restorer)


def test_two_models_in_a_row_cost_what_both_cost():
    from jobs.models import asked_model
    from pipeline.replica import load_model
    from vsp_model.ask import Ask

    def of(*asked):
        config = ReplicaConfig.model_validate({"model": asked_model(*asked)})
        return count(load_model(config))

    first, second = of("vspbfr", Ask()), of("idm", Ask())
    assert of("idm", Ask(), "vspbfr") == tuple(a + b for a, b in zip(first, second, strict=True))
