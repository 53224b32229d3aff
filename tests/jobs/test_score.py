"""`vsp score` as its users call it: a folder against truths, again, with more, with bad input."""

import json
import shutil

import cv2
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

SIZE = 64
METRICS = "psnr,ssim,detail"


def picture(seed: int, size: int = SIZE) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def write(path, image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def faces(tmp_path):
    """Four truths and what a method made of them."""
    for number in range(4):
        truth = picture(number)
        write(tmp_path / "truth" / f"f{number}.png", truth)
        write(tmp_path / "ours" / f"f{number}.png", cv2.GaussianBlur(truth, (5, 5), number + 1))
    return tmp_path


@pytest.fixture
def score(vsp, faces):
    """Score `faces/<method>`; returns exit code, stdout and stderr."""

    def run(*options, method="ours", out="out", metrics=METRICS):
        arguments = ["score", faces / method, faces / out, "--gt", faces / "truth"]
        return vsp(*arguments, "--metrics", metrics, "--no-report", "--threads", 2, *options)

    return run


def rows(folder) -> list[dict]:
    table = ds.dataset(folder / "scores", format="parquet").to_table()
    return sorted(
        table.to_pylist(), key=lambda row: (row["method"], row["image_id"], row["metric"])
    )


def score_files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "scores").iterdir()}


def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def cell(folder, metric, method="ours"):
    (found,) = [
        cell
        for cell in results(folder)["cells"]
        if (cell["metric"], cell["method"], cell["group"]) == (metric, method, "")
    ]
    return found


def test_a_folder_is_scored_against_its_truths(score, faces):
    code, out, _ = score()

    assert code == 0
    found = rows(faces / "out")
    assert len(found) == 4 * 3
    assert {row["status"] for row in found} == {"ok"}
    wanted = []
    for number in range(4):
        pair = [cv2.imread(str(faces / name / f"f{number}.png")) for name in ("ours", "truth")]
        wanted.append(cv2.PSNR(*pair))
    assert cell(faces / "out", "psnr")["value"] == pytest.approx(np.mean(wanted), abs=1e-9)
    assert "ours" in out
    assert "psnr" in out


def test_the_same_command_again_does_nothing_and_a_new_metric_only_itself(score, faces):
    score(metrics="psnr")
    before = score_files(faces / "out")

    code, _, err = score(metrics="psnr")
    assert (code, score_files(faces / "out")) == (0, before)
    assert "nothing was left" in err

    code, _, _ = score(metrics="psnr,detail")
    after = score_files(faces / "out")
    assert code == 0
    assert before.items() < after.items()
    assert sorted(row["metric"].split(":")[0] for row in rows(faces / "out")) == (
        ["power"] * 4 + ["psnr"] * 4
    )


def test_a_replaced_image_is_scored_again_alone(score, faces):
    score()
    shutil.copy(faces / "truth" / "f3.png", faces / "ours" / "f3.png")

    code, _, _ = score()

    assert code == 0
    assert len(rows(faces / "out")) == 4 * 3 + 3
    assert cell(faces / "out", "psnr")["num_ok"] == 4
    images = [row for row in rows(faces / "out") if row["metric"].startswith("psnr")]
    assert max(row["value"] for row in images) == np.inf  # equal pictures
    assert cell(faces / "out", "psnr")["value"] < 100


def test_bad_images_are_rows_with_a_reason_and_all_others_are_scored(score, faces):
    (faces / "ours" / "f0.png").write_bytes(b"no picture")
    (faces / "ours" / "f1.png").unlink()
    write(faces / "ours" / "f2.png", picture(2, 50))
    write(faces / "ours" / "extra.png", picture(9))

    code, _, _ = score(metrics="psnr,niqe-small")

    assert code == 3
    found = {
        (row["image_id"], row["metric"].split(":")[0]): row["status"] for row in rows(faces / "out")
        if row["method"] == "ours"
    }  # fmt: skip
    assert found == {
        ("f0", "psnr"): "decode_error", ("f0", "niqe-like"): "decode_error",
        ("f1", "psnr"): "missing_pair", ("f1", "niqe-like"): "missing_pair",
        ("f2", "psnr"): "shape_mismatch", ("f2", "niqe-like"): "too_small",
        ("f3", "psnr"): "ok", ("f3", "niqe-like"): "ok",
        ("extra", "psnr"): "missing_pair", ("extra", "niqe-like"): "ok",
    }  # fmt: skip
    psnr = cell(faces / "out", "psnr")
    assert (psnr["num_ok"], psnr["num_total"]) == (1, 5)
    assert score(metrics="psnr,niqe-small")[0] == 3  # as it is, though nothing is left to do


