import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted((ROOT / "configs" / "benchmark").glob("*.yaml"))
SIZE, NUM = 64, 3
TINY = str(ROOT / "configs" / "models" / "vspbfr-64.yaml")


def face(seed: int) -> np.ndarray:
    """A smooth picture with a few edges."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with clean faces, and somebody's restored ones under names with an ending."""
    for name in ("clean", "theirs"):
        (tmp_path / name).mkdir()
    for n in range(NUM):
        cv2.imwrite(str(tmp_path / "clean" / f"face-{n}.png"), face(n))
        blurred = cv2.GaussianBlur(face(n), (0, 0), 1.5)
        cv2.imwrite(str(tmp_path / "theirs" / f"face-{n}_out.png"), blurred)
    monkeypatch.setenv("VSP_WEIGHTS", str(tmp_path / "no-weights"))
    return tmp_path


DATA = {"faces": {"hq": "clean", "size": SIZE}}
THEIRS = {"kind": "folder", "path": "theirs", "key_regex": "(.*)_out"}
METHODS = {"input": {"kind": "classic"}, "theirs": THEIRS, "ours": {"path": TINY, "kind": "model"}}


def bench(folder: Path, **more) -> Path:
    values = {"title": "t", "metrics": ["psnr"], "datasets": DATA, "methods": METHODS} | more
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def without_provenance(out: Path) -> dict:
    return {name: value for name, value in results(out).items() if name != "provenance"}


def values(out: Path, metric: str = "psnr") -> dict[str, float]:
    return {
        cell["method"]: cell["value"] for cell in results(out)["cells"] if cell["metric"] == metric
    }


def test_every_method_is_scored_and_a_second_run_changes_nothing(vsp, world):
    out = world / "out"
    code, told, err = vsp("evaluate", bench(world), out, "--threads", 1, "--no-report")
    assert code == 0, err
    assert "restored faces by ours: 3 restored" in err
    assert "input" in told
    assert values(out).keys() == {"input", "theirs", "ours"}
    assert values(out)["theirs"] > values(out)["input"] > values(out)["ours"]
    assert [info["name"] for info in results(out)["methods"]][:3] == ["input", "theirs", "ours"]
    (info,) = results(out)["datasets"]
    assert info["num_images"] == NUM
    assert info["note"] == "degraded here by stage-2 at 64 px"
    assert any("untrained" in each["notice"] for each in results(out)["methods"])

    before, files = without_provenance(out), sorted(out.rglob("*.tar"))
    times = [path.stat().st_mtime_ns for path in files]
    code, _, err = vsp("evaluate", bench(world), out, "--no-report")
    assert (code, "restored faces" in err) == (0, False)
    assert without_provenance(out) == before
    assert times == [path.stat().st_mtime_ns for path in files]

    code, told, _ = vsp("evaluate", bench(world), out, "--status")
    assert (code, told.count("done")) == (0, 3)


