import numpy as np

from pipeline.faces.align import TEMPLATE, align, similarity


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
