"""What `verify` finds, and that it finds nothing else."""

import json

import pyarrow.parquet as pq
import pytest

from pipeline.sidecar import read_rows, write_sidecar
from pipeline.verify import verify
from vsp_model.files import sha256_of


@pytest.fixture
def done(engine, make):
    """Two finished shards, with a bad record and a kept note."""
    engine.shard("a", {"a.png": make.png(1), "b.jpg": b"text", "c.json": b"{}"})
    engine.shard("b", {"d.png": make.png(2), "e.png": make.png(3)})
    assert engine.run().exit_code == 3
    return engine


def problems(engine):
    return verify(engine.ledger(), engine.plan()).problems


def test_a_whole_run_has_no_problems_and_every_record_is_counted(done):
    verdict = verify(done.ledger(), done.plan())
    assert (verdict.problems, verdict.notes, verdict.num_pending) == ([], [], 0)
    assert verdict.counts == {"restored": 3, "refused": 1, "copied": 1}


def test_a_flipped_byte_is_found_in_either_file(done):
    for name in ("a.tar", "b.parquet"):
        path = done.folder / "out" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert problems(done) == [
        "a.tar: changed since it was committed", "b.parquet: changed since it was committed"
    ]  # fmt: skip


def test_a_removed_and_a_cut_file_are_found(done):
    (done.folder / "out" / "a.tar").unlink()
    with (done.folder / "out" / "b.tar").open("r+b") as file:
        file.truncate(512)
    missing, cut = problems(done)
    assert missing == "a.tar: missing"
    assert cut.startswith("b.tar: 512 bytes, committed were ")


def test_foreign_files_and_outputs_without_a_decision_are_told_apart(done):
    (done.folder / "out" / "mine.txt").touch()
    done.ledger().store.remove(f"_vsp/commits/{done.plan().id}/b.json")
    assert problems(done) == [
        "b.parquet: has no commit", "b.tar: has no commit", "mine.txt: foreign file"
    ]  # fmt: skip
    assert verify(done.ledger(), done.plan()).num_pending == 1


def forge(engine, shard, change):
    """Rewrite a sidecar and the decision about it, so that no checksum gives it away."""
    path = engine.folder / "out" / f"{shard}.parquet"
    with path.open("rb") as file:
        rows = change(read_rows(file))
    with path.open("wb") as file:
        write_sidecar(file, shard, rows, engine.config.provenance)
    decision = engine.folder / "out" / "_vsp/commits" / engine.plan().id / f"{shard}.json"
    record = json.loads(decision.read_bytes())
    record["counts"] = {}
    for row in rows:
        record["counts"][row.status] = record["counts"].get(row.status, 0) + 1
    for file in record["files"]:
        if file["name"] == path.name:
            file |= {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}
    decision.write_text(json.dumps(record))
    assert pq.read_table(path).num_rows == len(rows)


def test_a_missing_row_is_found(done):
    forge(done, "b", lambda rows: rows[:1])
    found = problems(done)
    assert "b: 1 rows for 2 input records" in found
    assert "b.tar: e: no row" in found


def test_a_doubled_row_is_found(done):
    forge(done, "b", lambda rows: [*rows, rows[0]])
    found = problems(done)
    assert "b.parquet: its rows are not numbered from 0" in found
    assert "b: 3 rows for 2 input records" in found


def test_an_image_that_is_not_in_the_tar_is_found(done):
    from dataclasses import replace

    forge(done, "a", lambda rows: [
        row if row.index != 1 else replace(row, status="restored", sha256_out="0" * 64)
        for row in rows
    ])  # fmt: skip
    assert problems(done) == ["a.tar: b.jpg: missing"]


def test_an_input_that_is_gone_cannot_be_compared(done):
    (done.folder / "in" / "a.tar").unlink()
    (problem,) = problems(done)
    assert problem.endswith("in/a.tar: the input is gone, so it was not compared")
