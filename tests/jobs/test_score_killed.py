"""A scorer that is killed goes on to the same bytes."""

import json
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

NUM_IMAGES = 400


@pytest.fixture
def faces(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("truth", "ours"):
        (tmp_path / folder).mkdir()
    for number in range(NUM_IMAGES):
        truth = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (72, 72))
        cv2.imwrite(str(tmp_path / "truth" / f"f{number:03d}.png"), truth)
        cv2.imwrite(str(tmp_path / "ours" / f"f{number:03d}.png"), cv2.blur(truth, (3, 3)))
    return tmp_path


def command(faces, out) -> list[str]:
    return [
        sys.executable, "-m", "jobs.cli", "score", str(faces / "ours"), str(faces / out),
        "--gt", str(faces / "truth"), "--metrics", "psnr,ssim,niqe-small", "--no-report",
        "--threads", "1",
    ]  # fmt: skip


def scores(faces, out) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (faces / out / "scores").iterdir()}


@pytest.mark.slow
def test_a_killed_scorer_goes_on_to_the_same_scores_and_results(faces):
    subprocess.run(command(faces, "whole"), check=True, capture_output=True)
    killed = subprocess.Popen(
        command(faces, "out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder = faces / "out" / "scores"
    while killed.poll() is None and not (folder.is_dir() and any(folder.iterdir())):
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = set(scores(faces, "out"))

    again = subprocess.run(command(faces, "out"), check=False, capture_output=True, text=True)

    assert again.returncode == 0, again.stderr
    assert 0 < len(done) < len(scores(faces, "whole")), "killed too early or too late to tell"
    assert scores(faces, "out") == scores(faces, "whole")
    one, other = (
        json.loads((faces / name / "results.json").read_text()) | {"provenance": {}, "title": ""}
        for name in ("out", "whole")
    )
    assert one == other
