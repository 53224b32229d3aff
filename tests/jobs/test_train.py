"""`vsp train` as a user runs it: tiny networks, shards packed by the project."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.vsp_model.tiny import tiny_config
from tests.vsp_model.tiny_iqp import TINY
from vsp_model.ask import Ask
from vsp_model.bundle import open_bundle
from vsp_model.checkpoints import load
from vsp_model.files import sha256_of

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, BATCH = 32, 4
RUN = {"num_images": 4 * BATCH, "batch_size": BATCH, "part_size": 2, "threads": 1}
RUN |= {"log_images": BATCH, "preview_images": 2 * BATCH, "checkpoint_images": 2 * BATCH}
ADVERSARY = {
    "network": {"size": SIZE, "channels": [16] * 4, "group_size": 2},
    "r1_interval": 2,
    "augment": {"target": -2, "interval": 1, "ramp_images": 20},
}
STAGES = {
    "prior": {"kind": "reconstruction", "weights": {"lpips": 0}},
    "encoder": {"kind": "encoder", "progressive": None},
    "diffuser": {"kind": "diffuser"},
    "restorer": {"kind": "restorer", "adversary": ADVERSARY, "weights": {"l1": 1.0}},
}
# Kills itself after its third step; argv: STAGE CONFIG OUT SHARDS.
SUICIDE = """
import os, signal, sys
from pathlib import Path
import jobs.training_display as display
from jobs import cli

def stepped(self, images_seen, num_images, terms):
    if images_seen >= 3 * num_images // 4:
        os.kill(os.getpid(), signal.SIGKILL)

display.Attendant.stepped = stepped
stage, config, out, shards, *rest = sys.argv[1:]
cli.main(["train", stage, config, "--data", shards, "--out", out, *rest])
"""


def model():
    values = tiny_config(SIZE, widths=(16, 16, 16, 16)).model_dump(mode="json")
    values["encoder"] |= {"stem_channels": 16, "stage_channels": [16] * 4}
    return values


def draw_faces(folder: Path, count: int) -> None:
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
        face = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{folder.name}{number}.png"), face)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    from jobs.cli import main

    folder = tmp_path_factory.mktemp("faces")
    for name, count in (("train", 10), ("validation", 3)):
        (folder / name).mkdir()
        draw_faces(folder / name, count)
        with pytest.raises(SystemExit, match="0"):
            main(["pack", str(folder / name), str(folder / f"{name}-shards")])
    return folder


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """Write a stage's YAML; changes are given as keys and values of its top level."""
    folder = tmp_path_factory.mktemp("configs")

    def write(stage: str, **changes) -> Path:
        own = STAGES.get(stage, {"kind": stage})
        values = {"model": model(), "run": RUN, "data": {"size": SIZE}, **own, **changes}
        path = folder / f"{stage}-{len(list(folder.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def train(vsp, shards):
    """Run `vsp train`, on the shards unless told otherwise."""

    def run(stage, path, out, *more, data=None):
        given = ["--data", shards / "train-shards"] if data is None else data
        return vsp("train", stage, path, *given, "--out", out, "--device", "cpu", *more)

    return run


@pytest.fixture(scope="session")
def chain(tmp_path_factory, shards, config):
    """The stages one after the other, two steps each."""
    from jobs.cli import main

    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("runs")
    given = []
    for stage in STAGES:
        arguments = ["train", stage, config(stage, run=RUN | {"num_images": 2 * BATCH}),
                     "--data", shards / "train-shards", "--out", folder / stage,
                     "--validation", shards / "validation-shards", *given]  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main([str(each) for each in arguments])
        assert stop.value.code == 0, stage
        given = ["--from", folder / stage]
    torch.set_num_threads(before)
    return folder


