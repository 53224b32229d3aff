"""The quality condition inside VSPBFR."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from tests.vsp_model.tiny import some_faces, some_keys, tiny_model
from vsp_model import checkpoints
from vsp_model.ask import Ask
from vsp_model.checkpoints import hollow
from vsp_model.condition import NUM_KNOTS
from vsp_model.runtime import Runtime, RuntimeConfig
from vsp_model.style_condition import StyleCondition
from vsp_model.vspbfr import VSPBFR, VSPBFRConfig

ROOT = Path(__file__).resolve().parents[2]
BUILT_IN = ROOT / "vsp_model" / "weights" / "vspbfr-128.safetensors"
QUALITY = ROOT / "configs" / "models" / "vspbfr-128-quality.yaml"
SIZE = 32
MODES = ("continuous", "quantile_bins")
PLACES = ("codes", "time", "style", "global_code")


def with_condition(plain, **condition):
    """The same weights in a model with a new condition."""
    config = plain.config
    part = {
        "num_tokens": config.encoder.num_tokens,
        "style_dim": config.encoder.style_dim,
        "global_dim": config.restoration.global_dim,
        **condition,
    }
    whole = VSPBFR(VSPBFRConfig.model_validate(config.model_dump() | {"condition": part}))
    missing, unknown = whole.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown
    assert {name.split(".")[0] for name in missing} == {"condition"}
    return whole.eval()


def teach(conditioned, *places, scale=0.5):
    """Draw the weights of these additions, as if they were trained."""
    embedding = conditioned.condition.embedding
    generator = torch.Generator().manual_seed(4)
    widths = conditioned.condition.config.widths
    rows = dict(zip(PLACES, embedding.second.weight.split(widths), strict=True))
    with torch.no_grad():
        for place in places:
            rows[place].normal_(std=scale, generator=generator)
    return conditioned


@pytest.fixture(scope="module")
def plain():
    return tiny_model(SIZE)


@pytest.fixture(scope="module")
def taught(plain):
    return teach(with_condition(plain), *PLACES)


def restore(net, items=(0, 1), **options):
    faces = some_faces(6, SIZE)
    return net.restore(faces[list(items)], [some_keys(6)[i] for i in items], **options)


# A new condition.


ASKED = [
    Ask(),
    Ask(quality=0.0),
    Ask(quality=0.37),
    Ask(quality=1.0),
    Ask(quality="unknown"),
    Ask(quality=0.9, guidance=2.5),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_new_condition_changes_no_bit(plain, mode, batch):
    inserted, items = with_condition(plain, mode=mode), range(batch)
    expected = restore(plain, items)
    for ask in ASKED:
        assert torch.equal(restore(inserted, items, ask=ask), expected), ask


@pytest.mark.parametrize(
    "switch", [{"diffuser": False}, {"style_prompt": False}, {"facial_priors": False}]
)
def test_nor_where_a_part_is_switched_off(switch):
    plain = tiny_model(SIZE, **switch)
    asked = restore(with_condition(plain), ask=Ask(quality=0.9))
    assert torch.equal(asked, restore(plain))


def test_nor_in_reduced_precision():
    plain = tiny_model(SIZE)  # a runtime keeps its model
    config = RuntimeConfig(precision="bf16")
    faces, keys = some_faces(2, SIZE), some_keys(2)
    expected = Runtime(plain, config).restore(faces, keys)
    inserted = Runtime(with_condition(plain), config, Ask(quality=0.9))
    assert torch.equal(inserted.restore(faces, keys), expected)


def test_nor_in_the_built_in_models_weights():
    whole = checkpoints.load(BUILT_IN)
    config = VSPBFRConfig.model_validate(yaml.safe_load(QUALITY.read_text())["model"])
    assert config == whole.config
    weights = {n: t for n, t in whole.state_dict().items() if not n.startswith("condition.")}
    plain = VSPBFR(config.model_copy(update={"condition": None})).eval()
    plain.load_state_dict(weights)  # as a file that knows nothing of a condition
    inserted = VSPBFR(config).eval()
    inserted.load_state_dict(plain.state_dict(), strict=False)
    faces = some_faces(1, 128)
    asked = inserted.restore(faces, ["a"], ask=Ask(quality=0.9))
    assert torch.equal(asked, plain.restore(faces, ["a"]))


# A trained one.


@pytest.mark.parametrize("place", PLACES)
def test_each_addition_reaches_the_picture(plain, place):
    moved = teach(with_condition(plain), place)
    low, high = (restore(moved, ask=Ask(quality=quality)) for quality in (0.1, 0.9))
    assert (low - high).abs().max() > 1e-4
    assert torch.equal(restore(moved), restore(plain))  # unknown has weights of its own


def test_the_codes_that_are_shown_are_the_encoders(taught, plain):
    faces, keys = some_faces(2, SIZE), some_keys(2)
    seen, before = taught.inspect(faces, keys, ask=Ask(quality=0.9)), plain.inspect(faces, keys)
    assert torch.equal(seen.codes, before.codes)
    assert not torch.equal(seen.w_plus, before.w_plus)


@pytest.mark.parametrize("ask", [Ask(), Ask(quality=0.2), Ask(quality=0.8, guidance=1.7)])
def test_inspection_restores_the_same_bits(taught, ask):
    seen = taught.inspect(some_faces(2, SIZE), some_keys(2), ask=ask)
    assert torch.equal(seen.restored, restore(taught, ask=ask))


def test_bits_do_not_depend_on_order_or_neighbours(taught):
    ask = Ask(quality=0.8, guidance=1.5)
    first = restore(taught, (0, 1, 2), ask=ask)
    assert torch.equal(restore(taught, (2, 1, 0), ask=ask).flip(0), first)
    assert torch.equal(restore(taught, (4, 5, 1), ask=ask)[2], first[1])


def test_guidance_is_of_the_picture(taught):
    asked, unknown = restore(taught, ask=Ask(quality=0.8)), restore(taught)
    assert torch.equal(restore(taught, ask=Ask(quality=0.8, guidance=1.0)), asked)
    assert torch.equal(restore(taught, ask=Ask(quality=0.8, guidance=0.0)), unknown)
    further = restore(taught, ask=Ask(quality=0.8, guidance=2.0))
    assert torch.allclose(further, 2 * asked - unknown, atol=1e-5)
    with pytest.raises(ValueError, match="ask for a quality, too"):
        restore(taught, ask=Ask(guidance=2.0))


def test_the_encoder_runs_once_under_guidance(taught):
    calls = []
    hook = taught.encoder.register_forward_hook(lambda *_: calls.append(1))
    restore(taught, ask=Ask(quality=0.8, guidance=2.0))
    hook.remove()
    assert len(calls) == 1


def test_the_model_has_a_quality_of_its_own(plain, taught):
    usual = with_condition(plain, default=0.8)
    usual.condition.load_state_dict(taught.condition.state_dict())
    assert torch.equal(restore(usual), restore(taught, ask=Ask(quality=0.8)))
    drawn = usual.drawn(some_keys(2))
    with torch.no_grad():
        faces = some_faces(2, SIZE).contiguous(memory_format=torch.channels_last)
        assert torch.equal(usual(faces, drawn), restore(usual))


def test_a_model_that_saw_no_scores_has_no_quality_of_its_own(plain, taught):
    unscored = with_condition(plain, default=0.8)
    unscored.condition.load_state_dict(taught.condition.state_dict())
    unscored.condition.embedding.set_distribution([math.nan] * NUM_KNOTS)
    assert torch.equal(restore(unscored), restore(taught, ask=Ask(quality="unknown")))
    with pytest.raises(ValueError, match="quality: this vspbfr model was trained without scores;"):
        restore(unscored, ask=Ask(quality=0.5))


def test_what_the_model_cannot_do_is_refused(plain, taught):
    with pytest.raises(ValueError, match="trained without a quality condition"):
        restore(plain, ask=Ask(quality=0.5))
    with pytest.raises(ValueError, match=r"quality: 1\.5, expected 0 to 1"):
        restore(taught, ask=Ask(quality=1.5))
    with pytest.raises(ValueError, match="steps: not known to vspbfr models"):
        restore(taught, ask=Ask(steps=3))


@pytest.mark.parametrize("wrong", ["num_tokens", "style_dim", "global_dim"])
def test_a_condition_of_another_network_is_refused(plain, wrong):
    with pytest.raises(ValueError, match=rf"condition\.{wrong} 7: expected the (encoder|restorat)"):
        with_condition(plain, **{wrong: 7})


@pytest.mark.parametrize("mode", MODES)
def test_a_bundle_keeps_the_condition(plain, mode, tmp_path):
    saved = with_condition(plain, mode=mode)
    with torch.no_grad():
        for parameter in saved.condition.parameters():
            parameter.uniform_(-0.3, 0.3)
    saved.condition.embedding.set_distribution([k**2 / 1e4 for k in range(NUM_KNOTS)])
    checkpoints.save(saved, tmp_path / "model.safetensors")
    loaded = checkpoints.load(tmp_path / "model.safetensors")
    ask = Ask(quality=0.3)
    assert torch.equal(restore(loaded, ask=ask), restore(saved, ask=ask))
    assert loaded.condition.embedding.percentile(torch.tensor([0.25])).item() == 0.5
    empty = hollow(lambda: StyleCondition(saved.config.condition))
    assert all(parameter.is_meta for parameter in empty.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("ask", [Ask(quality=0.3), Ask(quality=0.8, guidance=2.0)])
def test_it_compiles_in_one_piece(taught, ask):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()  # runs each graph as it is and counts them
    compiled = torch.compile(taught, fullgraph=True, backend=counter)
    faces = some_faces(2, SIZE).contiguous(memory_format=torch.channels_last)
    drawn, settings = taught.drawn(some_keys(2)), taught.settle(ask)
    with torch.no_grad():
        assert torch.equal(compiled(faces, drawn, settings), taught(faces, drawn, settings))
    assert counter.frame_count == 1
    torch._dynamo.reset()
