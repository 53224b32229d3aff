"""IQP and IDM through the same command and engine as VSPBFR, and the wishes that they know."""

import hashlib
import io
import math
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import TypeAdapter

from pipeline.tar import TarWriter
from vsp_model.checkpoints import save
from vsp_model.condition import NUM_KNOTS, QualityCondition
from vsp_model.registry import ModelConfig, build

IQP = {
    "kind": "iqp",
    "encoder": {"size": 32, "unshuffle": 2, "channels": 16, "multipliers": [1, 2],
                "num_blocks": 1, "latent": 16, "groups": 8},
    "books": {"num_codes": 16, "num_codes_hq": 16},
    "transformer": {"width": 32, "num_layers": 1, "num_heads": 2, "hidden": 32},
    "fidelity_sides": [8, 16],
}  # fmt: skip
IDM = {
    "kind": "idm",
    "unet": {"size": 32, "unshuffle": 2, "channels": 16, "multipliers": [1, 2], "num_blocks": 1,
             "attention_sides": [], "groups": 8, "dropout": 0.0, "condition": {}},
    "noise": {"num_steps": 20, "beta_start": 1e-3, "beta_end": 0.3},
    "param": "residual_x0",
    "steps": 3,
}  # fmt: skip


def write_faces(path: Path, count: int, size: int) -> None:
    file = io.BytesIO()
    writer = TarWriter(file)
    for n in range(count):
        coarse = np.random.default_rng(n).integers(0, 256, (8, 8, 3), np.uint8)
        face = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        writer.add(f"{path.stem}-{n}.png", cv2.imencode(".png", face)[1].tobytes())
    writer.finish()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(file.getvalue())


@pytest.fixture
def restore(vsp, tmp_path):
    """Run `vsp restore` on two shards with an untrained model; the rows and the tars' digests."""
    for name, values in (("iqp", IQP), ("idm", IDM)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"model": values}))
    for shard in range(2):
        write_faces(tmp_path / "in" / f"{shard:06d}.tar", 3, size=32)

    def run(kind, *options, out="out", code=0):
        seen = vsp("restore", tmp_path / "in", tmp_path / out, "--model", tmp_path / f"{kind}.yaml",
                   "--pool", "local", "--threads", 1, "--batch-size", 2, *options)  # fmt: skip
        assert seen[0] == code, seen[2]
        if code:
            return seen[2], {}
        rows = [row for path in sorted((tmp_path / out).glob("*.parquet"))
                for row in pq.read_table(path).to_pylist()]  # fmt: skip
        return rows, digests(tmp_path / out)

    return run


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.tar")}


@pytest.mark.parametrize("kind", ["iqp", "idm"])
def test_siblings_restore_shards_and_resume(restore, kind):
    rows, first = restore(kind)
    assert [row["status"] for row in rows] == ["restored"] * 6
    assert {row["model"] for row in rows} == {f"untrained {kind}"}
    assert restore(kind)[1] == first
    assert restore(kind, "--batch-size", 2, out="again")[1] == first


def test_rows_say_which_quality_was_asked_for(restore):
    rows, _ = restore("idm", "--quality", 0.9)
    assert [row["quality"] for row in rows] == [0.9] * 6
    assert {row["model"] for row in rows} == {"untrained idm (quality 0.9)"}
    rows, _ = restore("idm", out="unasked")
    assert all(math.isnan(row["quality"]) for row in rows)
    for n, word in enumerate(("unknown", "nan", "model.ask.quality=nan", "model.ask.quality=.nan")):
        option = "--set" if "=" in word else "--quality"
        rows, _ = restore("idm", option, word, out=str(n))
        assert all(math.isnan(row["quality"]) for row in rows)
    rows, _ = restore("iqp", out="iqp")
    assert [row["quality"] for row in rows] == [0.9] * 6  # as released


