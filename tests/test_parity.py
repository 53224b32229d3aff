"""The networks reproduce the recorded vectors, and the program that says so can say no."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import parity
from parity_data import parity_weights
from parity_vectors.vectors import Result, largest_error, tolerance

HERE = Path(__file__).resolve().parent
PUBLIC = HERE / "parity_data" / "public"
QUICK = (
    "ada",
    "code_diffuser",
    "ddpm_schedule",
    "degradation",
    "losses",
    "primitives",
    "restorer_small",
    "smart",
    "stylegan_small",
)
# At the published sizes; lpips because its package draws a whole VGG-16 before it is filled.
SLOW = ("arcface", "discriminator", "encoder", "lpips", "pipeline", "restorer512", "stylegan")


def run(folder: Path, *parts: str) -> int:
    return parity.main([str(folder), *(["--only", *parts] if parts else [])])


def rewritten(part: str, folder: Path, *, meta: dict | None = None, **entries: np.ndarray) -> Path:
    """A copy of one public file with other entries or another meta."""
    with np.load(PUBLIC / f"{part}.npz") as file:
        content = {name: file[name] for name in file.files} | entries
    content["meta"] = np.array(json.dumps(json.loads(str(content["meta"])) | (meta or {})))
    np.savez(folder / f"{part}.npz", **content)
    return folder


def failed_lines(text: str) -> list[str]:
    """Names of the failed lines."""
    return [
        line.split()[0] for line in text.splitlines() if " FAIL" in line and "failed:" not in line
    ]


@pytest.mark.parametrize("part", QUICK)
def test_part_is_reproduced(part: str) -> None:
    assert run(PUBLIC, part) == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", SLOW)
def test_slow_part_is_reproduced(part: str) -> None:
    assert run(PUBLIC, part) == 0


def test_every_public_part_is_run_somewhere() -> None:
    assert {path.stem for path in PUBLIC.glob("*.npz")} == {*QUICK, *SLOW} == set(parity.PARTS)


def test_public_copy_is_the_shared_one(shared_dir: Path) -> None:
    original, copy = shared_dir / "parity", HERE / "parity_data"
    names = [path.name for path in sorted((original / "public").iterdir())]
    for name in ("parity_weights.py", "state_dict_keys.json", *(f"public/{n}" for n in names)):
        assert (copy / name).read_bytes() == (original / name).read_bytes(), name


def test_one_changed_value_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(PUBLIC / "smart.npz") as file:
        out = file["out"]
    out[1, 3, 7, 5] += 1e-3
    assert run(rewritten("smart", tmp_path, out=out)) == 1
    assert failed_lines(capsys.readouterr().out) == ["smart/out"]


def test_one_changed_weight_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = parity_weights.weight

    def weight(seed: int, namespace: str, key: str, *rest: object) -> np.ndarray:
        value = honest(seed, namespace, key, *rest)
        if key == "fusion.0.weight":
            value[5, 6, 1, 1] += 0.01
        return value

    monkeypatch.setattr(parity_weights, "weight", weight)
    assert run(PUBLIC, "smart") == 1
    assert failed_lines(capsys.readouterr().out) == ["smart/fusion", "smart/out"]


def test_another_seed_is_told_apart_from_a_wrong_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(rewritten("code_diffuser", tmp_path, meta={"base_seed": 1})) == 1
    text = capsys.readouterr().out
    assert "code_diffuser/digest:in/code_diffuser/start" in failed_lines(text)
    assert "the random source differs" in text


def test_an_entry_that_nobody_checks_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(rewritten("losses", tmp_path, extra=np.zeros(3))) == 1
    assert failed_lines(capsys.readouterr().out) == ["losses/extra"]


def test_a_part_that_cannot_run_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewritten("losses", tmp_path, pred=np.zeros(1), meta={"inputs": {}})
    np.savez(tmp_path / "surprise.npz", meta=np.array("{}"))
    assert run(tmp_path) == 1
    names = failed_lines(capsys.readouterr().out)
    assert {"losses/*", "losses/latent_l1", "surprise/*"} <= set(names)


def test_nothing_to_run_is_no_success(tmp_path: Path) -> None:
    assert run(tmp_path) == 2
    assert run(PUBLIC, "smart", "typo") == 2


def test_the_exit_status_of_the_program(tmp_path: Path) -> None:
    rewritten("losses", tmp_path, g_nonsaturating=np.array([0.5]))
    command = [sys.executable, str(HERE / "parity.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert failed_lines(done.stdout) == ["losses/g_nonsaturating"]


def test_tolerance_is_tighter_for_what_is_small_throughout() -> None:
    assert tolerance(np.array([-12.0, 3.0]), floor=1.0) == pytest.approx(1.2e-3)
    assert tolerance(np.array([0.5]), floor=1.0) == 1e-4
    assert tolerance(np.array([0.05]), floor=1e-6) == pytest.approx(5e-5)
    assert tolerance(np.array([0.05]), floor=1e-4) == pytest.approx(4e-4)
    assert tolerance(np.zeros(3), floor=0.0) == 1e-9


def test_not_a_number_and_a_wrong_shape_do_not_pass() -> None:
    error, _ = largest_error(np.array([1.0, np.nan]), np.ones(2))
    assert not Result("part", "name", error, tolerance=1.0).passed
    error, note = largest_error(np.ones((2, 3)), np.ones((3, 2)))
    assert not Result("part", "name", error, tolerance=1.0).passed
    assert note == "shape (2, 3), expected (3, 2)"
