"""The work on one image: statuses, features, what a broken judge costs."""

import math

import cv2
import pytest
import torch

from pipeline.metrics.choose import choose
from pipeline.metrics.judge import Score
from pipeline.scoring.pairs import PairSet, pair_up
from pipeline.scoring.sources import find_images
from pipeline.scoring.tables import TRUTH_METHOD
from pipeline.scoring.work import missing_work
from pipeline.stage import Task
from pipeline.stages.score import ScoreConfig, ScoreStage
from pipeline.storage import LocalStore


@pytest.fixture
def scored(tmp_path, make):
    """Score folders `ours` and `truth` of `tmp_path` without an engine: image id -> result."""
    for folder in ("ours", "truth"):
        (tmp_path / folder).mkdir()

    def write(folder, name, data):
        (tmp_path / folder / name).write_bytes(data)

    def run(names, *, method="ours", before=lambda stage: None, weights=tmp_path):
        choice = choose(names, weights, has_truth=True, has_reference=False)
        store = LocalStore(tmp_path / "out")
        found = find_images(str(tmp_path / ("truth" if method == TRUTH_METHOD else "ours")))
        truths = None if method == TRUTH_METHOD else find_images(str(tmp_path / "truth"))
        (work,) = missing_work(
            store, PairSet(method, "d", pair_up(found, truths), "rev"), choice.chosen
        )
        work.save(store)
        stage = ScoreStage(ScoreConfig(choice.chosen))
        stage.setup()
        before(stage)
        records = stage.read(Task(work.name, "", str(tmp_path / "out")))
        results = [stage.finish(stage.prepare(record), []) for record in records]
        stage.close()
        return {result.row.key: result for result in results}

    run.write = write
    return run


def by_metric(result) -> dict[str, tuple[float, str]]:
    return {row["metric"].split(":")[0]: (row["value"], row["status"]) for row in result.scores}


def test_equal_pictures_have_infinite_psnr_which_is_a_value(scored, make):
    for folder in ("ours", "truth"):
        scored.write(folder, "a.png", make.png(0, 64))

    values = by_metric(scored(["psnr", "ssim"])["a"])

    assert values == {"psnr": (math.inf, "ok"), "ssim": (1.0, "ok")}


def test_a_flat_picture_has_no_naturalness_and_keeps_its_other_scores(scored, make):
    flat = cv2.imencode(".png", make.picture(0, 72) * 0 + 128)[1].tobytes()
    scored.write("ours", "flat.png", flat)
    scored.write("truth", "flat.png", make.png(0, 72))

    result = scored(["psnr", "niqe-small"])["flat"]

    assert by_metric(result)["niqe-like"][1] == "non_finite"
    assert by_metric(result)["psnr"][1] == "ok"
    assert (result.row.status, result.row.reason) == ("scored", "non_finite")


def test_no_face_on_the_truth_is_a_status_of_the_metrics_that_need_one(scored, make, shared_dir):
    for folder in ("ours", "truth"):
        scored.write(folder, "wall.png", make.png(0, 64))

    result = scored(
        ["psnr", "identity", "identity-fd", "nme-yunet"], weights=shared_dir / "weights"
    )["wall"]

    statuses = {name: status for name, (_, status) in by_metric(result).items()}
    assert statuses == {"psnr": "ok", "cosine": "no_face", "nme": "no_face"}
    (feature,) = result.features
    assert feature.feature is None
    assert feature.values["status"] == "no_face"


def test_features_have_their_length_and_a_truth_is_scored_alone(scored, make, shared_dir):
    scored.write("truth", "a.png", make.png(0, 64))
    scored.write("ours", "a.png", make.png(1, 64))
    names = ["psnr", "niqe-small", "squeeze-fd"]

    ours = scored(names, weights=shared_dir / "weights")["a"]
    truth = scored(names, method=TRUTH_METHOD, weights=shared_dir / "weights")["a"]

    assert set(by_metric(ours)) == {"psnr", "niqe-like"}
    assert set(by_metric(truth)) == {"niqe-like"}
    for result, role in ((ours, "restored"), (truth, "gt")):
        (feature,) = result.features
        assert feature.values["role"] == role
        assert feature.feature.shape == (feature.dim,)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (RuntimeError("mat1 and mat2\nshapes"), "failed"),
    ],
)
def test_a_judge_that_breaks_costs_its_own_metrics_alone(scored, make, error, status):
    for folder in ("ours", "truth"):
        scored.write(folder, "a.png", make.png(0, 64))

    def break_bands(stage):
        class Broken(type(stage._judges["bands"])):
            def score(self, face):
                raise error

        stage._judges["bands"] = Broken()

    result = scored(["psnr", "detail"], before=break_bands)["a"]

    assert {name: status for name, (_, status) in by_metric(result).items()} == {
        "psnr": "ok",
        "power": status,
    }
    assert result.row.status == "failed"
    assert "\n" not in result.row.reason


def test_an_image_that_changes_after_planning_is_not_scored(scored, make, tmp_path):
    for folder in ("ours", "truth"):
        scored.write(folder, "a.png", make.png(0, 64))

    def replace_image(stage):
        scored.write("ours", "a.png", make.png(5, 64))

    result = scored(["psnr"], before=replace_image)["a"]

    assert by_metric(result)["psnr"][1] == "failed"  # `--only-failed` scores it as it is then
    assert "changed" in result.row.reason


def test_a_bomb_is_refused_by_its_header(scored, make):
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    scored.write("ours", "a.png", b"\x89PNG\r\n\x1a\n" + chunk + make.png()[33:])
    scored.write("truth", "a.png", make.png(0, 64))

    assert by_metric(scored(["psnr"])["a"])["psnr"][1] == "decode_error"


def test_nan_is_no_value():
    assert Score.of(math.nan).status == "non_finite"
    assert Score.of(math.inf).status == "ok"