@pytest.mark.parametrize(("kind", "values"), [("iqp", IQP), ("idm", IDM)])
def test_what_was_trained_without_scores_is_asked_for_no_quality(restore, tmp_path, kind, values):
    model = build(TypeAdapter(ModelConfig).validate_python(values))
    conditions = [m for m in model.modules() if isinstance(m, QualityCondition)]
    conditions[0].set_distribution([math.nan] * NUM_KNOTS)
    save(model, tmp_path / "unscored.safetensors")
    bundle = ["--model", tmp_path / "unscored.safetensors"]
    rows, unasked = restore(kind, *bundle, out="unasked")
    assert all(math.isnan(row["quality"]) for row in rows)
    assert restore(kind, *bundle, "--quality", "unknown", out="unknown")[1] == unasked
    told, _ = restore(kind, *bundle, "--quality", 0.9, out="asked", code=2)
    assert told == (
        f"vsp: unscored.safetensors: quality: this {kind} model was trained without scores; "
        "it knows unknown alone\n"
    )
    assert not (tmp_path / "asked").exists()


def test_another_wish_is_another_run(restore):
    restore("idm", "--quality", 0.9)
    told, _ = restore("idm", "--quality", 0.5, code=2)
    assert "0.9" in told
    assert "0.5" in told


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("idm", ["--quality", "1.2"], ["1.2", "0 to 1"]),
        ("idm", ["--quality", "good"], ["good", "expected 0 to 1, or unknown"]),
        (
            "idm",
            ["--set", "model.ask.quality=good"],
            ["'good'", ": model.ask.quality: expected 0 to 1, or unknown"],
        ),
        ("idm", ["--fidelity", "0.5"], ["fidelity", "idm"]),
        ("iqp", ["--steps", "3"], ["steps", "iqp"]),
        ("idm", ["--steps", "21"], ["21", "20"]),
    ],
)
def test_a_wish_that_a_model_does_not_know_is_one_line(restore, kind, options, words):
    told, _ = restore(kind, *options, code=2)
    assert len(told.strip().splitlines()) == 1
    for word in words:
        assert word in told


def test_the_built_in_model_is_known_by_its_kind(vsp, tmp_path):
    write_faces(tmp_path / "in" / "000000.tar", 1, size=128)
    options = ["--quality", 0.9, "--pool", "local", "--threads", 1, "--batch-size", 1]
    for model in ("vspbfr", "iqp", "idm"):
        code, _, err = vsp("restore", tmp_path / "in", tmp_path / model, "--model", model,
                           *options)  # fmt: skip
        assert code == 0, err
        assert "non-commercial" in err
        (row,) = pq.read_table(tmp_path / model / "000000.parquet").to_pylist()
        assert (row["status"], row["quality"]) == ("restored", 0.9)
        assert row["model"] == f"{model}-128.safetensors (quality 0.9)"


def test_one_model_starts_from_what_another_one_made(vsp, tmp_path):
    write_faces(tmp_path / "in" / "000000.tar", 1, size=128)
    options = ["--pool", "local", "--threads", 1, "--batch-size", 1]
    for out, more in (("plain", []), ("refined", ["--estimate", "vspbfr"])):
        code, _, err = vsp("restore", tmp_path / "in", tmp_path / out, "--model", "idm", *options,
                           *more)  # fmt: skip
        assert code == 0, err
    assert digests(tmp_path / "plain") != digests(tmp_path / "refined")
    (row,) = pq.read_table(tmp_path / "refined" / "000000.parquet").to_pylist()
    assert "from vspbfr-128.safetensors" in row["model"]
    code, _, err = vsp("restore", tmp_path / "in", tmp_path / "no", "--model", "iqp", *options,
                       "--estimate", "vspbfr")  # fmt: skip
    assert (code, len(err.strip().splitlines())) == (2, 1)


def test_cleaning_knows_the_same_wishes(vsp, tmp_path):
    write_faces(tmp_path / "in" / "000000.tar", 1, size=128)
    asked = ["--model", "iqp", "--steps", 2, "-n"]
    code, _, err = vsp("clean", tmp_path / "in", tmp_path / "out", *asked)
    assert (code, err) == (2, "vsp: iqp-128.safetensors: steps: not known to iqp models\n")
