import json

import pytest


def test_presets_are_listed_with_their_sources(vsp):
    code, out, _ = vsp("degrade", "--list-presets")
    assert code == 0
    assert "codeformer: blur 1-15, reduction 4-30, noise 0-20, JPEG 30-80" in out
    assert "CodeFormer_stage2.yml" in out
    assert "underwater: blur 0.1-5.05, reduction 0.8-4.4, noise 0-10, JPEG 80-100, colours" in out


@pytest.fixture
def shards(tmp_path):
    from pipeline.tar import TarWriter

    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "a.tar").open("wb") as file:
        TarWriter(file).finish()
    return tmp_path / "in"


def test_a_dry_run_prints_the_settings_and_writes_nothing(vsp, shards, tmp_path):
    (tmp_path / "my.yaml").write_text("blur_sigma: [1, 2]\n")
    code, out, _ = vsp(
        "degrade", shards, tmp_path / "out", "-n", "--size", "64", "--preset", tmp_path / "my.yaml",
        "--set", "ranges.noise_sigma=[0, 3]",
    )  # fmt: skip
    assert (code, (tmp_path / "out").exists()) == (0, False)
    config = json.loads(out.splitlines()[0])
    assert config["size"] == 64
    assert config["ranges"]["blur_sigma"] == [1, 2]
    assert config["ranges"]["noise_sigma"] == [0, 3]
    assert config["ranges"]["reduction"] == [0.8, 8]
    assert "1 shards to do" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--preset", "codefromer"],
            "no such preset; did you mean codeformer?",
        ),
        (["--preset", "free-form"], "flip or gray the true face too; add --keep-hq"),
        (
            ["--set", "ranges.blur_sgma=[1,2]"],
            "'blur_sgma'; did you mean 'blur_sigma'?",
        ),
        (["--set", "ranges.blur_sigma=[3,1]"], "the lower end comes first"),
        (["--preset", "faded", "--set", "ranges.colour.kind=sepia"], "sepia"),
        (
            ["--preset", "faded", "--set", "ranges.colour.withe=[0.5,1]"],
            "'withe'; did you mean 'white'?",
        ),
        (["--size", "7"], "should be greater than or equal to 8"),
        (["--preset", "missing.yaml"], "missing.yaml: No such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(vsp, shards, tmp_path, arguments, told):
    code, out, err = vsp("degrade", shards, tmp_path / "out", *arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
