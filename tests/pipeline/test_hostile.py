"""The corpus of `tests/hostile.py` through the whole engine: every bad record is one row."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from pipeline.storage import open_input

SCRIPT = Path(__file__).parents[1] / "hostile.py"
BAD = ("refused", "failed", "truncated")
ACCEPTED = {"any": ("restored", "refused", "copied")}
# 256 MiB may be in flight; beside it two threads decode, each up to 64 megapixels.
MAX_GROWTH_BYTES = 640 * 2**20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The corpus restored in a process of its own: expected statuses, rows, what the run said."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "here").mkdir()
    root, report = folder / "corpus", folder.parent / f"{folder.name}.json"
    subprocess.run(
        [sys.executable, SCRIPT, "run", root, report], cwd=folder / "here", check=True,
        timeout=120, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    facts = json.loads(report.read_text())
    shards = {
        name: pq.read_table(root / "out-shards" / f"{name}.parquet").to_pylist()
        for name in facts["expected"]["shards"]
    }
    records = sorted((root / "out-photos" / "_vsp" / "records").iterdir())
    photos = [row for path in records for row in pq.read_table(path).to_pylist()]
    return SimpleNamespace(root=root, shards=shards, photos=photos, **facts)


def test_the_corpus_is_large(corpus):
    pictures = sum(name.startswith("pictures-") for name in corpus.shards)
    assert len(corpus.shards) - pictures + len(corpus.photos) >= 300


def test_every_record_of_a_shard_ends_as_it_must(corpus):
    wrong = []
    for name, wanted in corpus.expected["shards"].items():
        rows = corpus.shards[name]
        if len(rows) != len(wanted):
            wrong.append((name, wanted, [row["status"] for row in rows]))
        wrong += [
            (name, row["key"], status, row["status"], row["reason"])
            for status, row in zip(wanted, rows, strict=False)
            if row["status"] not in ACCEPTED.get(status, (status,))
        ]
    assert not wrong


def test_every_photo_ends_as_it_must(corpus):
    found = {row["key"]: row for row in corpus.photos}
    assert len(found) == len(corpus.photos)
    assert set(found) == set(corpus.expected["photos"])
    wrong = [
        (key, status, found[key]["status"], found[key]["reason"])
        for key, status in corpus.expected["photos"].items()
        if found[key]["status"] not in ACCEPTED.get(status, (status,))
    ]
    assert not wrong


def test_every_bad_record_has_a_reason_of_one_line(corpus):
    rows = [row for rows in (*corpus.shards.values(), corpus.photos) for row in rows]
    reasons = [row["reason"] for row in rows if row["status"] in BAD]
    assert len(reasons) > 300
    assert all(reason and reason.strip() == reason for reason in reasons)


@pytest.mark.parametrize("kind", ["shards", "photos"])
def test_the_run_ends_in_order_and_verifies(corpus, kind):
    run = corpus.runs[kind]
    assert (run["exit_code"], run["errors"], run["problems"], run["notes"]) == (3, [], [], [])


def test_bad_records_of_shards_are_in_the_quarantine_byte_for_byte(corpus):
    wanted = {
        (name, row["index"], row["sha256_in"])
        for name, rows in corpus.shards.items()
        for row in rows
        if row["status"] in ("refused", "failed") and row["sha256_in"]
    }
    found = set()
    for path in (corpus.root / "out-shards" / "_vsp" / "quarantine").iterdir():
        with tarfile.open(path) as tar:
            for member in tar:
                digest = hashlib.sha256(tar.extractfile(member).read()).hexdigest()
                found.add((path.stem, int(member.name.partition(".")[0]), digest))
    assert len(wanted) > 80
    assert wanted <= found


def test_bad_photos_are_in_the_quarantine_byte_for_byte(corpus):
    folder = corpus.root / "out-photos" / "_vsp" / "quarantine"
    bad = [row for row in corpus.photos if row["status"] in BAD and row["sha256_in"]]
    assert len(bad) > 80
    for row in bad:
        kept = (folder / row["key"]).read_bytes()
        assert hashlib.sha256(kept).hexdigest() == row["sha256_in"], row["key"]


def test_nothing_outside_the_output_is_written(corpus):
    assert corpus.touched == []
    assert not Path("/opt/vsp-hostile.png").exists()


def test_the_output_holds_plain_files_only(corpus):
    for out in ("out-shards", "out-photos"):
        odd = [p for p in (corpus.root / out).rglob("*") if p.is_symlink() or not
               (p.is_file() or p.is_dir())]  # fmt: skip
        assert not odd


def test_memory_stays_bounded(corpus):
    assert corpus.grown_bytes < MAX_GROWTH_BYTES


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(OSError, match="not a plain file"):
        open_input(str(tmp_path / "x.tar"))
