"""Which metrics are computed, and what is said of the others."""

import pytest

from pipeline.errors import UserError
from pipeline.metrics.choose import BY_FAMILY, choose
from pipeline.metrics.table import BY_NAME, BY_PROTOCOL, METRICS


def names_of(choice) -> set[str]:
    return {name for chosen in choice.chosen for name in chosen.metrics}


def test_every_metric_has_one_family_and_one_protocol():
    listed = [name for family in BY_FAMILY.values() for name in family.metrics]

    assert sorted(listed) == sorted(BY_NAME)
    assert len(BY_PROTOCOL) == len(METRICS)


def test_default_takes_what_is_at_hand_and_names_the_rest_with_the_fix(tmp_path):
    choice = choose(["default"], tmp_path, has_truth=True, has_reference=False)

    assert {"psnr", "ssim", "detail", "niqe-small", "nme-yunet"} <= names_of(choice)
    assert "deg-vqfr" not in " ".join(choice.missing)
    (line,) = (line for line in choice.missing if line.startswith("lpips-alex"))
    assert "alexnet-owt-7be5be79.pth" in line
    assert "vsp weights list" in line


def test_without_truths_only_what_looks_at_the_image_alone_is_left(tmp_path):
    choice = choose(["default"], tmp_path, has_truth=False, has_reference=False)

    assert names_of(choice) == {"niqe-small"}
    assert all(BY_NAME[name].kind == "alone" for name in names_of(choice))


def test_a_file_that_is_there_is_used_and_hashed(shared_dir):
    folder = shared_dir / "weights"
    (chosen,) = choose(["lpips-squeeze"], folder, has_truth=True, has_reference=False).chosen

    assert chosen.weights_sha256 == chosen.files["squeezenet1_1_imagenet1k_fp16.safetensors"]
    assert len(chosen.weights_sha256) == 64


@pytest.mark.parametrize(
    ("names", "has_truth", "fault"),
    [
        (["lpips-vgg"], True, "vgg16-397923af.pth"),
        (["psnr"], False, "--gt"),
        (["fid"], True, "--reference"),
        (["nicqe"], True, "did you mean niqe?"),
        (["musiq"], True, "--iqa-python"),
    ],
)
def test_what_was_named_and_cannot_be_computed_is_refused(tmp_path, names, has_truth, fault):
    with pytest.raises(UserError, match=fault):
        choose(names, tmp_path, has_truth=has_truth, has_reference=False)


def test_a_metric_is_taken_before_a_family_of_its_name(shared_dir):
    folder = shared_dir / "weights"

    assert names_of(choose(["identity"], folder, has_truth=True, has_reference=False)) == {
        "identity"
    }
    assert names_of(choose(["pixels"], folder, has_truth=True, has_reference=False)) == {
        "psnr",
        "ssim",
    }
