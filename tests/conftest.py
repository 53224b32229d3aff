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
    """For `--dist loadgroup`: a file stays on one worker, and so do all that start a Ray."""
    for item in items:
        with_ray = item.get_closest_marker("ray")
        item.add_marker(pytest.mark.xdist_group("ray" if with_ray else item.path.name))


@pytest.fixture(autouse=True)
def _seeded_torch() -> None:
    """Start every test from the same global generator, so that order does not matter."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


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
