import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.vsp_model import tiny_idm, tiny_iqp
from vsp_model import cost, registry
from vsp_model.ask import Ask
from vsp_model.iqp.config import IQPConfig
from vsp_model.ops import fir_kernel, upfirdn2d
from vsp_model.randomness import draw
from vsp_model.runtime import Runtime, RuntimeConfig
from vsp_model.vspbfr import VSPBFRConfig

CHANNELS = [32, 32, 16, 16]


IQP = IQPConfig.model_validate(tiny_iqp.TINY | {"fidelity": 0.5})
DIALLED = tiny_idm.config(unet={"condition": {}})


def tiny(style_dim: int = 32, condition: dict | None = None, **restoration) -> VSPBFRConfig:
    """32 pixels and a prior of 64, so that the restorer needs a part of it."""
    return VSPBFRConfig.model_validate(
        {
            "encoder": {
                "input_size": 32,
                "num_tokens": 8,
                "style_dim": style_dim,
                "pyramid_channels": 16,
                "stem_channels": 8,
                "stage_channels": [8, 8, 16, 16],
                "stage_units": [1, 1, 1, 1],
                "reduction": 4,
            },
            "diffuser": {"num_tokens": 8, "style_dim": style_dim, "num_blocks": 2},
            "prior": {
                "size": 64,
                "style_dim": style_dim,
                "channels": [*CHANNELS, 8],
                "mapping_layers": 2,
            },
            "restoration": {
                "size": 32,
                "style_dim": style_dim,
                "channels": CHANNELS,
                "global_dim": 32,
                "mapping_layers": 2,
                **restoration,
            },
            "condition": condition,
        }
    )


@pytest.fixture(scope="module")
def counted() -> cost.ModelCost:
    return cost.count(tiny())


@pytest.fixture(scope="module")
def model():
    return registry.untrained(tiny()).requires_grad_(False)


def test_a_convolution_is_counted_once_per_product_and_elementwise_work_not_at_all():
    x, weight, scale = torch.randn(1, 8, 16, 16), torch.randn(4, 8, 3, 3), torch.randn(1, 8, 1, 1)
    macs = cost.count_macs(lambda: F.conv2d(x, weight * scale, padding=1).mul(2).relu())
    assert macs == (16 * 16 * 4 * 8 * 9, 0)


def test_fir_filters_are_counted_apart():
    x, linear = torch.randn(1, 8, 16, 16), torch.randn(16, 5)
    macs = cost.count_macs(lambda: upfirdn2d(x, fir_kernel(), pad=(2, 1, 2, 1)) @ linear)
    assert macs == (8 * 16 * 16 * 5, 8 * 16 * 16 * 16)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_modules_add_up_to_what_a_real_restoration_computes(
    counted, model, one_thread, batch_size
):
    lq = torch.zeros(batch_size, 3, 32, 32)
    random = draw(model.random_shapes, [str(i) for i in range(batch_size)])
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model(lq, random)
    per_image = counted.total.macs + counted.total.fir_macs
    assert flops.get_total_flops() == 2 * batch_size * per_image


def vspbfr_with_a_dial() -> VSPBFRConfig:
    return tiny(condition={"num_tokens": 8, "style_dim": 32, "global_dim": 32})


@pytest.mark.parametrize(
    ("config", "ask"),
    [
        (vspbfr_with_a_dial(), Ask(quality=0.5)),
        (vspbfr_with_a_dial(), Ask(quality=0.5, guidance=2)),
        (IQP, Ask()),
        (IQP, Ask(fidelity=0)),
        (IQP, Ask(guidance=2)),
        (DIALLED, Ask(steps=1)),
        (DIALLED, Ask(quality=0.5, guidance=2)),
        (DIALLED, Ask(start="estimate", t0=0.02, steps=2)),
        (tiny_idm.config(eta=0.5), Ask()),
        (tiny_idm.config(sampler="ancestral"), Ask()),
    ],
    ids=lambda each: getattr(each, "kind", "-".join(sorted(each.model_fields_set))),
)
def test_what_is_asked_costs_what_it_really_computes(config, ask, one_thread):
    model = registry.untrained(config).requires_grad_(False)
    settings, lq = model.settle(ask), torch.zeros(1, 3, config.size, config.size)
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model(lq, model.drawn(["a"]), settings)
    total = cost.count(config, settings).total
    assert flops.get_total_flops() == 2 * (total.macs + total.fir_macs)
    if ask == Ask():
        assert cost.count(config).total == total


def test_parameters_and_buffers_are_those_of_the_real_model(counted, model):
    parts = (model.encoder, model.diffuser, model.prior, model.restoration)
    for part, found in zip(parts, counted.modules.values(), strict=True):
        assert found.parameters == sum(p.numel() for p in part.parameters())
        assert found.parameters + found.buffers == sum(
            t.numel() for t in part.state_dict().values()
        )
    assert counted.total.parameters == sum(p.numel() for p in model.parameters())


def test_the_image_of_a_larger_prior_is_counted_apart(counted):
    needed, whole = counted.modules["stylegan_generator"], counted.generator_with_image
    assert 0 < needed.macs < whole.macs
    assert 0 < needed.fir_macs < whole.fir_macs
    more = counted.total_with_image.macs - counted.total.macs
    assert more == whole.macs - needed.macs


def test_ablated_parts_cost_nothing_and_counting_takes_no_memory():
    config = tiny(style_dim=2**17, facial_priors=False).model_copy(update={"diffuser": None})
    counted = cost.count(config)
    bank = counted.modules["stylegan_generator"]
    assert "code_diffuser" not in counted.modules
    assert (bank.macs, bank.fir_macs) == (0, 0)
    assert counted.total.parameters * 4 > 2**37  # bytes: few machines hold them


def test_speed_and_memory_are_measured(model, one_thread):
    speed = cost.measure(Runtime(model, RuntimeConfig(precision="bf16")), batch_size=2)
    assert 3 <= len(speed.round_s) <= 10
    assert speed.images_per_s_best == 2 / min(speed.round_s)
    assert 0 < speed.images_per_s_median <= speed.images_per_s_best
    assert speed.peak_bytes is None or 50e6 < speed.peak_bytes < 100e9
    assert (speed.precision, speed.threads) == ("bf16", 1)
    assert speed.device
    assert speed.finite


def test_a_result_that_is_not_finite_is_told(one_thread):
    broken = registry.untrained(tiny())
    broken.encoder.latent_avg.fill_(torch.nan)
    assert not cost.measure(Runtime(broken, RuntimeConfig())).finite


@pytest.mark.gpu
def test_a_gpu_tells_its_peak_and_its_name(model):
    speed = cost.measure(Runtime(registry.untrained(tiny()), RuntimeConfig(device="cuda")), 4)
    assert speed.device == torch.cuda.get_device_name()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert weights < speed.peak_bytes < weights + 2**30
    assert speed.peak_of == "allocated on the device"
