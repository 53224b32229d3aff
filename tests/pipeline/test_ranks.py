from pathlib import Path

import numpy as np
import pytest

from pipeline.metrics.ranks import badness, half_up, mean_rank, rank_sample
from pipeline.scoring.published import load_published

PUBLISHED = Path(__file__).resolve().parents[2] / "configs/benchmark/published"
HIGHER = ("U-IDS", "P-IDS", "PSNR", "SSIM")


@pytest.mark.parametrize("table", ["table-1", "table-2"])
def test_mean_ranks_of_the_paper_come_out_to_the_printed_digit(table):
    texts = {(c.method, c.column): c.text for c in load_published(PUBLISHED, [table])}
    methods = list(dict.fromkeys(method for method, _ in texts))
    columns = [c for c in dict.fromkeys(column for _, column in texts) if c != "mean rank"]
    values = np.array([[float(texts[m, c]) for c in columns] for m in methods])
    better = ["higher" if column.endswith(HIGHER) else "lower" for column in columns]
    found = mean_rank(badness(values, better))
    printed = {method: half_up(rank) for method, rank in zip(methods, found, strict=True)}
    assert len(methods) == 15
    assert printed == {method: texts[method, "mean rank"] for method in methods}


def test_ties_take_the_best_place_or_the_mean_of_places():
    values = np.array([[1.0], [0.0], [0.0], [2.0]])
    assert mean_rank(badness(values, ["higher"])).tolist() == [2, 3, 3, 1]
    assert mean_rank(badness(values, ["higher"]), "average").tolist() == [2, 3.5, 3.5, 1]


def test_what_should_be_zero_is_ranked_by_its_size():
    assert mean_rank(badness(np.array([[-3.0], [1.0]]), ["zero"])).tolist() == [2, 1]


def test_ranks_are_rounded_half_up():
    assert [half_up(value) for value in (5.625, 6.875, np.float64(3.0))] == ["5.63", "6.88", "3.00"]


def test_a_sample_of_ranks_has_shares_of_places():
    always, never = [0.0, 0.0], [9.0, 9.0]
    bad = np.array([[always, [1.0, 1.0], never], [[1.0, 1.0], always, never]] * 50)
    sample = rank_sample(bad)
    assert sample.places.tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]
    assert (sample.low[2], sample.high[2]) == (3, 3)
    assert (sample.low[0], sample.high[0]) == (1, 2)
