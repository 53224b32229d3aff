import cv2
import numpy as np
import pytest
from skimage import data

from pipeline.faces.align import crop_side, cut
from pipeline.faces.paste import FEATHER, INSET, Patch, paste


def place_of(side_px, turn_deg=0.0, centre=(222.3, 132.8)):
    """Where a crop of a given side, turn and middle lies."""
    turn = np.deg2rad(turn_deg)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / side_px
    return np.column_stack([linear, 0.5 - linear @ centre])


def depth(shape, place):
    """Distance of every pixel's middle from the crop's border, in sides of the crop."""
    y, x = np.indices(shape[:2]) + 0.5
    crop = np.tensordot(place[:, :2], np.stack([x, y]), 1) + place[:, 2, None, None]
    return np.minimum(crop, 1 - crop).min(0)


def shift_between(before, after):
    """(down, right) in pixels, by least squares over the gradients."""
    # Smoothed, because first differences understate the slopes of the finest detail.
    one, other = (cv2.GaussianBlur(picture.mean(2), (0, 0), 1.5) for picture in (before, after))
    slopes = np.stack([slope.ravel() for slope in np.gradient(one)], axis=1)
    return np.linalg.lstsq(slopes, (one - other).ravel(), rcond=None)[0]


@pytest.fixture(scope="module")
def portrait():
    return data.astronaut()


def solid(value, size=64):
    return np.full((size, size, 3), value, np.uint8)


def test_the_measure_of_shift_sees_a_quarter_pixel(portrait):
    one, other = (
        cv2.resize(portrait[40:320, 100 - x : 380 - x], (70, 70), interpolation=cv2.INTER_AREA)
        for x in (0, 1)
    )
    assert shift_between(one, other) == pytest.approx([0, 0.25], abs=0.03)


@pytest.mark.parametrize("turn_deg", [0, 12, 45, 90])
@pytest.mark.parametrize(("side_px", "size"), [(60, 64), (80, 64), (120, 128), (160, 512)])
def test_a_crop_comes_back_where_it_was(portrait, side_px, size, turn_deg):
    scale = side_px / 160
    photo = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    place = place_of(side_px, turn_deg, np.array([222.3, 132.8]) * scale)
    result = paste(photo, [Patch(cut(photo, place, size), place)])
    full = depth(photo.shape, place) >= INSET + FEATHER
    error = ((photo[full].astype(float) - result[full]) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > (31 if side_px > size else 35)
    x, y = np.array([222.3, 132.8]) * scale
    middle = np.s_[
        round(y - side_px / 4) : round(y + side_px / 4),
        round(x - side_px / 4) : round(x + side_px / 4),
    ]
    assert np.abs(shift_between(photo[middle], result[middle])).max() < 0.05


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_outside_the_window_every_bit_is_kept(dtype, channels):
    high = np.iinfo(dtype).max
    photo = np.random.default_rng(0).integers(0, high, (300, 400, channels), dtype, endpoint=True)
    before = photo.copy()
    place = place_of(150, 20, (200, 150))
    result = paste(photo, [Patch(solid(255), place)])
    assert (photo == before).all()
    assert (result.shape, result.dtype) == (photo.shape, photo.dtype)
    inside = depth(photo.shape, place)
    assert (result == photo)[inside <= INSET].all()
    assert (result == high)[inside >= INSET + FEATHER].all()
    assert (result != photo)[inside > INSET + FEATHER / 2].mean() > 0.99


def test_no_step_shows_at_the_border():
    """A face 40 levels brighter than its photo rises over many pixels and starts from nothing."""
    photo = np.full((400, 400, 3), 100, np.uint8)
    place = place_of(240, 30, (200, 200))
    change = paste(photo, [Patch(solid(140), place)])[:, :, 0].astype(int) - 100
    some = depth(photo.shape, place) > INSET
    for axis in (0, 1):
        step = np.abs(np.diff(change, axis=axis))
        border = np.diff(some.astype(int), axis=axis) != 0
        assert border.any()
        assert step[border].max() <= 1
        assert step.max() <= 4
    assert change.max() == 40


def test_a_fine_crop_does_not_alias():
    """Stripes of one pixel at 512 become gray in a photo where the face has 64 pixels."""
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[::2] = 255
    photo = np.zeros((200, 200, 3), np.uint8)
    place = place_of(64, 0, (100.3, 100.4))
    result = paste(photo, [Patch(stripes, place)])
    full = depth(photo.shape, place) >= INSET + FEATHER
    assert np.ptp(result[full]) < 12
    assert result[full].mean() == pytest.approx(127.5, abs=2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_blend_goes_from_the_photo_to_the_face(dtype):
    unit = np.iinfo(dtype).max // 255
    photo = np.full((200, 200, 3), 50 * unit, dtype)
    place = place_of(100, 0, (100, 100))
    values = [
        int(paste(photo, [Patch(solid(150), place)], blend)[100, 100, 0]) for blend in (0, 0.25, 1)
    ]
    assert values == [50 * unit, 75 * unit, 150 * unit]
    random = np.random.default_rng(0).integers(0, 255 * unit, (200, 200, 3), dtype)
    assert (paste(random, [Patch(solid(150), place)], 0) == random).all()


def test_gray_takes_the_brightness_of_the_face():
    photo = np.zeros((200, 200, 1), np.uint8)
    green = np.zeros((64, 64, 3), np.uint8)
    green[:, :, 1] = 200
    assert paste(photo, [Patch(green, place_of(100, 0, (100, 100)))])[100, 100] == 117


@pytest.mark.parametrize("centre", [(0, 0), (199.5, 10), (100, 260), (-500, 40)])
def test_a_crop_may_reach_outside_the_photo(centre):
    photo = np.zeros((200, 200, 3), np.uint8)
    place = place_of(150, 15, centre)
    result = paste(photo, [Patch(solid(200), place)])
    inside = depth(photo.shape, place)
    assert (result[inside >= INSET + FEATHER] == 200).all()
    assert (result[inside <= INSET] == 0).all()


def test_neighbours_keep_the_middle_of_their_faces():
    photo = np.zeros((300, 300, 3), np.uint8)
    left, right = place_of(150, 0, (110, 150)), place_of(150, 0, (190, 150))
    patches = [Patch(solid(100), left), Patch(solid(200), right)]
    for order in (patches, patches[::-1]):
        result = paste(photo, order)[:, :, 0]
        assert (result[130:170, 95:125] == 100).all()
        assert (result[130:170, 175:205] == 200).all()
    assert (paste(photo, patches) == paste(photo, patches)).all()
    # Laid twice in the middle, but blended once.
    assert paste(photo, patches, 0.5)[150, 100, 0] == 50


def test_the_side_is_measured_in_the_photo():
    assert crop_side(place_of(137.5, 33)) == pytest.approx(137.5)
