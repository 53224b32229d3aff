"""The hot path compiles in one piece; the eager backend needs no compiler on the machine."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.vsp_model.tiny import lively, some_faces, some_keys, tiny_config
from vsp_model import registry
from vsp_model.randomness import draw
from vsp_model.restoration import RestorationConfig, RestorationNet


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model():
    """Tracing takes time by the layer: one block and two steps of diffusion."""
    config = tiny_config(32)
    diffuser = config.diffuser.model_copy(update={"num_blocks": 1, "num_steps": 2})
    return lively(registry.untrained(config.model_copy(update={"diffuser": diffuser})))


def whole(model, count, **options):
    return some_faces(count, 32), draw(model.random_shapes, some_keys(count), **options)


def same_in_one_graph(module, *batches, graphs=1):
    """Compiled without a break, the module gives the same bits for each batch of arguments."""
    counter = CompileCounter()  # runs each graph as it is and counts them
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    with torch.no_grad():
        for batch in batches:
            assert torch.equal(compiled(*batch), module(*batch))
    assert counter.frame_count <= graphs


@pytest.mark.slow
def test_two_faces_with_style_mixing(model):
    faces, inputs = whole(model, 2, mixing=True)
    same_in_one_graph(model, (faces, inputs), (faces.flip(3), inputs))


def test_one_face_folded_into_its_weights_in_bfloat16():
    """The restoration net alone: the whole restorer of one face is among the slow tests."""
    config = RestorationConfig(size=8, style_dim=8, channels=(8, 4), global_dim=4, mapping_layers=1)
    net = lively(RestorationNet(config)).eval()
    noise = [torch.randn(1, 1, side, side) for side in net.noise_sides()]
    priors = [torch.randn(1, 8, 4, 4), torch.randn(1, 4, 8, 8)]
    batch = some_faces(1, 8), torch.randn(1, 4, 8), torch.randn(1, 1, 8), priors, noise
    with torch.autocast("cpu", torch.bfloat16):
        same_in_one_graph(net, batch)


@pytest.mark.slow
def test_one_face_without_noise_in_bfloat16(model):
    with torch.autocast("cpu", torch.bfloat16):
        same_in_one_graph(model, whole(model, 1, mode="mean"))


@pytest.mark.slow
def test_every_batch_size_shares_a_graph(model):
    batches = [whole(model, count) for count in (1, 2, 3, 4, 7)]
    same_in_one_graph(model, *batches, graphs=3)  # one face, the first batch, any batch
