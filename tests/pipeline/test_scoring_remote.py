"""Scoring from and to an object store: a real S3 server on loopback."""

import cv2
import pyarrow.parquet as pq
import pytest

from jobs.running import RunFlags
from jobs.scoring import ScoreRequest, run_score
from pipeline.storage import open_store


@pytest.fixture
def shards(object_store, make):
    """Truths and their blurred likes as shards of a bucket."""
    store = open_store(object_store.url)
    truths = {f"f{n}.png": make.png(n) for n in range(5)}
    blurred = {}
    for number in range(5):
        image = cv2.blur(make.picture(number), (3, 3))
        blurred[f"f{number}.png"] = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
    store.write("truth/a.tar", make.tar_bytes(truths))
    store.write("ours/a.tar", make.tar_bytes(blurred))
    return object_store.url


def test_shards_of_a_bucket_are_scored_into_a_bucket(shards):
    request = ScoreRequest(
        source=f"{shards}/ours", out=f"{shards}/out", method="ours", dataset="d",
        gt=f"{shards}/truth", metrics="psnr,ssim",
    )  # fmt: skip

    summary = run_score(request, RunFlags())

    assert summary.exit_code == 0
    store = open_store(f"{shards}/out")
    (name,) = store.list("scores")
    with store.open(name) as file:
        rows = pq.read_table(file).to_pylist()
    assert len(rows) == 10
    assert {row["status"] for row in rows} == {"ok"}
    assert run_score(request, RunFlags()) is None
