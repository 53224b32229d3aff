"""The hot path compiles in one piece; the eager backend needs no compiler on the machine."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.vsp_model.tiny import lively, some_faces, some_keys, tiny_config
from vsp_model import registry
from vsp_model.randomness import draw


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


@pytest.mark.parametrize(
    ("count", "noise", "mixing", "autocast"),
    [(1, "mean", False, True), (2, "seeded", True, False)],
    ids=["one face, mean, bfloat16", "two faces, seeded, mixing"],
)
def test_forward_is_one_graph_with_the_same_result(model, count, noise, mixing, autocast):
    faces = some_faces(count, 32)
    inputs = draw(model.random_shapes, some_keys(count), 0, noise, mixing=mixing)
    counter = CompileCounter()  # runs each graph as it is and counts them
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(compiled(faces, inputs), model(faces, inputs))
        assert torch.equal(compiled(faces.flip(3), inputs), model(faces.flip(3), inputs))
    assert counter.frame_count == 1  # one graph, and no second one for the next batch


@pytest.mark.slow
def test_every_other_batch_size_shares_a_graph(model):
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for count in (1, 2, 3, 4, 7):
            inputs = draw(model.random_shapes, some_keys(count))
            faces = some_faces(count, 32)
            assert torch.equal(compiled(faces, inputs), model(faces, inputs))
    assert counter.frame_count <= 3  # one face, the first batch, any batch