@pytest.mark.slow
def test_a_stopped_evaluation_goes_on_to_the_same_results(vsp, world, monkeypatch):
    from jobs import evaluation_steps
    from jobs.steps import Stopped

    assert vsp("evaluate", bench(world), world / "whole", "--threads", 1, "--no-report")[0] == 0
    restore = evaluation_steps.restore

    def stop(run, dataset, method):
        if method == "ours":
            raise Stopped
        return restore(run, dataset, method)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation_steps, "restore", stop)
        code, _, err = vsp("evaluate", bench(world), world / "out", "--threads", 1, "--no-report")
    assert code == 75
    lines = err.splitlines()
    assert "to go on: vsp " in lines[-1]
    (ours,) = [line.split() for line in lines if line.startswith("faces") and "ours" in line]
    assert ours == ["faces", "ours", "3", "0", "0", "to", "be", "restored"]
    assert sum("3 of 3" in line for line in lines) == 2
    assert not (world / "out" / "results.json").exists()

    assert vsp("evaluate", bench(world), world / "out", "--threads", 1, "--no-report")[0] == 0
    assert without_provenance(world / "out") == without_provenance(world / "whole")


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_results(vsp, world):
    """The signal comes at whatever moment it comes; the command is run until it ends."""
    methods = METHODS | {"again": METHODS["ours"], "mean": METHODS["ours"] | {"noise": "mean"}}
    path, out = bench(world, methods=methods), world / "out"
    code, _, err = vsp("evaluate", path, world / "whole", "--threads", 1, "--no-report")
    assert code == 0, err
    command = [sys.executable, "-m", "jobs.cli", "evaluate", path, out, "--threads", "1"]
    codes = []
    for signal_number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, None):
        run = subprocess.Popen([*command, "--no-report"], cwd=ROOT, stderr=subprocess.PIPE)
        if signal_number is not None:
            for line in run.stderr:
                if line.startswith((b"restored", b"scored")):
                    break
            run.send_signal(signal_number)
        run.communicate(timeout=120)
        codes.append(run.returncode)
    assert codes == [75, -signal.SIGKILL, 75, 0]
    assert without_provenance(out) == without_provenance(world / "whole")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "face-1_out.png").unlink(), "1 missing: face-1"),
        (lambda folder: cv2.imwrite(str(folder / "new_out.png"), face(9)), "1 not in"),
        (
            lambda folder: (folder / "face-1_out.png").rename(folder / "face-9_out.png"),
            "1 missing: face-1; 1 not in",
        ),
        (
            lambda folder: (folder / "face-1_out.png").rename(folder / "face-1.png"),
            "does not match the whole of 'face-1'",
        ),
    ],
)
def test_other_names_are_refused_before_any_work(vsp, world, change, told):
    change(world / "theirs")
    code, out, err = vsp("evaluate", bench(world), world / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not (world / "out").exists()


def test_a_folder_that_changes_later_loses_its_cells_alone(vsp, world):
    methods = {name: METHODS[name] for name in ("input", "theirs")}
    path, out = bench(world, methods=methods), world / "out"
    assert vsp("evaluate", path, out, "--no-report")[0] == 0
    (world / "theirs" / "face-1_out.png").unlink()
    code, _, err = vsp("evaluate", path, out, "--no-report")
    assert code == 1
    assert "theirs on faces: " in err
    assert "1 missing: face-1" in err
    assert values(out).keys() == {"input"}
    assert "not evaluated: theirs on faces" in results(out)["warnings"][0]


def test_code_runs_only_if_it_is_allowed(vsp, world):
    trace = world / "trace"
    (world / "mine.py").write_text(
        f"open({str(trace)!r}, 'w').close()\ndef same(face):\n    return face.copy()\n"
    )
    methods = {"input": METHODS["input"],
               "mine": {"kind": "callable", "function": "mine:same", "size": SIZE}}  # fmt: skip
    path, out = bench(world, methods=methods), world / "out"
    for more in ([], ["-n"], ["--status"]):
        code, _, err = vsp("evaluate", path, out, *more)
        assert code == 2
        assert "methods.mine runs the code of mine:same; read it, then allow it" in err
    assert not trace.exists()
    assert not out.exists()
    assert vsp("evaluate", path, out, "--allow-code", "-n")[0] == 0
    assert not trace.exists()
    code, _, err = vsp("evaluate", path, out, "--allow-code", "--no-report")
    assert code == 0, err
    assert trace.exists()
    assert values(out)["mine"] == values(out)["input"]


def test_a_method_that_fails_does_not_stop_the_others(vsp, world):
    (world / "broken.py").write_text("import nothing_of_that_name\n")
    broken = {"kind": "callable", "function": "broken:f", "size": SIZE, "notice": "mine alone"}
    methods = {"broken": broken, "input": METHODS["input"]}
    path = bench(world, methods=methods)
    code, _, err = vsp("evaluate", path, world / "out", "--no-report", "--allow-code")
    assert code == 1
    assert "vsp: broken on faces: " in err
    assert "No module named 'nothing_of_that_name'" in err
    assert "broken: mine alone" in err
    assert "run the same command again once that is mended" in err.splitlines()[-1]
    assert values(world / "out").keys() == {"input"}
    assert "broken on faces" in results(world / "out")["warnings"][0]


def test_given_faces_with_a_limit_are_paired_by_name(vsp, world):
    data = {"faces": {"lq": "lq", "gt": "clean", "limit": 2}}
    (world / "lq").mkdir()
    for n in range(NUM):
        cv2.imwrite(str(world / "lq" / f"face-{n}.jpg"), cv2.GaussianBlur(face(n), (0, 0), 3))
    path = bench(world, datasets=data)
    code, _, err = vsp("evaluate", path, world / "out", "--threads", 1, "--no-report")
    assert code == 0, err
    (info,) = results(world / "out")["datasets"]
    assert info["num_images"] == 2
    assert "JPEGs of quality 95" in info["note"]
    assert "the first 2 faces alone" in info["note"]
    assert values(world / "out").keys() == {"input", "theirs", "ours"}


def test_a_face_that_cannot_be_restored_is_a_row_and_exit_code_3(vsp, world):
    (world / "lq").mkdir()
    for n in range(NUM):
        cv2.imwrite(str(world / "lq" / f"face-{n}.png"), face(n))
    whole = (world / "lq" / "face-1.png").read_bytes()
    (world / "lq" / "face-1.png").write_bytes(whole[: len(whole) // 2])
    data = {"faces": {"lq": "lq", "gt": "clean"}}
    path = bench(world, datasets=data, methods={"ours": METHODS["ours"]})
    code, _, err = vsp("evaluate", path, world / "out", "--threads", 1, "--no-report")
    assert code == 3, err
    assert "restored faces by ours: 1 refused, 2 restored" in err
    (cell,) = [c for c in results(world / "out")["cells"] if c["method"] == "ours"]
    assert (cell["num_ok"], cell["num_total"]) == (2, 3)


def test_a_face_that_failed_is_not_scored_as_its_truth(vsp, world):
    """Its record still holds the clean face of `vsp degrade --keep-hq`."""
    (world / "picky.py").write_text(
        "def f(face):\n    if face[0, 0, 0] > 150: raise ValueError('no')\n    return face\n"
    )
    methods = {"picky": {"kind": "callable", "function": "picky:f", "size": SIZE},
               "input": METHODS["input"]}  # fmt: skip
    path, out = bench(world, methods=methods), world / "out"
    arguments = ["evaluate", path, out, "--allow-code", "--batch-size", 1, "--no-report"]
    code, _, err = vsp(*arguments)
    assert (code, err.splitlines()[-1].count("--intersection")) == (2, 1)
    code, _, err = vsp(*arguments, "--intersection")
    assert code == 3, err
    cells = {cell["method"]: cell for cell in results(out)["cells"]}
    assert (cells["picky"]["num_ok"], cells["input"]["num_ok"]) == (NUM - 1, NUM - 1)
    assert "1 of 3 images are left out" in results(out)["warnings"][0]


def test_names_are_safe_whatever_they_are(vsp, world):
    data = {"../../x <b>": DATA["faces"]}
    methods = {"<script>": METHODS["input"], "a/b": METHODS["ours"]}
    path = bench(world, datasets=data, methods=methods)
    code, _, err = vsp("evaluate", path, world / "deep" / "out", "--threads", 1, "--no-report")
    assert code == 0, err
    assert values(world / "deep" / "out").keys() == {"<script>", "a/b"}
    assert {path.name for path in world.iterdir()} == {
        "bench.yaml", "clean", "theirs", "deep"
    }  # fmt: skip
    assert {path.name for path in (world / "deep").iterdir()} == {"out"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n", "bench.yaml:1: expected keys and values"),
        ("methods: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("methods: {a: {kind: classic}, a: {kind: classic}}\n", "methods.a: given twice"),
        ("datasets: &a\n  x: *a\n", "bench.yaml:2: an alias (*name) within"),
        ("methods: " + "[" * 5000, "bench.yaml:1: nested more than 16 deep"),
        ("titel: x\nmethods: {a: {kind: classic}}\n", "bench.yaml:1: unknown key 'titel'; did"),
        (
            "datasets:\n  faces:\n    hq: clean\n    sise: 3\nmethods: {a: {kind: classic}}\n",
            "bench.yaml:4: datasets: unknown key 'sise'; did you mean 'size'?",
        ),
        (
            "datasets: {a: {hq: x}}\nmethods:\n  a:\n    kind: folder\n    path: x\n    regex: x\n",
            "bench.yaml:6: methods: unknown key 'regex'; did you mean 'key_regex'?",
        ),
        (
            "datasets:\n  faces: {hq: x}\nmethods:\n  a:\n    kind: folda\n",
            "bench.yaml:4: methods: Input tag 'folda'",
        ),
        ("datasets: {faces: 3}\nmethods: {a: {kind: classic}}\n", "datasets"),
        ("datasets: {512: {hq: x}}\nmethods: {a: {kind: classic}}\n", "valid string"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_place(vsp, world, text, told):
    (world / "bench.yaml").write_text(text)
    code, out, err = vsp("evaluate", world / "bench.yaml", world / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "datasets.faces.sise=3"], "unknown key 'sise'; did you mean 'size'?"),
        (["--only", "our"], "--only: no method our; did you mean ours?"),
        (["--set", "datasets.faces.hq=nowhere"], "nowhere (datasets.faces.hq); put the data there"),
        (["--set", "published=[table-9]"], "no such published table"),
        (["--set", "methods.theirs.path=nowhere"], "nowhere (methods.theirs.path)"),
        (["--set", "methods.ours.path=nowhere"], "methods.ours: "),
        (["--set", "metrics=[psnr, fid]"], "datasets.faces: --metrics fid: needs "),
        (["--set", "metrics=[psnrr]"], "datasets.faces: "),
    ],
)
def test_a_wrong_option_is_one_line_before_any_work(vsp, world, arguments, told):
    code, out, err = vsp("evaluate", bench(world), world / "out", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not (world / "out").exists()


@pytest.mark.parametrize(
    ("out", "told"),
    [("s3://bucket/out", "keeps its folder on a disk"), ("bench.yaml", "is a file")],
)
def test_out_is_a_folder_on_a_disk(vsp, world, monkeypatch, out, told):
    monkeypatch.chdir(world)
    code, _, err = vsp("evaluate", bench(world), out)
    assert (code, err.count("\n")) == (2, 1)
    assert told in err


def test_two_evaluations_of_a_folder_do_not_meet(vsp, world):
    from pipeline.locks import run_lock
    from pipeline.storage import LocalStore

    out = world / "out"
    (out / "_data").mkdir(parents=True)
    with run_lock(LocalStore(out / "_data")):
        code, _, err = vsp("evaluate", bench(world), out)
    assert (code, [path.name for path in out.iterdir()]) == (1, ["_data"])
    assert "another run is at work here" in err


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_shipped_benchmarks_are_read_and_say_what_they_lack(vsp, path, tmp_path, monkeypatch):
    monkeypatch.setenv("VSP_WEIGHTS", str(tmp_path))
    code, out, err = vsp("evaluate", path, tmp_path / "out", "-n", "--set", f"root={tmp_path}")
    header = path.read_text()
    assert f"vsp evaluate configs/benchmark/{path.name}" in header
    assert '"methods"' in out
    if path.stem == "smoke":
        assert (code, err) == (0, "")
        return
    assert code == 2
    assert err.count("\n") == 1
    lacks = "methods.GFP-GAN: GFPGANv1.4.pth: not in" if path.stem == "complexity" else "missing: "
    assert lacks in err
    assert not (tmp_path / "out").exists()
