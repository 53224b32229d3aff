"""The program that runs pyiqa: with a small stand-in, and with pyiqa where it is installed."""

import contextlib
import os
import signal
import site
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.metrics.judge import Face
from pipeline.metrics.nr_iqa import IqaJudge, pyiqa_name

# Metrics of the stand-in do what their names say.
STAND_IN = """
import os, socket, sys
import torch

__version__ = "0.0-test"
HERE = os.path.dirname(__file__)


def create_metric(name, device):
    print("a library that talks on stdout")
    if name == "downloads":
        socket.create_connection(("127.0.0.1", 9), 0.1)
    if name == "weighted":
        with open(os.path.join(HERE, "weighted.pth"), "rb") as file:
            file.read()
    return globals()[name]


def mean(image):
    assert image.shape[:2] == (1, 3) and image.dtype == torch.float32
    print("and while it works")
    return image.mean(dim=(2, 3)) @ torch.tensor([100.0, 10.0, 1.0])


def crops(image):
    return torch.rand(1)


def fails(image):
    raise ValueError("no\\ngood")


def nothing(image):
    return torch.tensor(float("nan"))


def weighted(image):
    return torch.tensor(1.0)


def deadly(image):
    if image.max() == 0:
        sys.stderr.write("the last words\\n")
        sys.stderr.flush()
        os._exit(3)
    return image.max()
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python of an environment that holds the stand-in, and our torch."""
    folder = tmp_path_factory.mktemp("iqa")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "ours.pth").write_text("\n".join(site.getsitepackages()))
    (packages / "pyiqa").mkdir()
    (packages / "pyiqa" / "__init__.py").write_text(STAND_IN)
    (packages / "pyiqa" / "weighted.pth").write_bytes(b"weights")
    return folder / "env" / "bin" / "python"


@pytest.fixture
def judge(python):
    """Makes judges, and ends their programs."""
    made = []

    def make(*metrics, seed=0):
        made.append(IqaJudge(python, *metrics, seed=seed))
        return made[-1]

    yield make
    for each in made:
        each.close()


def face(colour=(255, 0, 0), key="a"):
    return Face(key, np.full((16, 24, 3), colour, np.uint8))


def test_the_table_says_what_pyiqa_calls_a_metric():
    assert [pyiqa_name(name) for name in ("topiq", "topiq-face", "musiq", "piqe")] == [
        "topiq_nr", "topiq_nr-face", "musiq", "piqe",
    ]  # fmt: skip


def test_values_faults_and_files_of_each_metric(judge):
    ours = judge("mean", "fails", "nothing", "downloads", "weighted")
    assert ours.library == "pyiqa 0.0-test"
    assert list(ours.files) == ["weighted.pth"]
    assert len(ours.files["weighted.pth"]) == 64
    scores = ours.score(face((255, 51, 0)))
    assert scores["mean"].value == pytest.approx(102)
    assert scores["weighted"].value == 1
    assert (scores["fails"].status, scores["fails"].error) == ("failed", "ValueError: no good")
    assert scores["nothing"].status == "non_finite"
    assert "downloads: ConnectionRefusedError: nothing is downloaded" in scores["downloads"].error
    assert "TORCH_HOME" in scores["downloads"].error
    assert ours.score(face((0, 255, 0)))["mean"].value == pytest.approx(10)


@pytest.mark.slow
def test_what_is_random_hangs_on_seed_and_key_and_a_dead_program_starts_again_once(judge):
    ours = judge("crops", "deadly")
    first = [ours.score(face(key=key))["crops"].value for key in "aba"]
    assert first[0] == first[2] != first[1]
    died = ours.score(face(0))
    assert {score.status for score in died.values()} == {"failed"}
    assert died["crops"].error == "pyiqa ended with code 3: the last words"
    assert ours.score(face(key="a"))["crops"].value == first[0]
    os.kill(ours._program._process.pid, signal.SIGKILL)
    for _ in range(2):  # and stays dead
        assert ours.score(face())["deadly"].error == "pyiqa was killed by signal 9"
    assert judge("crops", seed=1).score(face(key="a"))["crops"].value != first[0]


def test_no_pyiqa_is_told_at_once_with_the_fix(tmp_path, judge):
    # Our own environment has none.
    with pytest.raises(UserError, match=r"ended with code 1: ModuleNotFoundError.*pip install"):
        IqaJudge(Path(sys.executable), "piqe")
    with pytest.raises(UserError, match="cannot be started"):
        IqaJudge(tmp_path / "none", "piqe")


@pytest.mark.slow
def test_it_ends_with_the_process_that_started_it(python):
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from pipeline.metrics.nr_iqa import IqaJudge\n"
        f"judge = IqaJudge(Path({str(python)!r}), 'mean')\n"
        "print(judge._program._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    process = int(ran.stdout)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _runs(process):
        time.sleep(0.05)
    assert not _runs(process)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # what nobody has waited for yet


@pytest.fixture(scope="module")
def real_python():
    """Python of an environment with pyiqa."""
    named = os.environ.get("VSP_IQA_PYTHON")
    if not named:
        pytest.skip("needs VSP_IQA_PYTHON, the Python of an environment with pyiqa")
    return Path(named)


def test_pyiqa_itself(real_python, tmp_path, monkeypatch):
    """PIQE needs no weights; MUSIQ gets random ones where pyiqa looks for the published."""
    data = pytest.importorskip("skimage.data")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    file = tmp_path / "hub" / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth"
    file.parent.mkdir(parents=True)
    code = (
        "import sys, torch, pyiqa\n"
        "torch.manual_seed(0)\n"
        "net = pyiqa.create_metric('musiq', device='cpu', pretrained=False).net\n"
        "torch.save(net.state_dict(), sys.argv[1])\n"
    )
    subprocess.run([real_python, "-c", code, file], check=True, capture_output=True)
    astronaut = data.astronaut()
    with contextlib.closing(IqaJudge(real_python, "piqe", "musiq", "maniqa")) as judge:
        scores = judge.score(Face("a", astronaut))
        assert scores["piqe"].value == pytest.approx(33.7586, abs=0.01)
        assert scores["musiq"].status == "ok"
        assert list(judge.files) == [file.name]
        assert scores["maniqa"].status == "failed"
        assert scores["maniqa"].error.startswith("maniqa: LocalEntryNotFoundError")
        again = judge.score(Face("a", astronaut))
        assert [again[name] for name in ("piqe", "musiq")] == [scores["piqe"], scores["musiq"]]
