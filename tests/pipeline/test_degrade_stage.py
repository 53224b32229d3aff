import io
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline import images
from pipeline.degradation import FREE_FORM, STAGE_2, degrade, draw_params, reduction_at
from pipeline.flow import FlowConfig
from pipeline.presets import PRESETS
from pipeline.shards import read_shard
from pipeline.sidecar import read_rows
from pipeline.stage import Task
from pipeline.stages.degrade import DegradeConfig, DegradeStage
from pipeline.tar import TarWriter
from pipeline.worker import Worker, WorkerConfig

SIZE = 32


def face(seed: int, size: int = SIZE) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def png(seed: int, size: int = SIZE) -> bytes:
    return cv2.imencode(".png", face(seed, size)[:, :, ::-1])[1].tobytes()


MEMBERS = [
    ("a/0.jpg", b"not an image"), ("a/0.json", b"{}"),
    ("a/1.png", png(1)), ("a/1.json", b'{"age": 3}'), ("a/1.png.txt", b"kept"),
    ("b.PNG", png(2)), ("b.jpg", b"a second image is copied"),
    ("alone.txt", b"no image"),
    ("small.png", png(3, SIZE - 1)),
    ("a/1.cls", b"the key appears again"),
    ("large.png", png(4, 3 * SIZE)),
]  # fmt: skip


def write_tar(path: Path, members=MEMBERS) -> Path:
    with path.open("wb") as file:
        writer = TarWriter(file)
        for name, data in members:
            writer.add(name, data)
        writer.finish()
    return path


@pytest.fixture
def run(tmp_path) -> Callable:
    """Degrade a tar through a real worker; returns (rows by key, members by name, OUT)."""
    reports = []
    counter = iter(range(100))

    def run(config, codec_threads=2, members=MEMBERS):
        out = tmp_path / f"out{next(counter)}"
        flow = FlowConfig(codec_threads=codec_threads, block_records=2)
        worker = Worker(WorkerConfig(tmp_path / "tracker", flow=flow), reports.append)
        worker.setup(lambda: DegradeStage(config))
        try:
            worker.feed(Task("s", str(write_tar(tmp_path / "s.tar", members)), str(out), plan="p"))
        finally:
            worker.close()
        assert not reports[-1].error
        rows = read_rows(io.BytesIO((out / "s.parquet").read_bytes()))
        found = [m for sample in read_shard(str(out / "s.tar")) for m in sample.members]
        return {row.key: row for row in rows}, {m.name: m.data for m in found}, out

    return run


def test_every_record_has_its_row_and_the_pixels_are_those_of_degrade(run):
    config = DegradeConfig(size=SIZE, seed=7)
    rows, members, _ = run(config)
    assert [(row.index, row.key, row.status) for row in rows.values()] == [
        (0, "a/0", "refused"),
        (5, "a/1", "refused"),  # the key appears again; the first one's pixels are looked at below
        (2, "b", "degraded"),
        (3, "alone", "copied"),
        (4, "small", "refused"),
        (6, "large", "degraded"),
    ]
    kept = ["a/0.json", "a/1.png", "a/1.json", "a/1.png.txt", "b.png", "b.jpg", "alone.txt"]
    assert list(members) == [*kept, "large.png"]
    for key, seed, size in [("a/1", 1, SIZE), ("b", 2, SIZE), ("large", 4, 3 * SIZE)]:
        _, lq = images.decode(members[f"{key}.png"])
        assert np.array_equal(lq, degrade(face(seed, size), key, seed=7, size=SIZE))
        assert not np.array_equal(lq, degrade(face(seed, size), key, seed=8, size=SIZE))
    row = rows["b"]
    assert (row.member, row.width_in, row.width_out) == ("b.png", SIZE, SIZE)
    assert row.sha256_out != row.sha256_in
    assert rows["small"].reason == ("small.png: 31 x 31 is no truth at 32 pixels; give --size 31")


def test_kept_pairs_hold_the_truth_and_the_draw(run):
    config = DegradeConfig(size=SIZE, seed=1, ranges=FREE_FORM, keep_hq=True)
    members = [(f"{n}.png", png(n)) for n in range(12)]
    _, found, _ = run(config, members=members)
    flipped = set()
    for n in range(12):
        truth = images.decode(found[f"{n}.hq.png"])[1]
        told = json.loads(found[f"{n}.degradation.json"])
        params = draw_params(FREE_FORM, SIZE, seed=1, key=str(n))
        assert told == {"seed": 1, **params.record()}
        assert not params.gray, "pick another seed: gray is tested elsewhere"
        assert np.array_equal(truth, face(n)[:, ::-1] if params.flip else face(n))
        flipped.add(params.flip)
    assert flipped == {True, False}
    assert next(iter(found)) == "0.png"  # what is restored comes before what it is compared with


