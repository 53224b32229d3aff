"""Prints, the search over hashes, the comparison, clumps, and groups of copies."""

import itertools
from functools import cache

import cv2
import numpy as np
import pytest
import simplejpeg
from constructed_pictures import astronaut

from pipeline import images
from pipeline.cleaning.copies import clumps as copies_clumps
from pipeline.cleaning.copies import search as copies_search
from pipeline.cleaning.copies.confirm import likeness
from pipeline.cleaning.copies.find import CopyConfig, Pairs, find_copies
from pipeline.cleaning.copies.groups import Copy, group_copies
from pipeline.cleaning.copies.prints import (
    CROPS,
    PRINT_BYTES,
    hashes_of,
    make_prints,
    mirror_mask,
    phash_hex,
    thumbs_of,
)
from pipeline.cleaning.copies.waves import SIDE, mean, order, spread, transform
from pipeline.shards import read_shard

QUICK = CopyConfig(threads=1)


@cache
def faces() -> list[np.ndarray]:
    """The astronaut, and pictures with the mean and the spectrum of faces."""
    random = np.random.default_rng(3)
    deviation = spread(*np.indices((SIDE, SIDE)))
    known = images.decode(astronaut().data)[1]
    return [known, *(drawn(random.standard_normal((SIDE, SIDE)) * deviation) for _ in range(24))]


