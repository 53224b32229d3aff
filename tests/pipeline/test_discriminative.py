import numpy as np
import pytest

from pipeline.metrics.discriminative import MIN_PAIRS, held_out, resubstitution

pytest.importorskip("sklearn")


def pairs(count, dim=16, shift=0.0):
    """Features and truths that share most of what they are, as a restorer's do."""
    stream = np.random.default_rng(5)
    shared = stream.normal(0, 1, (count, dim))
    one, other = shared + 0.1 * stream.normal(0, 1, (2, count, dim))
    return (one + shift).astype(np.float32), other.astype(np.float32)


def test_held_out_pairs_of_one_distribution_are_indistinguishable():
    found = held_out(*pairs(600), seed=0)
    assert found.unpaired == pytest.approx(0.5, abs=0.05)
    assert found.paired == pytest.approx(0.5, abs=0.08)


def test_what_differs_is_told_apart():
    found = held_out(*pairs(600, shift=5), seed=0)
    assert found.unpaired < 0.01
    assert found.paired < 0.01


def test_equal_seeds_make_the_same_folds():
    sets = pairs(100)
    assert held_out(*sets, seed=1) == held_out(*sets, seed=1)
    assert held_out(*sets, seed=1) != held_out(*sets, seed=2)


def test_few_pairs_are_refused():
    with pytest.raises(ValueError, match="2049"):
        resubstitution(*pairs(MIN_PAIRS - 1))
    with pytest.raises(ValueError, match="folds"):
        held_out(*pairs(4), seed=0)


def test_the_reference_form_flatters_the_classifier():
    sets = pairs(MIN_PAIRS, dim=64)
    found = resubstitution(*sets)
    assert 0.3 < found.unpaired < held_out(*sets, seed=0).unpaired


def test_other_pairs_change_the_paired_score_only():
    features, truths = pairs(MIN_PAIRS, dim=8, shift=0.02)
    permuted = features[np.random.default_rng(0).permutation(len(features))]
    one, other = resubstitution(features, truths), resubstitution(permuted, truths)
    assert one.unpaired == other.unpaired
    assert one.paired != other.paired