def test_the_bytes_do_not_depend_on_threads(run):
    outs = [run(DegradeConfig(size=SIZE), codec_threads)[2] for codec_threads in (1, 4)]
    for name in ("s.tar", "s.parquet"):
        assert len({(out / name).read_bytes() for out in outs}) == 1


def test_a_name_that_is_taken_is_refused(run):
    members = [("a.jpg", png(1)), ("a.png", png(2)), ("b.png", png(3)), ("b.hq.png", b"mine")]
    rows, found, _ = run(DegradeConfig(size=SIZE), members=members)
    assert rows["a"].reason == "a.png: another member has that name"
    assert "a.jpg" not in found
    assert rows["b"].status == "degraded"
    rows, _, _ = run(DegradeConfig(size=SIZE, keep_hq=True), members=members)
    assert rows["b"].reason == "b.hq.png: another member has that name"


def test_refused_records_go_to_the_quarantine_if_asked(run):
    config = DegradeConfig(size=SIZE, quarantine=True)
    _, _, out = run(config)
    kept = [m.data for s in read_shard(str(out / "_vsp/quarantine/s.tar")) for m in s.members]
    assert b"not an image" in kept
    assert b"the key appears again" in kept


def test_the_codecs_get_one_thread_and_give_it_back():
    before = cv2.getNumThreads()
    stage = DegradeStage(DegradeConfig())
    assert stage.setup() is None
    assert cv2.getNumThreads() == 1
    stage.close()
    assert cv2.getNumThreads() == before


def test_ranges_that_change_the_truth_need_it_kept():
    with pytest.raises(ValidationError, match="add --keep-hq"):
        DegradeConfig(ranges=FREE_FORM)
    with pytest.raises(ValidationError):
        DegradeConfig(size=4)


def test_what_decides_the_bytes_is_in_the_provenance():
    base = DegradeConfig()
    assert base.provenance.config_hash == DegradeConfig().provenance.config_hash
    for other in ({"size": 64}, {"seed": 1}, {"keep_hq": True},
                  {"ranges": PRESETS["codeformer"].config}):  # fmt: skip
        assert DegradeConfig(**other).provenance.config_hash != base.provenance.config_hash


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [64, 128, 512])
def test_every_preset_draws_within_its_ranges_and_keeps_a_face(name, size):
    config = PRESETS[name].config
    low, high = reduction_at(config, size)
    assert low <= high
    for n in range(50):
        params = draw_params(config, size, seed=0, key=str(n))
        scale = size / 512
        assert config.blur_sigma[0] * scale <= params.sigma_x <= config.blur_sigma[1] * scale
        assert config.jpeg_quality[0] <= params.jpeg_quality < config.jpeg_quality[1]
        assert params.low_side >= 5
        assert params.swaps_red_blue == config.swaps_red_blue


def test_the_harder_preset_costs_more():
    def error(name):
        config = PRESETS[name].config
        pairs = [(face(n, 64), str(n)) for n in range(8)]
        return np.mean([
            np.abs(degrade(f, key, size=64, config=config).astype(int) - f).mean()
            for f, key in pairs
        ])  # fmt: skip

    assert error("mild") < error("gfpgan") < error("difface") < error("heavy")


def test_half_ranges_are_what_their_source_says():
    middle = {}
    for name in ("gfpgan", "difface"):
        config = PRESETS[name].config
        spans = [config.blur_sigma, config.reduction, config.noise_sigma, config.jpeg_quality]
        middle[name] = [sum(span) / 2 for span in spans]
    mild, heavy = PRESETS["mild"].config, PRESETS["heavy"].config
    assert [mild.blur_sigma[1], mild.reduction[1], mild.noise_sigma[1], mild.jpeg_quality[0]] == (
        pytest.approx(middle["gfpgan"])
    )
    assert [heavy.blur_sigma[0], heavy.reduction[0], heavy.noise_sigma[0],
            heavy.jpeg_quality[1]] == pytest.approx(middle["difface"])  # fmt: skip


def test_the_paper_keeps_its_own_reduction():
    assert reduction_at(STAGE_2, 128) == (0.8, 4.0)
    assert reduction_at(PRESETS["codeformer"].config, 128) == (2.0, 15.0)
    assert reduction_at(PRESETS["codeformer"].config, 16)[0] == 1.0
