"""Outliers, merges, clusters and overlaps of identities, and the search for near embeddings."""

import numpy as np
import pytest

from pipeline.cleaning.persons import neighbours
from pipeline.cleaning.persons.identities import IdentityConfig, Merge, find_persons, overlaps
from pipeline.cleaning.persons.neighbours import components, crossing_pairs, near_pairs

CONFIG = IdentityConfig()


def people(num: int, seed: int = 0) -> np.ndarray:
    """(num, 128) strangers, of length 1."""
    rows = np.random.default_rng(seed).standard_normal((num, 128))
    return unit(rows)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def photos(centre: np.ndarray, num: int, seed: int = 0, cosine: float = 0.72) -> np.ndarray:
    """(num, 128) photos of one person, so alike on average."""
    return unit(np.sqrt(cosine) * centre + np.sqrt(1 - cosine) * people(num, seed + 1000))


def found(names, embeddings, has=None, config=CONFIG):
    known = np.full(len(names), True) if has is None else np.array(has)
    return find_persons(names, embeddings, known, config)


def test_a_wrong_face_under_a_person_is_an_outlier():
    one, other = people(2)
    faces = np.concatenate([photos(one, 5), photos(other, 1, seed=5), photos(other, 4)])
    result = found(["a"] * 6 + ["b"] * 4, faces)
    assert result.is_outlier.tolist() == [False] * 5 + [True] + [False] * 4
    assert result.likeness[5] < 0.3 < result.likeness[:5].min()
    assert result.group.tolist() == [0] * 6 + [1] * 4
    assert result.merges == []


def test_two_wrong_faces_do_not_hide_each_other():
    one, other = people(2)
    faces = np.concatenate([photos(other, 2, cosine=0.9), photos(one, 6)])
    assert found(["a"] * 8, faces).is_outlier.tolist() == [True] * 2 + [False] * 6


@pytest.mark.parametrize("num", [1, 2, 3])
def test_of_few_images_nobody_can_tell_which_is_wrong(num):
    result = found(["a"] * num, people(num))
    assert not result.is_outlier.any()
    assert np.isnan(result.likeness).all() == (num == 1)


def test_where_all_are_strangers_nobody_is_an_outlier():
    assert not found(["a"] * 12, people(12)).is_outlier.any()


def test_an_outlier_does_not_move_the_centre_it_is_measured_by():
    one, other = people(2)
    right = photos(one, 6)
    result = found(["a"] * 7, np.concatenate([right, photos(other, 1)]))
    alone = found(["a"] * 6, right)
    assert result.likeness[:6] == pytest.approx(alone.likeness, abs=1e-6)


def test_persons_who_are_one_are_told_likest_first():
    one, two, three = people(3)
    faces = np.concatenate(
        [
            photos(one, 4),
            photos(two, 4),
            photos(one, 4, 7),
            photos(three, 4),
            photos(two, 4, 8, 0.9),
        ]
    )
    names = [name for name in ("z", "b", "a", "c", "d") for _ in range(4)]
    merges = found(names, faces).merges
    assert {(merge.person, merge.other) for merge in merges} == {("a", "z"), ("b", "d")}
    assert [merge.likeness for merge in merges] == sorted(
        (merge.likeness for merge in merges), reverse=True
    )
    assert isinstance(merges[0], Merge)


def test_images_without_embedding_or_person():
    one, other = people(2)
    faces = np.concatenate([photos(one, 2), np.zeros((2, 128), np.float32), photos(other, 3)])
    names = ["a", "a", "a", None, None, None, None]
    result = found(names, faces, [True, True, False, False, True, True, True])
    assert result.group.tolist() == [0, 0, 0, -1, 1, 1, 1]
    assert np.isnan(result.likeness[2:]).all()


def test_a_set_without_persons_falls_into_clusters():
    centres = people(30)
    faces = np.concatenate([photos(centre, 5, n, 0.85) for n, centre in enumerate(centres)])
    order = np.random.default_rng(1).permutation(len(faces))
    result = found([None] * len(faces), faces[order])
    truth = order // 5
    same = result.group[:, None] == result.group[None]
    assert np.array_equal(same, truth[:, None] == truth[None])
    # Numbers count up from the first image on.
    _, first = np.unique(result.group, return_index=True)
    assert np.array_equal(first, np.sort(first))
    assert result.group.max() == 29


def test_an_empty_set():
    result = found([], np.empty((0, 128), np.float32))
    assert (len(result.group), result.merges) == (0, [])


def test_overlaps_name_both_places():
    ours, theirs = people(20), people(15, seed=1)
    theirs[3], theirs[9] = photos(ours[7], 1)[0], ours[2]
    theirs[4] = 0
    found_pairs = overlaps(ours, theirs, CONFIG)
    assert [pair[:2] for pair in found_pairs] == [(2, 9), (7, 3)]
    assert found_pairs[0][2] == pytest.approx(1)


def test_pairs_do_not_depend_on_blocks(monkeypatch):
    rows = people(200)
    rows[50:60] = photos(rows[0], 10)

    def pairs():
        near = near_pairs(rows, 0.3, 50, mutual=False)
        return near, crossing_pairs(rows, rows[::3], 0.3)

    whole = pairs()
    cosines = rows @ rows.T
    assert set(zip(*(each.tolist() for each in whole[0][:2]), strict=True)) == {
        (one, other) for one, other in np.argwhere(cosines >= 0.3).tolist() if one < other
    }
    monkeypatch.setattr(neighbours, "_BLOCK", 16)
    monkeypatch.setattr(neighbours, "_MAX_WAITING", 30)
    for one, other in zip(whole, pairs(), strict=True):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])


def test_landmarks_find_nearly_all_pairs(monkeypatch):
    centres = people(400)
    rows = np.concatenate([photos(centre, 3, n) for n, centre in enumerate(centres)])
    exact = near_pairs(rows, 0.6, 5, mutual=True)
    monkeypatch.setattr(neighbours, "_EXACT", 100)
    monkeypatch.setattr(neighbours, "_NUM_LANDMARKS", 64)
    quick = near_pairs(rows, 0.6, 5, mutual=True)
    ours, true = (
        set(zip(*(each.tolist() for each in found[:2]), strict=True)) for found in (quick, exact)
    )
    assert ours <= true
    assert len(ours) >= 0.97 * len(true)


def test_one_person_a_thousand_times_keeps_few_neighbours():
    rows = photos(people(1)[0], 1000, cosine=0.9)
    first, second, _ = near_pairs(rows, 0.6, 4, mutual=False)
    assert len(first) <= 4 * len(rows)
    assert components(len(rows), first, second).max() == 0


def test_only_mutual_neighbours_are_linked():
    # 0 is near to 1, 2 and 3, of which 3 is the nearest: with one neighbour only 0 - 3 is mutual.
    angles = np.radians([0, 30, -25, 10, 150, 170])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    one, other, cosine = near_pairs(rows, 0.8, 1, mutual=True)
    assert list(zip(one.tolist(), other.tolist(), strict=True)) == [(0, 3), (4, 5)]
    assert cosine == pytest.approx(np.cos(np.radians([10, 20])), abs=1e-6)
    assert components(6, one, other).tolist() == [0, 1, 2, 0, 3, 3]
    one, other, _ = near_pairs(rows, 0.8, 1, mutual=False)
    assert list(zip(one.tolist(), other.tolist(), strict=True)) == [(0, 2), (0, 3), (1, 3), (4, 5)]
