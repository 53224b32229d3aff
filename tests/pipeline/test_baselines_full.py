"""The real architectures with random weights, through the real loader: ten seconds a face each."""

import pytest
import torch
from safetensors.torch import save_file

from pipeline.baselines.others import load_baseline
from pipeline.benchmark.cost import count
from pipeline.errors import UserError
from pipeline.replica import Baseline
from vsp_model.runtime import RuntimeConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]
SIZE = 512


def gfpgan():
    from spandrel.architectures.GFPGAN import GFPGAN

    return GFPGAN(
        out_size=SIZE, num_style_feat=512, channel_multiplier=2, decoder_load_path=None,
        fix_decoder=False, num_mlp=8, input_is_latent=True, different_w=True, narrow=1,
        sft_half=True,
    )  # fmt: skip


def restoreformer():
    from spandrel.architectures.RestoreFormer import RestoreFormer

    return RestoreFormer()


def codeformer():
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

    return CodeFormer()


@pytest.mark.parametrize(
    ("arch", "build", "options", "suffix", "params_m", "gmacs"),
    [
        ("gfpgan", gfpgan, {"randomize_noise": False}, "pth", 86.44, 197.77),
        ("restoreformer", restoreformer, {}, "safetensors", 72.68, 341.40),
        ("codeformer", codeformer, {"weight": 0.8}, "pth", 94.11, 404.88),
    ],
)
def test_a_checkpoint_restores_as_its_network_does(
    tmp_path, arch, build, options, suffix, params_m, gmacs
):
    torch.manual_seed(0)
    network = build().eval()
    path = tmp_path / f"net.{suffix}"
    state = network.state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save({"params_ema": state}, path)
    spec = Baseline(path=path, weights_sha256="", arch=arch, w=0.8)
    restorer = load_baseline(spec, RuntimeConfig())
    lq = torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(restorer.restore(lq, ["a"]), network(lq, **options)[0])

    num_parameters, macs = count(restorer)
    assert num_parameters / 1e6 == pytest.approx(params_m, abs=0.005)
    assert macs / 1e9 == pytest.approx(gmacs, abs=0.005)

    other = "gfpgan" if arch == "restoreformer" else "restoreformer"
    with pytest.raises(UserError, match=r"correct `arch`|no network"):
        load_baseline(spec.model_copy(update={"arch": other}), RuntimeConfig())