def test_a_second_method_joins_the_table(score, faces):
    score()
    shutil.copytree(faces / "ours", faces / "theirs")

    code, out, _ = score(method="theirs")

    assert code == 0
    assert cell(faces / "out", "ssim") | {"method": ""} == cell(faces / "out", "ssim", "theirs") | {
        "method": ""
    }
    assert "ours" in out
    assert "theirs" in out


def test_methods_on_other_images_are_refused_unless_only_the_shared_ones_count(score, faces):
    score()
    shutil.copytree(faces / "ours", faces / "theirs")
    (faces / "theirs" / "f0.png").unlink()
    truth = faces / "truth" / "f0.png"
    truth.rename(faces / "f0.png")

    code, _, err = score(method="theirs")
    assert code == 2
    assert "f0" in err
    assert "--intersection" in err

    code, _, _ = score("--intersection", method="theirs")
    assert code == 0
    assert cell(faces / "out", "psnr")["num_total"] == 3


def test_shards_of_restored_faces_find_their_truth_in_the_record(vsp, faces, score):
    code, _, _ = vsp("pack", faces / "truth", faces / "shards")
    assert code == 0
    shutil.rmtree(faces / "truth")
    (faces / "shards").rename(faces / "truth")

    code, _, _ = score()

    assert code == 0
    assert cell(faces / "out", "psnr")["num_ok"] == 4


@pytest.mark.parametrize("threads", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_neither_threads_nor_processes_change_a_byte(score, faces, threads):
    score()
    code, _, _ = score("--threads", threads, "--workers", threads, out="other")

    assert code == 0
    assert score_files(faces / "other") == score_files(faces / "out")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--metrics", "pnsr"], "no such metric; did you mean psnr?"),
        (["--metrics", "lpips-vgg", "--weights", "."], "vgg16-397923af.pth"),
        (["--metrics", "fid"], "give --reference"),
        (["--metrics", "musiq"], "--iqa-python"),
        (["--key-regex", "(.*)_x"], "does not match the whole of"),
        (["--gt", "nowhere"], "nowhere"),
        (["--groups", "nowhere.csv"], "nowhere.csv"),
        (["--method", "truth"], "this name is kept"),
        (["--weights", "nowhere"], "--weights nowhere: no such folder"),
        (["--metrics", ","], "no name"),
        (["--metrics", "PSNR"], "did you mean psnr?"),
    ],
)
def test_a_users_mistake_is_one_line_before_anything_is_written(score, faces, options, fault):
    code, out, err = score(*options)

    assert (code, out) == (2, "")
    assert fault in err
    assert err.count("\n") == 1
    assert not (faces / "out").exists()


def test_out_in_the_input_is_refused(vsp, faces):
    code, _, err = vsp("score", faces / "ours", faces / "ours" / "scores")

    assert code == 2
    assert "lies in the input folder" in err


def test_groups_get_scores_of_their_own(score, faces):
    path = faces / "groups.csv"
    path.write_text(
        "key,group\n" + "".join(f"f{n},{'old' if n < 2 else 'new'}\n" for n in range(4))
    )

    code, _, _ = score("--groups", path)

    assert code == 0
    groups = {
        cell["group"]: cell["num_ok"]
        for cell in results(faces / "out")["cells"]
        if cell["metric"] == "psnr" and cell["method"] == "ours"
    }
    assert groups == {"": 4, "old": 2, "new": 2}


def test_restart_scores_everything_again_to_the_same_bytes(score, faces):
    score()
    before = score_files(faces / "out")
    (faces / "out" / "scores" / next(iter(before))).unlink()

    code, _, _ = score("--restart")

    assert (code, score_files(faces / "out")) == (0, before)


