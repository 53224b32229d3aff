import numpy as np

from pipeline.faces.align import (
    TEMPLATE,
    TEMPLATE_SIZE,
    align,
    crop_place,
    crop_side,
    from_centres,
    similarity,
)


def test_the_similarity_is_found_exactly():
    angle, scale, shift = 0.3, 1.7, np.array([5.0, -2.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(TEMPLATE, TEMPLATE @ turn.T + shift)
    assert np.allclose(matrix, np.column_stack([turn, shift]))


def test_points_land_on_the_template():
    """A dot on each point is found at the template's place, without a half-pixel shift."""
    points = TEMPLATE * 0.7 + (40, 25)
    for point, goal in zip(points, TEMPLATE / 8, strict=True):
        y, x = np.indices((450, 450)) + 0.5
        blob = 255 * np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * 12**2))
        crop = align(np.dstack([blob.round().astype(np.uint8)] * 3), points, 64)[:, :, 0]
        weight = crop.astype(float) * (crop > 20)
        rows, columns = np.indices(crop.shape) + 0.5
        centre = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
        assert np.abs(centre - goal).max() < 0.1, (centre, goal)


def test_the_place_takes_the_points_to_the_unit_square():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    points = TEMPLATE @ turn.T * 0.3 + (300, 40)
    place = crop_place(points)
    assert np.allclose(points @ place[:, :2].T + place[:, 2], TEMPLATE / TEMPLATE_SIZE)
    assert np.isclose(crop_side(place), 0.3 * TEMPLATE_SIZE)


def test_a_mapping_of_places_becomes_one_of_indices():
    """Half the size: the middle of the first output pixel lies between the first two."""
    matrix = from_centres(np.array([[2.0, 0, 0], [0, 2.0, 10]]))
    assert matrix.tolist() == [[2, 0, 0.5], [0, 2, 10.5]]


def test_a_face_at_the_far_end_of_a_wide_photo_is_cut_alike():
    """Some resamplers count pixels in 16 bits."""
    points = TEMPLATE * 0.2 + (10, 10)
    small = np.random.default_rng(0).integers(0, 256, (130, 130, 3), np.uint8)
    wide = np.zeros((130, 40_000, 3), np.uint8)
    wide[:, 39_000:39_130] = small
    far = align(wide, points + np.array([39_000, 0]), 64).astype(int)
    assert np.abs(far - align(small, points, 64)).max() <= 1
