import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "ray", "cv2", "pyarrow", "numpy", "pydantic", "yaml", "skimage", "webdataset"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from jobs.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    loaded = set(shown.stdout.partition("LOADED")[2].split())
    assert "typer" in loaded
    assert not loaded & HEAVY
    assert all(name in shown.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_ends_in_an_example(vsp, name):
    code, out, _ = vsp(name, "--help")
    assert code == 0
    assert f"Example: vsp {name} " in out
    assert "--dry-run" in out or name not in ("pack", "restore", "demo")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["restor"], "No such command 'restor'"),
        (["pack"], "Missing argument 'SRC'"),
        (["pack", "a", "b", "--per-shrad", "3"], "No such option"),
        (["pack", "a", "b", "--per-shard", "0"], "should be greater than or equal to 1"),
        (["restore", "a", "b", "--pool", "cloud"], "'cloud' is not one of"),
        (["restore", "x", "out", "--model", "missing.safetensors"], "no such"),
        (["pack", "missing", "out"], "missing: no such folder; give"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    vsp, tmp_path, monkeypatch, arguments, told
):
    monkeypatch.chdir(tmp_path)
    code, out, err = vsp(*arguments)
    assert code == 2
    assert not out
    assert told in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["restore", "missing.tar", "out"], "missing.tar: no such shard; give"),
        (["restore", "missing", "out"], "missing: no such file or folder"),
        (["demo", "--faces", "missing"], "missing: no photo in this folder"),
        (["status", "missing"], "missing: no run has begun here"),
        (["verify", "missing"], "missing: no run has begun here"),
    ],
)
def test_a_path_that_is_not_there_is_the_last_line(vsp, tmp_path, monkeypatch, arguments, told):
    """Others before it may say that the model is untrained."""
    monkeypatch.chdir(tmp_path)
    code, out, err = vsp(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"vsp: {told}")
    assert not list(tmp_path.iterdir())
