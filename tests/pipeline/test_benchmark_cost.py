from pathlib import Path

import pytest
import torch
import yaml

from jobs.models import asked_model
from pipeline.baselines.own import FaceByFace
from pipeline.benchmark import cost
from pipeline.benchmark.cost import count, images_per_s, measure
from pipeline.replica import ReplicaConfig, load_model
from vsp_model.ask import Ask

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


def of(*asked):
    """Parameters and multiply-accumulates of a built-in model."""
    config = ReplicaConfig.model_validate({"model": asked_model(*asked)})
    return count(load_model(config))


def test_two_models_in_a_row_cost_what_both_cost():
    first, second = of("vspbfr", Ask()), of("idm", Ask())
    assert of("idm", Ask(), "vspbfr") == tuple(a + b for a, b in zip(first, second, strict=True))


def test_what_is_asked_of_a_model_is_counted():
    parameters, macs = of("idm", Ask())
    assert of("idm", Ask(steps=10)) == (parameters, 10 * macs)
    guided = of("vspbfr", Ask(quality=0.9, guidance=2))
    alone = of("vspbfr", Ask(quality=0.9))
    assert 1.2 * alone[1] < guided[1] < 2 * alone[1], "all twice but the encoder"
    assert of("iqp", Ask(fidelity=0))[1] < of("iqp", Ask(fidelity=1))[1]
