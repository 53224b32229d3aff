import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from score_folder import EvaluationFolder

from pipeline.aggregate import AggregateConfig, Facts, aggregate
from pipeline.errors import UserError
from pipeline.metrics.frechet import Gaussian, frechet, frechet_of
from pipeline.metrics.kernel import paired_kernel_distance
from pipeline.metrics.moments import Moments
from pipeline.results import PublishedCell, Results
from pipeline.storage import LocalStore

IDS = [f"face{number:02}" for number in range(12)]
FEW = AggregateConfig(resamples=200)
SQUEEZE = ("squeeze", ("squeeze-fd", "squeeze-kd"))
INCEPTION = ("inception", ("fid", "fid-paired", "kid-paired", "uids", "pids", "uids-cv", "pids-cv"))


@pytest.fixture
def folder(tmp_path):
    return EvaluationFolder(tmp_path / "out")


@pytest.fixture
def stream():
    return np.random.default_rng(0)


def by_id(values):
    return dict(zip(IDS, values, strict=False))


def cells(results, metric, group=""):
    return {c.method: c for c in results.cells if (c.metric, c.group) == (metric, group)}


def two_methods(folder, stream, dataset="faces", methods=("A", "B")):
    """Two methods with everything: scores of two kinds, groups, features, truths."""
    groups = by_id(["old"] * 4 + ["young"] * 8)
    folder.add_pairs(dataset, "truth", IDS)
    folder.add_scores(dataset, "truth", "niqe-small", by_id(stream.normal(4, 1, 12)))
    folder.add_features(*SQUEEZE, dataset, "truth", by_id(stream.normal(0, 1, (12, 20))))
    for method in methods:
        folder.add_pairs(dataset, method, IDS, groups=groups)
        folder.add_scores(dataset, method, "psnr", by_id(stream.normal(25, 2, 12)))
        folder.add_scores(dataset, method, "niqe-small", by_id(stream.normal(5, 1, 12)))
        folder.add_features(*SQUEEZE, dataset, method, by_id(stream.normal(0.2, 1, (12, 20))))


def test_a_tiny_table_is_what_one_computes_by_hand(folder):
    for method in ("A", "B"):
        folder.add_pairs("faces", method, IDS[:4])
    folder.add_scores("faces", "A", "psnr", by_id([20, 30, np.inf, "decode_error"]))
    folder.add_scores("faces", "B", "psnr", by_id([19, 28, 25, 40]))
    results = aggregate(folder.write(), FEW)
    one, other = cells(results, "psnr")["A"], cells(results, "psnr")["B"]
    assert (one.value, one.num_ok, one.num_total) == (50, 3, 4)  # infinity counts 100
    assert one.statuses == {"decode_error": 1}
    assert (other.value, other.num_ok, other.statuses) == (28, 4, {})
    assert one.low < one.value < one.high
    (found,) = results.comparisons
    assert (found.method, found.other, found.num_images) == ("A", "B", 3)
    assert found.difference == pytest.approx((1 + 2 + 75) / 3)
    assert found.low > 0
    assert found.p_wilcoxon == pytest.approx(0.25)
    assert [(rank.method, rank.mean) for rank in results.ranks] == [("A", 1), ("B", 2)]
    assert results.metrics[0].library == "lib 1.0"


def test_the_paired_interval_of_a_constant_difference_is_a_point(folder, stream):
    values = stream.normal(25, 5, 12)
    for method, shift in (("A", 0), ("B", 1)):
        folder.add_pairs("faces", method, IDS)
        folder.add_scores("faces", method, "psnr", by_id(values + shift))
    (found,) = aggregate(folder.write(), FEW).comparisons
    assert (found.difference, found.low, found.high) == pytest.approx((-1, -1, -1))


def test_values_that_a_source_leaves_out_are_left_out(folder):
    folder.add_pairs("faces", "A", IDS[:3])
    folder.add_scores("faces", "A", "deg-vqfr", by_id([0.5, 30, 50]))
    cell = cells(aggregate(folder.write(), FEW), "deg-vqfr")["A"]
    assert (cell.value, cell.num_ok, cell.statuses) == (40, 2, {"left_out": 1})


