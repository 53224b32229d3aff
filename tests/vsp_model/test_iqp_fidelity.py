"""Stage III of IQP: who learns from what."""

import pytest
import torch

from tests.vsp_model.tiny_iqp import NAN, SIZE, batch_of, moment, stage_of, step_on
from vsp_model.ask import Ask

pytestmark = pytest.mark.usefixtures("one_thread")

PATCHES = {"network": {"channels": 16, "num_layers": 1}, "starts_at": 0.5}


@pytest.mark.parametrize("train_encoder", [False, True])
def test_only_the_fusion_learns_unless_the_encoder_may(train_encoder):
    stage = stage_of("fidelity", train_encoder=train_encoder)
    terms = stage.accumulate(batch_of(), moment())
    assert ("anchor" in terms) == train_encoder
    for name, net in stage.parts.items():
        moved = any(p.grad is not None for p in net.parameters())
        assert moved == (name == "fusion" or (name == "lq_encoder" and train_encoder))


def test_w_is_1_or_drawn():
    assert stage_of("fidelity")._fidelity(batch_of(), moment()).tolist() == [[[[1.0]]]] * 4
    drawn = stage_of("fidelity", random_share=1.0)._fidelity(batch_of(), moment()).flatten()
    assert len(set(drawn.tolist())) == 4
    assert (drawn < 1).all()


def test_w_may_grow_late_in_the_run():
    stage = stage_of("fidelity", late={"starts_at": 0.5})
    given = [stage._fidelity(batch_of(), moment(n))[0].item() for n in range(4)]
    assert given == pytest.approx([1.0, 1.0, 1.3, 1.3])


def picture_of(stage, batch):
    """What stage III makes at w = 1, with its graph."""
    latent = stage.model.encode(batch.lq, fused=True)
    quality = stage.model.embedding.condition.percentile(batch.quality)
    scores = stage.model.scores(latent.places, quality)
    feature = stage.model.feature(scores, latent.places, quality)
    return stage.model.dictionary.decode(feature, stage.model.modulation(latent, 1.0))


def test_stage_3s_adversary_is_balanced_at_the_last_shift():
    """Where CodeFormer compares the gradients: the decoder's own last layer is frozen."""
    alone, stage = stage_of("fidelity"), stage_of("fidelity", patches=PATCHES | {"weight": 0.1})
    assert "balance" not in step_on(stage, batch_of())[1]
    terms, figures = step_on(stage, batch_of(1), 2)
    assert torch.isfinite(terms["adversarial"])
    assert 0 < figures["balance"] <= 1
    step_on(stage, batch_of(1), 2)
    step_on(alone, batch_of(1), 2)
    assert all(p.grad is None for p in stage.model.dictionary.parameters())
    others, both = (s.parts["fusion"].sides[str(SIZE)].shift.weight for s in (alone, stage))
    (own,) = torch.autograd.grad(-stage.patches.net(picture_of(stage, batch_of(1))).mean(), both)
    expected = others.grad + 0.1 * figures["balance"] * own
    torch.testing.assert_close(both.grad, expected, atol=1e-7, rtol=1e-3)
    assert not torch.allclose(both.grad, others.grad)


def loud(stage):
    with torch.no_grad():  # codes of the size of latents, so that a gate shows
        for book in (stage.model.dictionary.common, stage.model.dictionary.hq):
            book.codes.normal_()
    return stage


def test_training_and_restoring_without_a_condition_add_the_same():
    stage = loud(stage_of("fidelity", model={"condition": None}))
    settings = stage.model.settle(Ask())._replace(fidelity=1.0)
    for quality in ((0.9,) * 4, (0.1, NAN, 0.2, 0.9)):
        batch = batch_of(quality=quality)
        terms = stage.accumulate(batch, moment())
        with torch.no_grad():
            image = stage.model(batch.lq, settings=settings)
        torch.testing.assert_close(terms["l1"], (image - batch.hq).abs().mean())
    untold = stage_of("codes", model={"condition": None})
    assert (
        untold._predict(batch_of(), torch.full((4,), NAN)).gate.tolist() == [pytest.approx(0.8)] * 4
    )


def test_qualities_are_withheld_where_the_condition_learns():
    model = {"condition": {"drop": 1.0}}
    assert stage_of("books", model=model).accumulate(batch_of(), moment())["above"] == 0.5
    losses = {
        kind: [
            loud(stage_of(kind, model=model))
            .accumulate(batch_of(quality=(quality,) * 4), moment())["loss"]
            .item()
            for quality in (0.1, 0.9)
        ]
        for kind in ("codes", "fidelity")
    }
    assert losses["codes"][0] == losses["codes"][1]
    assert losses["fidelity"][0] != losses["fidelity"][1]


def test_only_the_stage_that_trains_a_condition_gives_it_the_scores():
    knots = [0.2 + n / 1000 for n in range(101)]
    taken = {}
    for kind in ("codes", "fidelity"):
        stage = stage_of(kind)
        stage.observe_scores(knots)
        taken[kind] = stage.result()["embedding"].condition.knots
    assert taken["codes"].tolist() == pytest.approx(knots)
    assert taken["fidelity"].tolist() == pytest.approx([n / 100 for n in range(101)])


def test_there_is_no_stage_3_without_sides():
    with pytest.raises((ValueError, KeyError), match="fidelity_sides: empty"):
        stage_of("fidelity", model={"fidelity_sides": ()})
