"""The self-test of weight files: known values of those at hand, and what it says of wrong ones."""

import pytest
import torch

from pipeline import golden
from pipeline.errors import UserError
from pipeline.golden import GOLDEN, self_test
from pipeline.known_weights import KNOWN


def test_only_known_files_have_golden_values():
    assert set(GOLDEN) <= {known.name for known in KNOWN}


def test_the_files_at_hand_give_their_golden_values(shared_dir):
    folder = shared_dir / "weights"
    torch.set_num_threads(1)
    if not (folder / "mobilefacenet_ms1m.safetensors").is_file():
        pytest.skip("needs the judges' weights beside the checkout")
    tested = {each.name: each for each in self_test(folder=folder)}
    assert {name for name in GOLDEN if (folder / name).is_file()} <= set(tested)
    assert len(tested) > 5
    assert {each.verdict for each in tested.values()} <= {"ok", "none"}, tested


def test_another_value_is_told_beside_the_expected_one(monkeypatch, tmp_path):
    for given, verdict, told in [
        ((1.0, 2.04), "ok", "a value: 1 2.04"),
        ((1.0, 2.2), "FAILED", "a value: expected 1 2, got 1 2.2"),
        ((1.0,), "FAILED", "a value: expected 1 2, got 1"),
        ((), "FAILED", "a value: expected 1 2, got nothing"),
        ((1.0, float("nan")), "FAILED", "a value: expected 1 2, got 1 nan"),
    ]:
        known = golden.Golden("a value", (1, 2), 0.05, lambda path, given=given: given)
        monkeypatch.setitem(GOLDEN, "GFPGANv1.4.pth", known)
        (tmp_path / "GFPGANv1.4.pth").write_bytes(b"x")
        (tested,) = self_test("GFPGANv1.4.pth", tmp_path)
        assert (tested.verdict, tested.line) == (verdict, told)


def test_a_damaged_file_fails_in_one_line_and_a_missing_one_is_refused(tmp_path):
    names = [name for name in GOLDEN if "yunet" not in name]
    for name in names:
        (tmp_path / name).write_bytes(b"<html>an error page</html>")
    (tmp_path / "yunet_n_dynamic.onnx").write_bytes(b"<html>")
    tested = self_test(folder=tmp_path)
    assert {each.name for each in tested} == set(GOLDEN)
    for each in tested:
        assert each.verdict == "FAILED", each
        assert "\n" not in each.line
    with pytest.raises(UserError, match="get it from"):
        self_test("codeformer.pth", tmp_path)