def result(run: Path) -> dict[str, bytes]:
    """What a run has computed: its last checkpoint and its model."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    files = [newest / "state.safetensors", newest / "state.json", run / "model.safetensors"]
    return {path.name: path.read_bytes() for path in files}


def subprocess_environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def test_each_stage_takes_the_one_before(chain):
    kinds = {}
    for stage in STAGES:
        with open_bundle(chain / stage / "model.safetensors") as bundle:
            kinds[stage] = bundle.info.config.kind
    assert kinds == {
        "prior": "e4e", "encoder": "e4e", "diffuser": "prompt", "restorer": "vspbfr"
    }  # fmt: skip
    prior, encoder = (chain / s / "model.safetensors" for s in ("prior", "encoder"))
    with open_bundle(prior) as old, open_bundle(encoder) as new:
        frozen = old.tensors("prior."), new.tensors("prior.")
        assert all(torch.equal(frozen[0][name], frozen[1][name]) for name in frozen[0])
        assert new.info.sources["prior of model.safetensors"] == sha256_of(prior)


def test_a_run_leaves_its_notes(chain):
    run = chain / "restorer"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [4, 8, 8]
    assert {"images", "time_s", "loss", "r1", "adversarial"} <= lines[0].keys()
    assert "val/psnr" in lines[-1]
    grid = cv2.imread(str(run / "grids" / "000000008.png"))
    assert grid.shape[1] == 4 * (128 + 8) + 8  # LQ, prompt, restored, HQ
    report = (run / "report.md").read_text()
    for words in ("vsp train" if "vsp train" in report else "# restorer", "10 in 1 shard(s)",
                  "| psnr |", "curves.png", "grids/000000008.png", "| seed | 0 |"):  # fmt: skip
        assert words in report
    assert (run / "curves.png").stat().st_size > 1000
    digest = (run / "model.safetensors.sha256").read_text().split()[0]
    assert digest == sha256_of(run / "model.safetensors")
    assert (run / "best.safetensors").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(chain, train, config, shards, tmp_path):
    path, given = config("restorer"), ["--from", chain / "diffuser"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, _, err = train("restorer", path, whole, *given)
    assert code == 0, err
    process = subprocess.run(
        [sys.executable, "-c", SUICIDE, "restorer", path, parts, shards / "train-shards",
         *map(str, given)],
        env=subprocess_environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert [p.name for p in (parts / "checkpoints").iterdir()] == ["step-000000002"]
    code, _, err = train("restorer", path, parts, *given)
    assert (code, "going on from step 2 of 4" in err) == (0, True), err
    assert result(whole) == result(parts)
    figures = [json.loads(line) for line in (parts / "log.jsonl").read_text().splitlines()]
    assert sorted({line["images"] for line in figures}) == [4, 8, 12, 16]


@pytest.mark.slow
def test_two_processes_compute_what_one_does(chain, train, config, shards, tmp_path):
    path, given = config("encoder"), ["--from", chain / "prior"]
    code, _, err = train("encoder", path, tmp_path / "one", *given)
    assert code == 0, err
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "-m", "jobs.cli", "train", "encoder", path, "--data", shards / "train-shards",
               "--out", tmp_path / "two", *given, "--device", "cpu"]  # fmt: skip
    process = subprocess.run(
        command, env=subprocess_environment(), capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    # Two parts are added in either order to the same bits; batch norms' statistics are in there.
    assert result(tmp_path / "one") == result(tmp_path / "two")


def test_a_signal_stops_a_run_after_a_checkpoint(config, shards, train, tmp_path):
    path = config("prior", run=RUN | {"num_images": 100_000, "checkpoint_images": 100_000})
    command = [sys.executable, "-m", "jobs.cli", "train", "prior", path, "--data",
               shards / "train-shards", "--out", tmp_path / "run", "--device", "cpu"]  # fmt: skip
    process = subprocess.Popen(
        command, env=subprocess_environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "log.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    code, _, err = train("prior", path, tmp_path / "run")
    assert (code, "another run is at work here" in err) == (1, True)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert err.splitlines()[-1].endswith("run the same command to go on")
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_restart_starts_over_and_leaves_others_files(train, config, tmp_path):
    short = RUN | {"num_images": BATCH}
    assert train("prior", config("prior", run=short), tmp_path / "run")[0] == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    other = config("prior", run=short | {"seed": 1})
    code, _, err = train("prior", other, tmp_path / "run")
    assert code == 1
    assert "made with run.seed 0, now 1; use the old value, another --out, or --restart" in err
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["run"]["seed"] == 0
    assert train("prior", other, tmp_path / "run", "--restart")[0] == 0
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "run" / "notes.txt").exists()


def test_dry_run_prints_settings_that_can_be_used_again(train, config, tmp_path):
    code, out, _ = train("prior", config("prior"), tmp_path / "run", "-n", "--set", "run.seed=3")
    assert code == 0
    assert not (tmp_path / "run").exists()
    (tmp_path / "again.yaml").write_text(out)
    again = train("prior", tmp_path / "again.yaml", tmp_path / "run", "-n", data=[])
    assert again[0] == 0
    assert yaml.safe_load(again[1]) == yaml.safe_load(out)
    assert yaml.safe_load(out)["run"]["seed"] == 3


ABSENT = {"lpips": {"net": "squeeze", "path": "no-such-judge", "required": True}}
MISTAKES = {
    "no data": ("prior", {}, [], [], "no shards to train on; give them with --data"),
    "missing data": ("prior", {}, ["--data", "nowhere/"], [], "nowhere"),
    "empty list": ("prior", {}, ["--data", "{tmp}"], [], "no .tar"),
    "kind": ("prior", {"kind": "gen"}, None, [], "kind: 'gen' is not for `vsp train prior`"),
    "other stage": ("prior", {"kind": "restorer"}, None, [], "that is `vsp train restorer`"),
    "typo": ("prior", {"rum": {}}, None, [], "unknown key 'rum'; did you mean 'run'?"),
    "absent judge": ("prior", {"judges": ABSENT}, None, [], "judges.lpips: no-such-judge: not in"),
    "sha256": (
        "prior",
        {"judges": {"lpips": {"path": __file__, "sha256": "0" * 64}}},
        None, [], "but the configuration says 000",
    ),
    "part": ("diffuser", {}, None, [], "the diffuser needs a trained encoder: give its run"),
    "untrained parts": ("restorer", {}, None, [], "the restorer needs a trained encoder: give its"),
    "no bundle": ("encoder", {}, None, ["--from", "nothing"], "nothing: no such run"),
    "workers": ("prior", {}, None, ["--workers", "3"], "3 workers: batch_size 4 has 2 part(s)"),
    "group": (
        "restorer",
        {"run": RUN | {"part_size": 4, "batch_size": 4},
         "adversary": ADVERSARY | {"network": ADVERSARY["network"] | {"group_size": 3}}},
        None, ["--from", "{chain}/diffuser"], "adversary.network.group_size is 3",
    ),
    "architecture": (
        "encoder",
        {"model": {**model(), "prior": model()["prior"] | {"mapping_layers": 3}}},
        None, ["--from", "{chain}/prior"],
        "prior is another network: model.prior.mapping_layers is 2 there, 3",
    ),
    "colours": (
        "iqp-codes",
        {"model": {"kind": "iqp", "colour_transfer": True},
         "data": {"size": SIZE, "degradation": {"colour": {"kind": "underwater"}}}},
        None, [], "model.colour_transfer gives the restored picture the degraded one's colours",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, train, config, chain, tmp_path, monkeypatch):
    stage, changes, data, more, words = MISTAKES[name]
    monkeypatch.setenv("VSP_WEIGHTS", str(tmp_path))
    fill = {"tmp": str(tmp_path), "chain": str(chain)}
    data = data and [each.format(**fill) for each in data]
    more = [each.format(**fill) for each in more]
    code, _, err = train(stage, config(stage, **changes), tmp_path / "run", *more, data=data)
    last = err.splitlines()[-1]
    assert (code, last[:5]) == (2, "vsp: "), err
    assert words in last
    assert "Traceback" not in err


UNSCORED = {
    "iqp-books": "no data.scores: the HQ+ book learns nothing",
    "iqp-codes": "no data.scores: every face trains as unknown, and the model knows no other qua",
    "iqp-fidelity": "no data.scores: every face trains as unknown\n",
}


def test_stages_of_iqp_hand_over_what_they_trained(train, config, tmp_path):
    def run(stage, name, source=None, code=0, **changes):
        told = {"model": {"kind": "iqp", **TINY, **changes}, "run": RUN | {"num_images": BATCH}}
        given = ["--from", tmp_path / source] if source else []
        found = train(stage, config(stage, **told), tmp_path / name, *given)
        assert found[0] == code, found[2]
        return found[2]

    assert UNSCORED["iqp-books"] in run("iqp-books", "books")
    assert UNSCORED["iqp-codes"] in run("iqp-codes", "codes", "books")
    assert math.isnan(load(tmp_path / "codes" / "model.safetensors").settle(Ask()).dial.quality)
    with pytest.raises(ValueError, match="fidelity: this iqp model was trained without stage III"):
        load(tmp_path / "codes" / "model.safetensors").settle(Ask(fidelity=1))
    assert UNSCORED["iqp-fidelity"] in run("iqp-fidelity", "fidelity", "codes")
    assert load(tmp_path / "fidelity" / "model.safetensors").settle(Ask(fidelity=1)).fidelity == 1
    assert "data.scores" not in run("iqp-codes", "untold", "books", condition=None)
    assert "needs a trained embedding" in run("iqp-fidelity", "told", "untold", code=2)


def test_a_folder_of_something_else_is_left_alone(train, config, tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    code, _, err = train("prior", config("prior"), tmp_path)
    assert (code, "holds files of others (letters.txt)" in err) == (2, True)