def test_groups_have_cells_of_their_own(folder, stream):
    two_methods(folder, stream)
    results = aggregate(folder.write(), FEW)
    assert results.datasets[0].groups == ("old", "young")
    old, young = (cells(results, "psnr", group)["A"] for group in ("old", "young"))
    whole = cells(results, "psnr")["A"]
    assert (old.num_total, young.num_total) == (4, 8)
    assert (4 * old.value + 8 * young.value) / 12 == pytest.approx(whole.value)
    assert young.high - young.low > whole.high - whole.low


def test_truths_are_shown_but_not_ranked(folder, stream):
    two_methods(folder, stream)
    results = aggregate(folder.write(), FEW)
    assert list(cells(results, "niqe-small")) == ["A", "B", "truth"]
    assert list(cells(results, "psnr")) == ["A", "B"]
    assert [method.name for method in results.methods] == ["A", "B", "truth"]
    assert {rank.method for rank in results.ranks} == {"A", "B"}
    assert all("truth" not in (c.method, c.other) for c in results.comparisons)


def test_rows_of_replaced_images_and_other_weights_do_not_count(folder):
    folder.add_pairs("faces", "A", IDS[:2])
    folder.add_scores("faces", "A", "psnr", by_id([20, 30]))
    folder.add_scores("faces", "A", "psnr", by_id([90, 90]), restored_sha256="replaced")
    folder.add_scores("faces", "A", "psnr", by_id([90, 90]), gt_sha256="replaced")
    folder.add_scores("faces", "A", "psnr", by_id([90, 90]), weights_sha256="others")
    folder.scores.append(folder.scores[0] | {"method": "gone", "value": 90.0})
    assert cells(aggregate(folder.write(), FEW), "psnr")["A"].value == 25


def test_a_value_counts_before_an_earlier_failure(folder):
    folder.add_pairs("faces", "A", IDS[:2])
    folder.add_scores("faces", "A", "psnr", by_id(["oom", 30]))
    folder.add_scores("faces", "A", "psnr", by_id([20, 30]))
    cell = cells(aggregate(folder.write(num_files=3), FEW), "psnr")["A"]
    assert (cell.value, cell.num_ok, cell.statuses) == (25, 2, {})


def test_images_without_a_row_are_pending_and_told(folder):
    for method in ("A", "B"):
        folder.add_pairs("faces", method, IDS[:3])
    folder.add_scores("faces", "A", "psnr", by_id([20, 30]))
    results = aggregate(folder.write(), FEW)
    assert cells(results, "psnr")["A"].statuses == {"pending": 1}
    assert cells(results, "psnr")["B"].statuses == {"pending": 3}
    assert cells(results, "psnr")["B"].value is None
    assert "psnr of 1 of 3 images of A is not computed yet" in results.warnings[0]
    assert "psnr of 3 of 3 images of B" in results.warnings[1]
    assert results.ranks == ()


def test_a_truth_without_image_counts_for_a_method_alone_and_parts_it_from_others(folder):
    folder.add_pairs("faces", "A", IDS[:3])
    folder.add_pairs("faces", "A", ["lost"], restored_sha256="")
    folder.add_scores("faces", "A", "psnr", by_id([20, 30, 40]))
    (cell,) = cells(aggregate(folder.write(), FEW), "psnr").values()
    assert (cell.num_ok, cell.num_total, cell.statuses) == (3, 4, {"missing_pair": 1})
    folder.add_pairs("faces", "B", [*IDS[:3], "lost"])
    folder.add_scores("faces", "B", "psnr", by_id([20, 30, 40]) | {"lost": 90})
    store = folder.write()
    with pytest.raises(UserError, match=r"B has 1 more \(lost\)"):
        aggregate(store, FEW)
    results = aggregate(store, AggregateConfig(resamples=50, intersection=True))
    assert cells(results, "psnr")["A"].value == cells(results, "psnr")["B"].value == 30


