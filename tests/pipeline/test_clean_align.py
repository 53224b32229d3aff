"""Faces cut out of photos before a set is cleaned."""

import hashlib
import json
from functools import partial

import pyarrow.parquet as pq
import pytest
from skimage.data import astronaut, coffee

from pipeline import images
from pipeline.cleaning.removal.tombstones import Tombstones
from pipeline.cleaning.settings import AlignConfig
from pipeline.faces.align import TEMPLATE
from pipeline.faces.detect import DetectConfig, FaceDetector
from pipeline.flow import FlowConfig
from pipeline.ledger import Ledger
from pipeline.plan import find_shards, new_plan, shard_units
from pipeline.pools.base import PoolConfig
from pipeline.pools.local import LocalPool
from pipeline.runner import RunnerConfig, run
from pipeline.shards import read_shard
from pipeline.stages.align import AlignStage
from pipeline.storage import LocalStore
from pipeline.tar import TarWriter

SIZE = 128


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "000000.tar").open("wb") as file:
        writer = TarWriter(file)
        writer.add("a/one.jpg", images.encode(astronaut(), "jpeg"))
        writer.add("a/one.json", b'{"licence": "public domain"}')
        writer.add("b.png", images.encode(coffee(), "png"))
        writer.add("c.jpg", b"\xff\xd8 no picture")
        writer.finish()
    return tmp_path


def cut(photos) -> list[dict]:
    out = LocalStore(photos / "out" / "aligned")
    config = AlignConfig(size_px=SIZE)
    ledger = Ledger(out)
    factory = partial(AlignStage, config, str(photos / "out"))
    units = shard_units(find_shards(str(photos / "in")))
    plan = new_plan("align", AlignStage(config, "").provenance, units, {})
    ledger.save(plan)
    pool = LocalPool(PoolConfig(ledger.folder, FlowConfig()), photos)
    summary = run(factory, ledger, plan, plan.units, pool, RunnerConfig(poll_s=0.05))
    assert not summary.errors
    return pq.read_table(photos / "out" / "aligned" / "000000.parquet").to_pylist()


def crops(photos):
    return list(read_shard(str(photos / "out" / "aligned" / "000000.tar")))


def test_a_face_becomes_a_record_with_the_photos_metadata(photos):
    rows = cut(photos)
    assert [row["status"] for row in rows] == ["copied", "copied", "refused"]
    assert rows[1]["reason"] == "no face found"
    (crop,) = crops(photos)
    assert crop.key == "a/one_0"
    facts = json.loads(crop.members[1].data)
    assert facts == {"licence": "public domain", "photo": "a/one", "face": 0}
    _, pixels = images.decode(crop.image.data)
    assert pixels.shape == (SIZE, SIZE, 3)
    (face,) = FaceDetector(DetectConfig()).find(pixels)
    assert abs(face.points - TEMPLATE * SIZE / 512).max() < 0.04 * SIZE


def test_a_forgotten_photo_is_not_cut_again(photos):
    data = images.encode(astronaut(), "jpeg")
    store = LocalStore(photos / "out")
    stones = Tombstones.load(store)
    digest = hashlib.sha256(data).hexdigest()
    stones.with_images([stones.keyed(digest)]).save(store)
    row = cut(photos)[0]
    assert (row["status"], row["key"], row["sha256_in"]) == ("forgotten", "", None)
    assert crops(photos) == []
