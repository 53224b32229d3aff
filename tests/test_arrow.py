"""The arrow vsp_model <- pipeline <- jobs, as docs/architecture.md draws it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODEL = {"torch", "torchvision", "numpy", "safetensors", "pydantic", "lpips"}
DATA = {"pyarrow", "webdataset", "cv2", "PIL", "simplejpeg", "fsspec", "yaml"}
METRICS = {
    "facexlib", "skimage", "scipy", "torch_fidelity", "sklearn", "face_alignment", "onnxruntime",
    "spandrel", "spandrel_extra_arches", "duckdb",
}  # fmt: skip
MAY_IMPORT = {
    "vsp_model": MODEL | {"vsp_model"},
    "pipeline": MODEL | DATA | METRICS | {"vsp_model", "pipeline"},
    "jobs": MODEL | DATA | METRICS | {"vsp_model", "pipeline", "jobs", "typer", "rich"},
}
RAY_ROOMS = {"pipeline/pools/ray.py", "jobs/launch.py"}
# Runs in an environment of its own, and imports nothing of ours.
IQA_ROOMS = {"pipeline/metrics/iqa_program.py"}
LAZY = {"vsp_model": {"lpips"}}  # only inside the function that needs it


def imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every import as (statement, dotted name, imported names included)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """Every import of the file at `path` (relative to the root) that its room forbids."""
    room, tree = path.split("/")[0], ast.parse(source)
    allowed = MAY_IMPORT[room] | sys.stdlib_module_names | ({"ray"} if path in RAY_ROOMS else set())
    allowed |= {"pyiqa"} if path in IQA_ROOMS else set()
    found = []
    for node, name in imports(tree):
        head, *rest = name.split(".")
        late = head in LAZY.get(room, ()) and node in tree.body
        private = head in MAY_IMPORT and head != room and any(part[0] == "_" for part in rest)
        if getattr(node, "level", 0):
            found.append(f"{path}:{node.lineno}: relative import of {name}")
        elif head not in allowed or late or private:
            found.append(f"{path}:{node.lineno}: {room} imports {name}{' at start-up' * late}")
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_every_import_follows_the_arrow(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room} holds no code"
    found = [v for f in files for v in violations(f.relative_to(ROOT).as_posix(), f.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vsp_model/smart.py", "import ray"),
        ("vsp_model/smart.py", "def f():\n    from pipeline import images"),
        ("vsp_model/losses.py", "import lpips"),
        ("pipeline/runner.py", "from ray import get"),
        ("pipeline/runner.py", "import jobs.cli"),
        ("pipeline/runner.py", "from vsp_model.ops import _taps"),
        ("jobs/restore.py", "import webbrowser, requests"),
        ("jobs/train.py", "def f():\n    import ray"),
    ],
)
def test_a_wrong_import_is_named(path, source):
    assert len(violations(path, source)) == 1


def test_the_right_imports_pass():
    assert not violations("vsp_model/losses.py", "def f():\n    import lpips")
    assert not any(violations(room, "import ray") for room in RAY_ROOMS)
    assert not violations("jobs/restore.py", "import typer\nfrom pipeline import shards")