def test_different_images_are_refused_by_name(folder):
    for method, ids in (("A", IDS), ("B", [*IDS[2:], "other"])):
        folder.add_pairs("faces", method, ids)
        folder.add_scores("faces", method, "psnr", dict.fromkeys(ids, 20))
    store = folder.write()
    told = r"A has 2 more \(face00, face01\); B has 1 more \(other\); .* --intersection"
    with pytest.raises(UserError, match=told):
        aggregate(store, FEW)
    assert store.stat("results.json") is None
    results = aggregate(store, AggregateConfig(resamples=50, intersection=True))
    assert results.datasets[0].num_images == 10
    assert cells(results, "psnr")["A"].num_total == 10
    assert "3 of 13 images are left out" in results.warnings[0]
    folder.add_pairs("faces", "C", ["another"])
    with pytest.raises(UserError, match="A, B, C have no image in common"):
        aggregate(folder.write(), AggregateConfig(intersection=True))


def test_truths_and_inputs_that_differ_between_methods_are_told(folder):
    folder.add_pairs("faces", "A", IDS)
    folder.add_pairs("faces", "B", IDS[:9])
    folder.add_pairs("faces", "B", IDS[9:], gt_sha256="another", lq_sha256="another")
    folder.pairs[12:] = [row | {"dataset_rev": "new"} for row in folder.pairs[12:]]
    folder.add_scores("faces", "A", "psnr", by_id([20] * 12))
    warnings = aggregate(folder.write(), FEW).warnings
    assert warnings[:3] == (
        "faces: the methods were scored on different revisions (A rev of faces, B new)",
        "faces: methods do not agree on the truths of 3 images",
        "faces: methods do not agree on the inputs of 3 images",
    )


def test_how_rows_lie_in_files_changes_no_byte(folder, stream):
    two_methods(folder, stream)
    two_methods(folder, stream, "more faces")
    found = []
    for num_files, order in ((1, None), (7, np.random.default_rng(3))):
        shutil.rmtree(folder.store.root, ignore_errors=True)
        aggregate(folder.write(num_files, order), FEW)
        found.append([folder.store.read(f"results.{kind}") for kind in ("json", "parquet")])
    assert found[0] == found[1]


def test_ranks_over_all_data_sets_join_their_columns(folder, stream):
    two_methods(folder, stream, "one", ("A", "B", "C"))
    two_methods(folder, stream, "two", ("B", "C"))
    ranks = aggregate(folder.write(), FEW).ranks
    assert {rank.method for rank in ranks if rank.dataset == "one"} == {"A", "B", "C"}
    over_all = [rank for rank in ranks if not rank.dataset]
    assert {rank.method for rank in over_all} == {"B", "C"}
    assert len(over_all[0].columns) == 8
    assert over_all[0].note == "not resampled: squeeze-fd, squeeze-kd"
    assert sum(rank.p_first for rank in over_all) >= 1
    assert sum(over_all[0].distribution.values()) == pytest.approx(1)


def test_sets_are_compared_with_their_truths(folder, stream):
    truths, restored = stream.normal(0, 1, (2, 12, 20)).astype(np.float32)
    for method, features in (("truth", truths), ("A", restored)):
        folder.add_pairs("faces", method, IDS)
        folder.add_features(*SQUEEZE, "faces", method, by_id(features))
    folder.features["squeeze"][0] |= {"status": "decode_error", "feature": None}
    results = aggregate(folder.write(3, stream), FEW)
    distance = cells(results, "squeeze-fd")["A"]
    assert distance.value == pytest.approx(frechet_of(restored[1:], truths[1:]), rel=1e-9)
    assert distance.error > 0
    assert (distance.num_ok, distance.statuses) == (11, {"decode_error": 1})
    kernel = cells(results, "squeeze-kd")["A"]
    expected, _ = paired_kernel_distance(restored[1:], truths[1:])
    assert kernel.value == pytest.approx(expected, rel=1e-9)


