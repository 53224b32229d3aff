"""`vsp restore` with the real small model, in this process."""

import hashlib
import io
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.shards import read_shard
from pipeline.tar import TarWriter


def write_shard(path: Path, num_faces: int = 2, **others: bytes) -> None:
    file = io.BytesIO()
    writer = TarWriter(file)
    for n in range(num_faces):
        face = np.random.default_rng(n).integers(0, 256, (64, 64, 3), np.uint8)
        writer.add(f"{path.stem}-{n}.png", cv2.imencode(".png", face)[1].tobytes())
    for name, data in others.items():
        writer.add(f"{name}.png", data)
    writer.finish()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(file.getvalue())


SMALL = Path(__file__).resolve().parents[2] / "configs" / "models" / "vspbfr-64.yaml"


@pytest.fixture
def restore(vsp, tmp_path):
    def run(*options, source="in", out="out", model=SMALL):
        named = ["--model", model] if model and "--model" not in options else []
        return vsp("restore", tmp_path / source, tmp_path / out, "--pool", "local",
                   "--threads", 1, "--batch-size", 2, *named, *options)  # fmt: skip

    return run


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.*")}


def shown(table: str) -> dict[str, str]:
    """The closing table's rows by their first word."""
    words = (line.split(maxsplit=1) for line in table.splitlines())
    return {found[0]: found[1].strip() for found in words if len(found) == 2}


def test_shards_are_restored_and_run_again_to_resume(restore, tmp_path):
    write_shard(tmp_path / "in" / "000000.tar")
    write_shard(tmp_path / "in" / "000001.tar")
    code, out, err = restore()
    assert code == 0
    assert shown(out)["shards"] == "2 of 2"
    assert shown(out)["restored"] == "4"
    assert err.count("untrained") == 1
    whole = digests(tmp_path / "out")
    assert sorted(whole) == ["000000.parquet", "000000.tar", "000001.parquet", "000001.tar"]
    rows = pq.read_table(tmp_path / "out" / "000001.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["000001-0", "000001-1"]
    assert {row["model"] for row in rows} == {"untrained vspbfr-64"}
    samples = read_shard(str(tmp_path / "out" / "000001.tar"))
    assert [sample.key for sample in samples] == [row["key"] for row in rows]

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.*")}
    code, out, _ = restore()
    assert (code, shown(out)["shards"]) == (0, "2 of 2 (2 from before)")
    assert times == {path: path.stat().st_mtime_ns for path in times}

    code, _, err = restore("--seed", 1)
    assert code == 2
    assert "seed: 0, now 1" in err


def test_a_bad_image_costs_its_row_and_gives_exit_code_3(restore, tmp_path):
    write_shard(tmp_path / "in" / "000000.tar", 2, broken=b"no image")
    code, out, _ = restore()
    assert code == 3
    assert shown(out)["restored"] == "2"
    assert shown(out)["refused"].startswith("1")
    rows = pq.read_table(tmp_path / "out" / "000000.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["restored", "restored", "refused"]


def test_a_dry_run_prints_settings_and_plan_and_writes_nothing(restore, tmp_path):
    write_shard(tmp_path / "in" / "000000.tar", 1)
    code, out, _ = restore("-n", "--set", "noise=mean")
    assert code == 0
    assert '"noise":"mean"' in out
    assert "1 shards to do, 0 finished" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--set", "nose=mean"], "--set nose=mean: unknown key 'nose'; did you mean 'noise'?"),
        (["--device", "gpu"], "--device 'gpu': unknown; use cpu"),
        (["--model", "missing.safetensors"], "missing.safetensors: no such model"),
        (["--model", __file__], "neither .safetensors nor .yaml"),
    ],
)
def test_a_wrong_setting_is_one_line(restore, tmp_path, options, told):
    write_shard(tmp_path / "in" / "000000.tar", 1)
    code, _, err = restore(*options)
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
