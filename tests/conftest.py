"""What every test shares: fixed thread counts, a seeded torch, shared data, one Ray."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What tests share, and what workers in other processes import by name.
DOUBLES = str(ROOT / "tests" / "doubles")
sys.path.insert(0, DOUBLES)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [DOUBLES, os.environ.get("PYTHONPATH")]))

# Read once, when torch starts: another thread count sums in another order and gives other bits.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MKL_NUM_THREADS", "2")


def pytest_collection_modifyitems(items):
    """Those that start a Ray come first: they stay in one process, which would be the last."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n`: a file stays in one process, and so do all files that start a Ray."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if "mark.ray" in (ROOT / file).read_text() else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _seeded_torch() -> None:
    """Start every test from the same global generator, so that order does not matter."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def one_thread():
    """What tiny networks want: their threads would mostly wait for each other.

    Their bits are the same each time then, too.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of shared data beside the checkout; its users skip where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder of shared data beside the checkout")
    return path


@pytest.fixture(scope="session")
def ray_started():
    """One embedded Ray for the whole session; whichever test needs it first starts it."""
    from pipeline.pools import ray as pools

    ours = pools.start_embedded(num_workers=2)
    import ray  # not before the pool has set its environment

    yield ray
    if ours:
        ray.shutdown()
