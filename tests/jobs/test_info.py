"""`vsp info`: what it prints for a configuration and for a bundle, and what it refuses."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from jobs import info
from vsp_model import checkpoints, cost, registry
from vsp_model.bundle import BundleInfo, PriorConfig, specs_of, writing
from vsp_model.stylegan2 import StyleGAN2, StyleGAN2Config
from vsp_model.vspbfr import VSPBFRConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "models"
SHAPES = {"size": 32, "style_dim": 16, "channels": [16, 16, 8, 8], "mapping_layers": 2}
TINY = {
    "encoder": {
        "input_size": 32,
        "num_tokens": 8,
        "style_dim": 16,
        "pyramid_channels": 8,
        "stem_channels": 4,
        "stage_channels": [4, 4, 8, 8],
        "stage_units": [1, 1, 1, 1],
        "reduction": 4,
    },
    "diffuser": {"num_tokens": 8, "style_dim": 16, "num_blocks": 1},
    "prior": SHAPES,
    "restoration": {**SHAPES, "global_dim": 16},
}


@pytest.fixture(scope="module")
def published() -> tuple[info.Source, cost.ModelCost]:
    source = info.find_source(CONFIGS / "vspbfr-512.yaml")
    return source, cost.count(source.config)


@pytest.fixture
def bundle(tmp_path) -> Path:
    model = registry.untrained(VSPBFRConfig.model_validate(TINY))
    path = tmp_path / "tiny.safetensors"
    sources = {"code_diffuser.pt": "ab" * 32}
    checkpoints.save(model, path, sources=sources, notes=("dropped [args] of the diffuser",))
    return path


@pytest.fixture
def threads():
    """One: where others compute too, the threads of a tiny network mostly wait for each other."""
    before = torch.get_num_threads()
    yield 1
    torch.set_num_threads(before)


@pytest.fixture
def published_counts(request) -> dict[str, int]:
    """Parameters per module, read off the published classes."""
    path = ROOT / "tests" / "parity_data" / "state_dict_keys.json"
    if not path.is_file():
        path = request.getfixturevalue("shared_dir") / "parity" / "state_dict_keys.json"
    return json.loads(path.read_text())["parameter_counts"]


def test_parameters_agree_with_the_published_modules(published, published_counts):
    report = info.to_json(*published, None)
    for name, module in report["modules"].items():
        assert module["parameters"] == published_counts[name], name
    assert report["sum"]["parameters"] == published_counts["inference_total"]


def test_operations_agree_with_a_count_of_the_published_code(published):
    """GMAC without and with FIR, truncated to two places, counted on the published modules.

    Ours lie up to 0.01 above: demodulation is a matrix product here, there it is elementwise.
    """
    modules = dict(published[1].modules, whole=published[1].generator_with_image)
    found = {n: (c.macs / 1e9, (c.macs + c.fir_macs) / 1e9) for n, c in modules.items()}
    assert found["style_encoder"] == pytest.approx((72.48, 72.48), abs=0.01)
    assert found["code_diffuser"] == pytest.approx((0.912, 0.912), abs=0.001)
    assert found["stylegan_generator"] == pytest.approx((49.90, 50.42), abs=0.01)
    assert found["whole"] == pytest.approx((74.26, 75.38), abs=0.01)
    assert found["restoration_net"] == pytest.approx((204.09, 205.14), abs=0.01)


def test_the_papers_row_stands_apart_from_ours(published, capsys):
    report = info.to_json(*published, None)
    assert report["published"]["parameters"] == 420_880_000
    assert report["published"]["operations"] == 570_210_000_000
    assert "0.31 M" in report["published"]["unexplained"]
    info.show(*published, None)
    rows = capsys.readouterr().out.splitlines()
    (paper,) = [row for row in rows if "420.88 M" in row]
    assert "570.21 G" in paper
    (ours,) = [row for row in rows if "counted: one restoration" in row]
    assert ours.split()[-7:-4] == ["M", "327.40", "G"]
    assert not any("420.57" in row and "420.88" in row for row in rows)


@pytest.mark.parametrize("width", [80, 100])
def test_the_tables_fit(published, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    info.show(*published, None)
    rows = capsys.readouterr().out.splitlines()
    assert max(map(len, rows)) <= width
    numbers = [row.rstrip() for row in rows if row.rstrip().endswith(("72.481", "328.963"))]
    assert len({len(row) for row in numbers}) == 1, "numbers stand to the right"
    assert not any("…" in row for row in rows), "nothing is cut"


def test_a_bundle_tells_its_digest_and_sources_and_is_measured(vsp, bundle, threads, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = vsp("info", bundle, "--bench", "--batch-size", 2, "--threads", threads)
    assert (code, err) == (0, "")
    assert f"sha256 {checkpoints.sha256_of(bundle)}" in out
    assert f"sha256 {'ab' * 32}" in out
    assert "dropped [args] of the diffuser" in out
    assert "not the published one; bundle" in out
    assert "images/s, median" in out
    assert "batches of 2" in out
    assert f"{threads} threads" in out
    assert "570.21" not in out


def test_a_configuration_is_counted_and_measured_as_json(vsp, tmp_path, threads):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"model": TINY}))
    code, out, err = vsp("info", path, "--json", "--bench", "--threads", threads)
    report = json.loads(out)
    assert (code, err) == (0, "")
    for key in ("parameters", "buffers", "macs", "fir_macs"):
        assert report["sum"][key] == sum(module[key] for module in report["modules"].values())
    assert report["config"]["restoration"]["size"] == 32
    assert [report[key] for key in ("sha256", "bundle", "published")] == [None] * 3
    bench = report["bench"]
    assert (bench["threads"], bench["batch_size"], bench["precision"]) == (threads, 1, "fp32")
    assert (bench["weights"], bench["finite"]) == ("untrained", True)
    assert bench["images_per_s_best"] == 1 / min(bench["round_s"])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_model_is_counted(vsp, path):
    code, out, err = vsp("info", path)
    assert (code, err) == (0, "")
    assert "sum for one restoration" in out


def test_dry_run_prints_the_settings_only(vsp):
    code, out, _ = vsp("info", CONFIGS / "vspbfr-64.yaml", "-n")
    assert code == 0
    assert VSPBFRConfig.model_validate_json(out).size == 64


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("missing.yaml", None, "missing.yaml: no such model"),
        ("m.txt", "model: 1", "m.txt: neither .safetensors nor .yaml"),
        ("m.yaml", "model: [", "m.yaml:1: not valid YAML"),
        ("m.yaml", "model:\n  pripr: {}\n", "m.yaml:2: model: unknown key 'pripr'; did you mean"),
        ("m.yaml", "model:\n  prior:\n    szie: 64\n", "m.yaml:3: model.prior: unknown key 'szie'"),
        ("m.yaml", "model:\n  prior:\n    size: 48\n", "m.yaml:2: model.prior: size 48: expected"),
        ("m.safetensors", "cut", "m.safetensors: not a whole safetensors file"),
    ],
)
def test_a_bad_file_is_one_line(vsp, tmp_path, monkeypatch, name, text, told):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)
    code, out, err = vsp("info", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_a_changed_bundle_is_refused(vsp, bundle):
    with bundle.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    code, _, err = vsp("info", bundle)
    assert code == 2
    assert "changed or damaged" in err


def test_a_bundle_without_a_restorer_is_named(vsp, tmp_path):
    config = StyleGAN2Config.model_validate(SHAPES)
    state = StyleGAN2(config).state_dict()
    path = tmp_path / "prior.safetensors"
    with writing(path, specs_of(state), BundleInfo(config=PriorConfig(prior=config))) as writer:
        writer.write("", state)
    code, _, err = vsp("info", path)
    assert code == 2
    assert "of kind 'stylegan2'; only whole restorers are counted" in err


@pytest.mark.parametrize("device", ["cuda:99", "toaster", "meta"])
def test_a_device_that_is_not_here_is_named(vsp, device):
    code, out, err = vsp("info", CONFIGS / "vspbfr-64.yaml", "--bench", "--device", device)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--device '{device}'" in err


SIBLINGS = [CONFIGS / name for name in ("iqp-128.yaml", "idm-128.yaml")]


def test_siblings_are_counted_module_by_module_and_compared(vsp):
    code, out, _ = vsp("info", *SIBLINGS, "--json")
    assert code == 0
    iqp, idm = json.loads(out)
    assert set(iqp["modules"]) >= {"lq_encoder", "dictionary", "predictor", "embedding", "fusion"}
    for found in (iqp, idm):
        parts = found["modules"].values()
        assert found["sum"]["macs"] == sum(part["macs"] for part in parts) > 10**8
        assert found["sum"]["parameters"] == sum(part["parameters"] for part in parts) > 10**6
        assert found["generator_with_image"] is None
    code, out, _ = vsp("info", *SIBLINGS)
    assert code == 0
    assert "Transformer" in out
    last = [line.strip() for line in out.splitlines() if line.strip()][-2:]
    assert [line.split()[0] for line in last] == ["iqp-128.yaml", "idm-128.yaml"]


def test_steps_of_diffusion_count_each(vsp, tmp_path):
    text = SIBLINGS[1].read_text()
    macs = []
    for steps in (1, 3):
        path = tmp_path / f"idm-{steps}.yaml"
        path.write_text(re.sub(r"\n  steps: \d+", "", text) + f"  steps: {steps}\n")
        code, out, _ = vsp("info", path, "--json")
        assert code == 0
        macs.append(json.loads(out)["sum"]["macs"])
    assert macs[1] == 3 * macs[0]
