"""What a bad batch is told: one line, what came, in which items, what is expected."""

import pytest
import torch

from tests.vsp_model.tiny import some_faces, some_keys, tiny_model
from vsp_model.faces import check_faces, finite_items

EXPECTED = "; expected (B, 3, 32, 32) float32 RGB in [-1, 1]"


def told(lq, keys=None):
    with pytest.raises(ValueError, match=r"^faces: ") as error:
        check_faces(lq, 32, some_keys(len(lq)) if keys is None else keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def with_value(value, *items, count=3):
    lq = some_faces(count, 32)
    for item in items:
        lq[item, 1, 2, 3] = value
    return lq


def test_a_good_batch_passes():
    for count in (1, 5):
        check_faces(some_faces(count, 32), 32, some_keys(count))
    check_faces(torch.full((1, 3, 32, 32), 1.0005), 32, ["resampling may overshoot a little"])
    check_faces(some_faces(2, 32).to(memory_format=torch.channels_last), 32, ["a", "b"])


@pytest.mark.parametrize(
    ("lq", "message"),
    [
        (torch.zeros(3, 32, 32), "faces: got 3 axes (3, 32, 32)"),
        (torch.zeros(2, 4, 32, 32), "faces: got 4 channels"),
        (torch.zeros(2, 1, 32, 32), "faces: got 1 channels"),
        (torch.zeros(2, 3, 64, 64), "faces: got 64 x 64 pixels"),
        (torch.zeros(2, 3, 32, 48), "faces: got 32 x 48 pixels"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "faces: got uint8"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.float64), "faces: got float64"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16), "faces: got bfloat16"),
    ],
)
def test_wrong_shape_or_type(lq, message):
    assert told(lq) == message + EXPECTED


def test_keys_must_match_the_faces():
    expected = "faces: got 3 faces and 2 keys; expected one key a face"
    assert told(some_faces(3, 32), ["a", "b"]) == expected
    assert told(some_faces(3, 32), []) == "faces: got 3 faces and 0 keys; expected one key a face"
    assert told(torch.zeros(0, 3, 32, 32), []).startswith("faces: got 0 faces and 0 keys")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_no_numbers_are_located(value):
    message = "faces: NaN or infinite values in item 1 (face-1)"
    assert told(with_value(value, 1)) == message + EXPECTED


@pytest.mark.parametrize(("value", "shown"), [(255.0, "255"), (-1.5, "1.5"), (1.002, "1.002")])
def test_another_value_range_is_located(value, shown):
    message = f"faces: values up to {shown} in items 0 (face-0), 2 (face-2)"
    assert told(with_value(value, 0, 2)) == message + EXPECTED


def test_a_long_list_of_items_is_cut():
    message = told(with_value(torch.nan, *range(1, 7), count=8))
    assert "items 1 (face-1), 2 (face-2), 3 (face-3), 4 (face-4) and 2 more; expected" in message


def test_finite_items_names_each_item():
    assert finite_items(with_value(torch.nan, 1)).tolist() == [True, False, True]
    assert finite_items(with_value(-torch.inf, 0, 2)).tolist() == [False, True, False]


@pytest.mark.parametrize("method", ["restore", "inspect"])
def test_the_restorer_checks_before_it_computes(method):
    model = tiny_model(32)
    model.encoder = None  # nothing may be computed
    with pytest.raises(ValueError, match=r"item 1 \(face-1\)"):
        getattr(model, method)(with_value(torch.nan, 1), some_keys(3))
