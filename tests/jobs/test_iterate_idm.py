"""`vsp iterate` with IDM as its restorer: trainings are real, the nets are tiny."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from loop_folder import write_faces

from pipeline.cleaning.loop.rounds import Figures
from vsp_model.bundle import open_bundle

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "configs" / "iterate" / "idm.yaml"
SIZE, BATCH, COUNT = 48, 4, 8  # the gate refuses smaller faces
UNET = {"size": 32, "unshuffle": 2, "channels": 16, "multipliers": [1, 2], "num_blocks": 1}
UNET |= {"attention_sides": [8], "groups": 8, "dropout": 0.0, "tail_channels": 4}
MODEL = {"kind": "idm", "unet": UNET, "noise": {"num_steps": 20}, "param": "residual_x0"}
MODEL |= {"residual_scale": 0.15, "steps": 1}
RUN = {"num_images": 2 * BATCH, "batch_size": BATCH, "threads": 1, "log_images": BATCH}
RUN |= {"preview_images": 2 * BATCH, "checkpoint_images": BATCH}
STAGE = {"kind": "idm", "model": MODEL, "run": RUN, "data": {"size": 32}, "adam": {"lr": 0.01}}
FIRST, SECOND = (f"round-{number}/train/idm" for number in (0, 1))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a loop's YAML, shards to train on, shards held out; no judges."""
    monkeypatch.setenv("VSP_WEIGHTS", str(tmp_path / "none"))
    stages = [{"stage": "idm", "file": "stage.yaml", "images_per_s": 9}]
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(STAGE))
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump({"size": 32, "stages": stages}))
    write_faces(tmp_path / "data" / "a.tar", COUNT, SIZE)
    write_faces(tmp_path / "held" / "h.tar", 4, SIZE)
    return tmp_path


@pytest.fixture
def lenient(place, monkeypatch):
    """A gate that lets seven faces of the set through, other ones than they were."""

    def clean(run, name, faces, model, ask):
        assert Path(model) == place / "out" / FIRST / "model.safetensors"
        (run.folder(name) / "manifest").mkdir(parents=True)
        write_faces(run.folder(name) / "b.tar", COUNT - 1, SIZE)
        return {"model": model, "counts": {}, "reasons": {}, "calibration": []}

    def figures_of(run, name, number, before, cleaned):
        values = {"round": number, "num_images": COUNT, "num_tried": COUNT, "num_rejected": 0}
        values |= {"num_accepted": COUNT - 1, "gain": 0.1, "gain_low": 0.1, "gain_high": 0.1}
        run.folder(name).with_name("figures.json").write_text("{}")
        return Figures(**values).model_dump(mode="json")

    monkeypatch.setattr("jobs.iteration_steps.clean", clean)
    monkeypatch.setattr("jobs.iteration_steps.figures_of", figures_of)


def settings(place, step):
    return yaml.safe_load((place / "out" / step / "config.yaml").read_text())


@pytest.mark.slow
def test_faces_that_are_none_are_left_alone_and_the_loop_ends(iterate, place):
    """Training, gate and figures are real."""
    code, out, err = iterate()
    assert code == 0, err
    assert "rule 2 ends the loop" in err
    assert f"| {COUNT} |" in out
    with open_bundle(place / "out" / FIRST / "model.safetensors") as bundle:
        assert bundle.info.config.kind == "idm"
        assert bundle.info.config.steps == 1
    assert not (place / "out" / "round-1").exists()
    figures = json.loads((place / "out" / "round-0" / "figures.json").read_text())
    assert figures["num_accepted"] == 0


def test_the_second_round_is_trained_on_what_the_first_has_cleaned(iterate, place, lenient):
    code, out, err = iterate()
    assert code == 0, err
    assert "rule 5 ends the loop" in err
    assert settings(place, FIRST)["data"]["train"] == [str(place / "data")]
    assert settings(place, SECOND)["data"]["train"] == [str(place / "out" / "round-0" / "clean")]
    first, second = (
        (place / "out" / s / "model.safetensors").read_bytes() for s in (FIRST, SECOND)
    )
    assert first != second
    assert "Each round's restorer" in out
    assert iterate()[1] == out


@pytest.mark.slow
def test_a_round_again_makes_the_same_bytes(iterate, place, lenient):
    results = []
    for _ in range(2):
        assert iterate()[0] == 0
        results.append((place / "out" / SECOND / "model.safetensors").read_bytes())
        shutil.rmtree(place / "out")
    assert results[0] == results[1]


def test_the_shipped_loop_is_read(vsp, place, shared_dir, monkeypatch):
    monkeypatch.setenv("VSP_WEIGHTS", str(shared_dir / "weights"))
    code, out, err = vsp("iterate", SHIPPED, place / "out", "--data", place / "data", "-n")
    assert code == 0, err
    steps = [line.split()[2] for line in out.partition("\n}\n")[2].splitlines()[:-1]]
    assert steps == [FIRST, "round-0/clean", "round-0/figures", SECOND]
