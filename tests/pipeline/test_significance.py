import numpy as np
import pytest
from scipy import stats

from pipeline.metrics.significance import holm, wilcoxon


@pytest.mark.parametrize("count", [20, 51, 60, 500])
def test_wilcoxon_is_that_of_scipy_pair_by_pair(count):
    differences = np.random.default_rng(0).normal(0.1, 1, (6, count))
    differences[2, : count // 2] = np.nan
    differences[3] = np.round(differences[3])
    differences[4, :2] = 1, -1
    differences[5, 0] = 0
    expected = [stats.wilcoxon(row[~np.isnan(row)]).pvalue for row in differences]
    assert wilcoxon(differences) == pytest.approx(np.array(expected), rel=1e-12)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_what_nowhere_differs_is_not_significant(value):
    assert wilcoxon(np.full((1, 20), value)).tolist() == [1]


def test_holm_is_the_step_down_of_the_paper():
    corrected = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert corrected == pytest.approx(np.array([0.03, 0.06, 0.06, 0.02]))
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
