"""The chaos script with a few kills; by hand it is run with twenty."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc"),
]
SCRIPT = Path(__file__).with_name("chaos.py")


def test_four_kills_leave_no_trace(tmp_path):
    command = [sys.executable, str(SCRIPT), "--kills", "4", "--folder", str(tmp_path / "chaos")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    last = found.stdout.splitlines()[-1]
    assert last.startswith("4 kills (")
    assert last.endswith("nothing lost, bytes equal")