def test_many_features_take_the_moments(folder, stream):
    truths, restored = stream.normal(0, 1, (2, 12, 4)).astype(np.float32)
    for method, features in (("truth", truths), ("A", restored), ("B", truths)):
        folder.add_pairs("faces", method, IDS)
        folder.add_features(*SQUEEZE, "faces", method, by_id(features))
    found = cells(aggregate(folder.write(5, stream), FEW), "squeeze-fd")
    assert found["A"].value == pytest.approx(frechet_of(restored, truths), rel=1e-9)
    assert found["B"].value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dim", [4, 20])
@pytest.mark.parametrize("is_file", [True, False])
def test_fid_compares_with_the_clean_set(folder, stream, tmp_path, dim, is_file):
    clean, restored = stream.normal(0, 1, (2, 12, dim)).astype(np.float32)
    folder.add_pairs("faces", "A", IDS)
    folder.add_features(*INCEPTION, "faces", "A", by_id(restored))
    moments = Moments.of(clean)
    np.savez(tmp_path / "clean.npz", mu=moments.mean, sigma=moments.covariance)
    references = {"faces": str(tmp_path / "clean.npz")} if is_file else {}
    if not is_file:
        folder.add_pairs("faces", "reference", IDS, has_truth=False)
        folder.add_features(*INCEPTION, "faces", "reference", by_id(clean))
    results = aggregate(folder.write(2, stream), AggregateConfig(references=references))
    cell = cells(results, "fid")["A"]
    full = frechet(Gaussian.of(moments), Gaussian.of(Moments.of(restored))).value
    assert cell.value == pytest.approx(full, rel=1e-5 if dim > 12 else 1e-8)
    assert cell.note == f"against {'clean.npz' if is_file else '12 clean images'}"
    assert [method.name for method in results.methods] == ["A"]
    assert not cells(results, "fid-paired")


def test_what_cannot_be_computed_says_why(folder, stream):
    pytest.importorskip("sklearn")
    for method in ("truth", "A"):
        folder.add_pairs("faces", method, IDS)
        folder.add_features(*INCEPTION, "faces", method, by_id(stream.normal(0, 1, (12, 4))))
    results = aggregate(folder.write(), FEW)
    assert not cells(results, "fid")
    assert results.missing[0].startswith("fid on faces: needs a clean set; give")
    cell = cells(results, "uids")["A"]
    assert (cell.value, cell.num_ok) == (None, 12)
    assert cell.note == "refused for 12 pairs: says nothing below 2,049"
    assert 0 <= cells(results, "pids-cv")["A"].value <= 1


def test_what_was_computed_of_the_same_features_is_remembered(folder, stream, monkeypatch):
    two_methods(folder, stream)
    store = folder.write()
    before = aggregate(store, FEW)
    monkeypatch.setattr("pipeline.scoring.aggregate_set_cells.outcome_of", None)
    assert aggregate(store, FEW) == before
    with pytest.raises(TypeError):
        aggregate(store, AggregateConfig(resamples=200, seed=1))


def test_results_come_back_with_what_was_told(folder, stream):
    two_methods(folder, stream)
    published = (PublishedCell(table="t", method="A", column="FID", text="1.0", source="x"),)
    facts = Facts(
        title="Mine", missing=("niqe: needs a file",), notices={"A": "non-commercial"},
        costs={"A": {"params_m": 3.0}}, published=published, provenance={"commit": "abc"},
        dataset_notes={"faces": "toy"},
    )  # fmt: skip
    results = aggregate(folder.write(), FEW, facts)
    assert Results.load(folder.store) == results
    assert (results.title, results.missing) == ("Mine", ("niqe: needs a file",))
    assert results.methods[0].notice == "non-commercial"
    assert results.methods[0].cost == {"params_m": 3}
    assert (results.datasets[0].note, results.datasets[0].rev) == ("toy", "rev of faces")
    assert (results.published, results.provenance) == (published, {"commit": "abc"})
    table = pq.read_table(folder.store.root / "results.parquet")
    assert table["value"].to_pylist() == [cell.value for cell in results.cells]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing is scored there"):
        aggregate(LocalStore(tmp_path), FEW)
    with pytest.raises(UserError, match="no results; make them with"):
        Results.load(LocalStore(tmp_path))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="not results of this version"):
        Results.load(LocalStore(tmp_path))