def drawn(spectrum) -> np.ndarray:
    spectrum[order()] += mean()
    spectrum[0, 0] = 0
    pixels = transform().T @ spectrum @ transform() * SIDE
    gray = cv2.resize(128 + 45 * pixels, (128, 128), interpolation=cv2.INTER_CUBIC)
    return np.repeat(np.rint(gray).clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def packed(pictures) -> np.ndarray:
    return np.frombuffer(b"".join(map(make_prints, pictures)), np.uint8).reshape(-1, PRINT_BYTES)


def found(prints: np.ndarray, config: CopyConfig = QUICK) -> Pairs:
    return find_copies(prints, np.ones(len(prints), np.bool_), config)


def listed(pairs: Pairs) -> list[tuple[int, int, bool]]:
    return list(
        zip(pairs.first.tolist(), pairs.second.tolist(), pairs.is_flip.tolist(), strict=True)
    )


def jpeg(face, quality):
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(face), quality, colorsubsampling="420")
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def smaller(face):
    return cv2.resize(face, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def cropped(face, left=0.05, right=0.0, top=0.03, bottom=0.05):
    height, width = face.shape[:2]
    rows = slice(round(height * top), height - round(height * bottom))
    return np.ascontiguousarray(face[rows, round(width * left) : width - round(width * right)])


def powered(face, power):
    return cv2.LUT(face, np.rint(255 * (np.arange(256) / 255) ** power).astype(np.uint8))


def mirrored(face):
    return np.ascontiguousarray(face[:, ::-1])


DAMAGES = {
    "jpeg": lambda face: jpeg(face, 30),
    "resize": smaller,
    "crop": cropped,
    "crop-all-sides": lambda face: cropped(face, 0.05, 0.05, 0.05, 0.05),
    "dark": lambda face: powered(face, 1.4),
    "light": lambda face: powered(face, 0.7),
    "two": lambda face: jpeg(cropped(face, 0.0, 0.04, 0.02, 0.0), 40),
}


# ------------------------------------------------------------------------------------- prints


def test_a_print_follows_from_the_pixels_and_has_one_length():
    face = faces()[0]
    assert len(make_prints(face)) == PRINT_BYTES
    assert make_prints(face) == make_prints(face.copy())


def test_gain_offset_and_gamma_cancel():
    face = (faces()[0] // 2 + 40).astype(np.uint8)
    prints = packed([face, np.rint(face * 1.2).astype(np.uint8)])
    bits = np.bitwise_count(hashes_of(prints)[0, 0] ^ hashes_of(prints)[1, 0])
    assert bits <= 1


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_picture_is_a_copy_of_nothing(value):
    blank = np.full((64, 64, 3), value, np.uint8)
    noisy = blank + np.random.default_rng(0).integers(-2, 3, blank.shape).clip(0).astype(np.uint8)
    assert make_prints(blank) == bytes(PRINT_BYTES)
    assert listed(found(packed([blank, blank, np.where(value == 0, blank, noisy)]))) == []


def test_the_mirror_image_has_the_mirrored_hashes():
    one, other = (hashes_of(packed([each]))[0] for each in (faces()[0], mirrored(faces()[0])))
    assert one[0] ^ mirror_mask() == other[0]
    assert sorted(one ^ mirror_mask()) == sorted(other)


def test_the_hash_of_a_crop_is_among_those_of_the_whole():
    face = cv2.resize(faces()[0], (400, 400), interpolation=cv2.INTER_CUBIC)
    whole = hashes_of(packed([face]))[0]
    for number, parts in enumerate(CROPS):
        crop = hashes_of(packed([cropped(face, *parts)]))[0, 0]
        assert np.bitwise_count(whole[number] ^ crop) <= 4, parts


def test_phash_hex_is_the_first_hash():
    prints = make_prints(faces()[0])
    assert phash_hex(prints) == f"{int(hashes_of(packed([faces()[0]]))[0, 0]):016x}"
    assert len(phash_hex(bytes(PRINT_BYTES))) == 16


# ------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("sure_bits", [2, 5, 8])
def test_no_pair_within_the_sure_bits_is_missed(sure_bits):
    random = np.random.default_rng(sure_bits)
    # Few distinct ones, so that buckets are shared; then up to sure_bits + 1 bits are changed.
    base = random.integers(0, 2**64, 40, np.uint64)
    hashes = base[random.integers(0, 40, 600)]
    for number in range(len(hashes)):
        for bit in random.choice(64, random.integers(0, sure_bits + 2), replace=False):
            hashes[number] ^= np.uint64(1) << np.uint64(bit)
    bands = copies_search.tables(hashes, np.arange(600))
    met = {
        (int(one), int(other))
        for ones, others in copies_search.near(bands, hashes, sure_bits, sure_bits)
        for one, other in zip(ones, others, strict=True)
    }
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    assert met == set(map(tuple, np.argwhere(distance <= sure_bits).tolist()))


def test_finds_are_counted_in_parts(monkeypatch):
    hashes = np.full(50, 7, np.uint64)
    monkeypatch.setattr(copies_search, "_MAX_FINDS", 100)
    bands = copies_search.tables(hashes, np.arange(50))[:1]
    parts = [len(ones) for ones, _ in copies_search.near(bands, hashes, 0, 0)]
    assert sum(parts) == 2500
    assert max(parts) <= 150


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_copies_are_found_and_nothing_else(name):
    originals = faces()
    pairs = found(packed([*originals, *map(DAMAGES[name], originals)]))
    num = len(originals)
    true = {(place, place + num, False) for place in range(num)}
    assert len(true & set(listed(pairs))) >= 0.9 * num
    assert not set(listed(pairs)) - true
    assert (pairs.likeness >= QUICK.min_likeness).all()


def test_mirror_images_are_a_class_of_their_own():
    originals = faces()
    num = len(originals)
    prints = packed([*originals, *(jpeg(mirrored(face), 60) for face in originals)])
    assert set(listed(found(prints))) == {(n, n + num, True) for n in range(num)}
    assert listed(found(prints, CopyConfig(flips=False, threads=1))) == []


def test_the_result_depends_on_the_prints_alone():
    originals = faces()
    prints = packed([*originals, *map(cropped, originals), *map(mirrored, originals)])
    one = found(prints)
    other = found(prints, CopyConfig(threads=3))
    assert listed(one) == listed(other)
    assert np.array_equal(one.likeness, other.likeness)
    places = np.random.default_rng(0).permutation(len(prints)).tolist()
    moved = {
        (min(places[a], places[b]), max(places[a], places[b]), flip)
        for a, b, flip in listed(found(prints[places]))
    }
    assert moved == set(listed(one))


def test_only_images_with_prints_are_looked_at():
    prints = packed([faces()[0]] * 3)
    pairs = find_copies(prints, np.array([True, False, True]), QUICK)
    assert listed(pairs) == [(0, 2, False)]
    none = find_copies(prints[:0], np.empty(0, np.bool_), QUICK)
    assert listed(none) == []


def test_progress_ends_at_the_number_of_images():
    told = []
    find_copies(
        packed(faces()), np.ones(len(faces()), np.bool_), QUICK, lambda *each: told.append(each)
    )
    assert told[-1] == (len(faces()), len(faces()))


def test_likeness_lays_one_picture_over_the_other():
    face = faces()[0]
    ours, theirs, stranger = (
        thumbs_of(packed([each])) for each in (face, cropped(face), faces()[1])
    )
    as_they_lie = np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]
    assert as_they_lie < 0.7
    assert likeness(ours, theirs)[0] > 0.9
    assert likeness(theirs, ours)[0] > 0.9
    assert likeness(ours, stranger)[0] < 0.7


# ------------------------------------------------------------------------------------- clumps


def nearly_equal(num: int) -> np.ndarray:
    """Prints of one face, each with a few bits and pixels changed."""
    random = np.random.default_rng(5)
    prints = np.repeat(packed([faces()[0]]), num, axis=0)
    shades = prints[:, 8 * len(CROPS) :].view(np.int8)
    shades += random.integers(-1, 2, shades.shape, np.int8)
    for row in prints:
        row[random.integers(0, 8)] ^= 1 << random.integers(0, 8)
    return prints


def test_one_picture_very_often_is_gathered_around_few_images():
    num = 4000
    prints = np.concatenate([nearly_equal(num), packed(faces()[1:])])
    pairs = found(prints)
    assert len(pairs.first) < 4 * num
    assert pairs.num_looked_at < 100_000  # all pairs are eight million
    copies = group_copies([None] * len(prints), pairs, [(0.0,)] * len(prints), None)
    assert [copy.of for copy in copies[:num]] == [0] * num
    assert copies[num:] == [None] * (len(prints) - num)


def test_the_best_of_a_clump_is_the_groups_best_wherever_it_stands():
    num = 1000
    rank = [(0.0,)] * num
    rank[777] = (1.0,)
    copies = group_copies([None] * num, found(nearly_equal(num)), rank, None)
    assert {copy.of for copy in copies} == {777}
    assert copies[777] == Copy(0, None, 777, 1.0)


def test_a_crowd_of_crops_of_one_picture_is_gathered_too(monkeypatch):
    random = np.random.default_rng(6)
    crops = [cropped(faces()[0], *random.uniform(0, 0.04, 4)) for _ in range(200)]
    prints = packed([faces()[0], *crops])
    monkeypatch.setattr(copies_clumps, "_MANY", 8)
    monkeypatch.setattr(copies_clumps, "_CROWD", 16)
    pairs = found(prints)
    assert pairs.num_looked_at < 2_000  # of 20,000
    copies = group_copies([None] * len(prints), pairs, [(1.0,)] + [(0.0,)] * 200, None)
    assert sum(copy is not None and copy.of == 0 for copy in copies) >= 197


# ------------------------------------------------------------------------------------- groups


def pairs_of(num, *each) -> Pairs:
    """Pairs as (first, second, is_flip)."""
    columns = list(zip(*each, strict=True)) if each else [(), (), ()]
    return Pairs(
        np.array(columns[0], np.int64),
        np.array(columns[1], np.int64),
        np.array(columns[2], np.bool_),
        np.full(len(each), 0.95, np.float32),
        np.arange(num),
    )


def kinds(copies):
    return [(copy.of, copy.kind) if copy else None for copy in copies]


def test_equal_files_are_exact_copies_of_the_best():
    copies = group_copies(["a", "b", "a", None, None], pairs_of(5), [(n,) for n in range(5)], None)
    assert kinds(copies) == [(2, "exact"), None, (2, None), None, None]


def test_groups_are_stars_and_no_chains():
    # 0 - 1 - 2 - 3 in a row, and 1 is the best: 3 is no copy of it, and alone.
    pairs = pairs_of(4, (0, 1, False), (1, 2, False), (2, 3, False))
    copies = group_copies([None] * 4, pairs, [(0,), (9,), (1,), (2,)], None)
    assert kinds(copies) == [(1, "near"), (1, None), (1, "near"), None]


def test_leftovers_form_groups_of_their_own():
    chain = [(n, n + 1, False) for n in range(4)]
    copies = group_copies([None] * 5, pairs_of(5, *chain), [(5,), (1,), (2,), (3,), (4,)], None)
    assert kinds(copies) == [(0, None), (0, "near"), None, (4, "near"), (4, None)]
    assert [copy.group for copy in copies if copy] == [0, 0, 1, 1]


def test_a_twin_of_a_near_copy_is_a_near_copy_of_the_best():
    pairs = pairs_of(3, (0, 1, False))
    copies = group_copies(["a", "b", "b"], pairs, [(9,), (1,), (1,)], None)
    assert kinds(copies) == [(0, None), (0, "near"), (0, "near")]


def test_near_comes_before_flip_and_equal_ranks_go_by_place():
    pairs = pairs_of(3, (0, 1, False), (0, 1, True), (0, 2, True))
    copies = group_copies([None] * 3, pairs, [(1,)] * 3, None)
    assert kinds(copies) == [(0, None), (0, "near"), (0, "flip")]


def test_different_people_are_never_grouped_and_unknown_ones_may_be():
    faces_of = np.zeros((4, 128), np.float32)
    faces_of[0, 0] = faces_of[1, 1] = faces_of[2, 0] = 1
    pairs = pairs_of(4, *((0, n, False) for n in (1, 2, 3)))
    copies = group_copies([None] * 4, pairs, [(9,), (1,), (1,), (1,)], faces_of)
    assert kinds(copies) == [(0, None), None, (0, "near"), (0, "near")]


# --------------------------------------------------------------------------------- real faces


def test_precision_and_recall_on_real_faces(shared_dir):
    shard = shared_dir / "data" / "faces-train" / "train-000000.tar"
    samples = itertools.islice(read_shard(str(shard)), 300)
    originals = [images.decode(sample.image.data)[1] for sample in samples]
    damages = list(DAMAGES.values())
    copies = [damages[n % len(damages)](face) for n, face in enumerate(originals)]
    ours = set(listed(found(packed([*originals, *copies]))))
    true = {(n, n + len(originals), False) for n in range(len(originals))}
    assert len(ours & true) / len(true) >= 0.98
    assert len(ours & true) / len(ours) >= 0.99


def test_pictures_that_are_all_unlike_are_not_compared_further():
    thumbs = np.random.default_rng(0).normal(size=(2, 24, 24)).astype(np.float32)
    assert (likeness(thumbs[:1], thumbs[1:], wanted=2.0) < 1).all()
    assert likeness(thumbs[:0], thumbs[:0]).shape == (0,)