def test_verify_and_status_know_the_folder(score, vsp, faces):
    score()
    assert vsp("verify", faces / "out")[0] == 0
    assert vsp("status", faces / "out")[0] == 0

    path = next((faces / "out" / "scores").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    assert vsp("verify", faces / "out")[0] != 0


def test_the_metrics_are_listed_with_their_protocols(vsp):
    code, out, _ = vsp("score", "--list-metrics")

    assert code == 0
    assert "psnr:rgb8:cap100" in out


def test_the_scores_have_the_stated_schema(score, faces):
    from pipeline.scoring.tables import SCORES_SCHEMA

    score()
    path = next((faces / "out" / "scores").iterdir())

    assert pq.read_schema(path).equals(SCORES_SCHEMA)


def test_a_set_without_truths_is_scored_alone(vsp, faces):
    code, _, _ = vsp(
        "score", faces / "ours", faces / "out", "--metrics", "default", "--weights", faces,
        "--no-report",
    )  # fmt: skip

    assert code == 0
    assert {row["metric"] for row in rows(faces / "out")} == {"niqe-like:y:32:fitted"}
    assert {row["status"] for row in rows(faces / "out")} == {"ok"}


def test_a_dry_run_takes_nothing_back(score, faces):
    score()
    before = score_files(faces / "out")

    assert score("--restart", "--dry-run")[0] == 0
    assert score_files(faces / "out") == before


def test_scores_that_would_be_lost_are_not_taken_back(score, faces):
    score()
    before = score_files(faces / "out")

    code, _, err = score("--restart", metrics="psnr")

    assert code == 2
    assert "detail, ssim would be lost" in err
    assert score_files(faces / "out") == before


def test_taking_a_method_back_leaves_another_whose_name_begins_alike(score, vsp, faces):
    for method in ("gf", "gf.2"):
        shutil.copytree(faces / "ours", faces / method)
        score(method=method)
    before = {name for name in score_files(faces / "out") if name.startswith("truth.gf.2.")}

    assert score("--restart", method="gf")[0] == 0
    assert before <= set(score_files(faces / "out"))
    assert vsp("verify", faces / "out")[0] == 0


def test_after_a_restart_with_more_metrics_nothing_is_left_undone(score, vsp, faces):
    score(metrics="psnr")
    score(metrics="psnr,detail")

    assert score("--restart", metrics="psnr,detail")[0] == 0
    assert vsp("verify", faces / "out")[0] == 0
    assert vsp("status", faces / "out")[0] == 0


def test_the_folder_of_another_command_is_left_as_it_is(score, vsp, faces):
    vsp("pack", faces / "truth", faces / "shards")
    vsp("degrade", faces / "shards", faces / "out", "--size", SIZE)
    before = sorted(faces.joinpath("out").rglob("*"))

    code, _, err = score()

    assert code == 2
    assert "begun by `vsp degrade`" in err
    assert sorted(faces.joinpath("out").rglob("*")) == before


def test_json_is_one_object_also_where_nothing_is_left(score, faces):
    for _ in range(2):
        code, out, _ = score("--json")
        assert code == 0
        assert json.loads(out)["exit_code"] == 0


def test_a_method_that_cannot_join_is_refused_before_it_is_scored(score, faces):
    score()
    shutil.copytree(faces / "ours", faces / "theirs")
    (faces / "theirs" / "f0.png").unlink()
    before = score_files(faces / "out")

    code, _, err = score(method="theirs")

    assert code == 2
    assert "only ours has f0" in err
    assert score_files(faces / "out") == before
    assert not list((faces / "out" / "pairs").rglob("theirs*"))


def test_statistics_of_clean_images_need_images(score, faces):
    code, _, err = score("--save-statistics", faces / "own.npz")

    assert code == 2
    assert "--reference" in err
    assert not (faces / "out").exists()


def test_what_failed_is_scored_again_if_asked(score, faces, monkeypatch):
    from pipeline.metrics.bands import BandJudge

    with monkeypatch.context() as broken:
        broken.setattr(BandJudge, "score", lambda judge, face: 1 / 0)
        code, _, _ = score()
    assert code == 3
    assert cell(faces / "out", "detail")["statuses"] == {"failed": 4}
    before = {row["image_id"] for row in rows(faces / "out") if row["status"] == "failed"}
    assert len(before) == 4

    assert score()[0] == 3  # a failure is a result until it is asked for again
    code, _, _ = score("--only-failed")

    assert code == 0
    assert {row["status"] for row in rows(faces / "out")} == {"ok"}
    assert len(rows(faces / "out")) == 12
