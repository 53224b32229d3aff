"""What may be asked of an IQP: a quality, guidance, fidelity, and what becomes of the HQ+ codes."""

import math

import pytest
import torch

from tests.vsp_model.tiny import some_faces
from tests.vsp_model.tiny_iqp import SIZE, awake, config, made, restored
from vsp_model.ask import Ask
from vsp_model.condition import NUM_KNOTS, Dial
from vsp_model.iqp.codebook import gate
from vsp_model.iqp.config import IQPConfig
from vsp_model.iqp.model import IQP, Settings


@pytest.mark.parametrize("num_codes_hq", [0, 16])
def test_a_condition_that_was_never_trained_changes_no_code_and_unknown_no_bit(num_codes_hq):
    books = {"num_codes": 24, "num_codes_hq": num_codes_hq}
    plain, conditioned = made(condition=None, books=books), IQP(config(books=books))
    conditioned.load_state_dict(plain.state_dict(), strict=False)
    conditioned = conditioned.eval().to(memory_format=torch.channels_last)
    lq = some_faces(3, SIZE)
    for quality in (math.nan, 0.3):
        asked, scores = torch.full((3,), quality), []
        for model in (plain, conditioned):
            places = model.encode(lq, fused=False).places
            scores.append(model.scores(places, asked))
        assert torch.equal(*scores)
        unknown = math.isnan(quality)
        picture = restored(conditioned, lq, quality="unknown" if unknown else quality)
        # A number turns the gate of the HQ+ book, which a model without the condition has not.
        assert torch.equal(picture, restored(plain, lq)) == (unknown or num_codes_hq == 0)


def test_a_book_that_no_score_fed_stays_out():
    model = awake(made(), "embedding.")
    lq = some_faces(2, SIZE)
    model.embedding.condition.set_distribution([math.nan] * NUM_KNOTS)
    assert model.gate(torch.tensor([0.9, math.nan])).tolist() == [0, 0]
    unasked = restored(model, lq)
    with torch.no_grad():
        model.dictionary.hq.codes.normal_()
    assert torch.equal(restored(model, lq), unasked)


def test_a_quality_is_embedded_without_touching_the_latent():
    """The released code adds in place, into what it keeps for later (pitfall 2)."""
    model = awake(made())
    places = torch.randn(2, 64, 16)
    before = places.clone()
    model.conditioned(places, torch.tensor([0.9, 0.1]))
    assert torch.equal(places, before)


@pytest.mark.parametrize("quality", [0.0, 1.0, 0.5, "unknown"])
@pytest.mark.parametrize("mode", ["continuous", "quantile_bins"])
def test_every_quality_gives_a_picture(quality, mode):
    """The released table has no row for 1.0 (pitfall 1), and no way without a score (5, 6)."""
    model = awake(made(condition={"mode": mode, "default": 0.9}))
    assert torch.isfinite(restored(model, some_faces(2, SIZE), quality=quality)).all()


def test_qualities_beyond_the_scale_count_as_its_ends():
    model = awake(made())
    lq = some_faces(2, SIZE)

    def at(quality):
        with torch.no_grad():
            return model(lq, settings=Settings(Dial(quality), 0.0))

    assert torch.equal(at(1.7), at(1.0))
    assert torch.equal(at(-0.3), at(0.0))


def test_a_low_quality_leaves_the_hq_codes_out():
    """The released code adds them whatever is asked for (pitfall 3)."""
    model = made(colour_transfer=False)
    lq = some_faces(2, SIZE)
    low, high = restored(model, lq, quality=0.0), restored(model, lq, quality=1.0)
    other = made(colour_transfer=False)
    with torch.no_grad():
        other.dictionary.hq.codes.mul_(-1)
    moved = (restored(other, lq, quality=0.0) - low).abs().max()
    assert moved < 1e-2 < (restored(other, lq, quality=1.0) - high).abs().max()


def test_without_a_condition_the_hq_codes_are_always_added():
    asked = torch.tensor([0.0, 1.0, math.nan])
    told, untold = made(), made(condition=None, colour_transfer=False)
    assert torch.equal(told.gate(asked), gate(asked, told.config.books))
    assert told.gate(asked)[2] == untold.gate(asked)[2]
    assert untold.gate(asked).tolist() == pytest.approx([0.8] * 3)
    lq = some_faces(2, SIZE)
    before = restored(untold, lq)
    with torch.no_grad():
        untold.dictionary.hq.codes.mul_(-1)
    assert (restored(untold, lq) - before).abs().max() > 1e-2


def test_alpha_belongs_to_the_weights():
    """The released command's default is another than its training's."""
    assert "alpha" not in Ask.model_fields
    assert IQPConfig().books.alpha == 0.8


def test_guidance_goes_beyond_what_the_condition_says():
    model = awake(made())
    half, unknown = torch.full((2,), 0.5), torch.full((2,), math.nan)
    with torch.no_grad():
        lq = some_faces(2, SIZE)
        places = model.encode(lq, fused=False).places
        one, none = model.scores(places, half), model.scores(places, unknown)
        expected = model.feature(none + 3 * (one - none), places, half)
        image = model.dictionary.decode(expected)
        assert torch.equal(model(lq, settings=Settings(Dial(0.5, 3.0), 0.0)), image)
    assert not torch.equal(
        restored(model, lq, quality=0.5), restored(model, lq, quality=0.5, guidance=3)
    )


def test_the_model_has_wishes_of_its_own():
    model = awake(made(fidelity=0.25))
    assert model.settle(Ask()) == Settings(Dial(0.9, 1.0), 0.25)
    lq = some_faces(2, SIZE)
    assert torch.equal(restored(model, lq), restored(model, lq, quality=0.9, fidelity=0.25))


@pytest.mark.parametrize(
    ("changes", "ask", "message"),
    [
        ({"fidelity_sides": ()}, {"fidelity": 0.5}, "fidelity: this iqp model was trained without"),
        ({"condition": None}, {"quality": 0.5}, "quality: this iqp model was trained without"),
        ({}, {"quality": 1.5}, "quality: 1.5, expected 0 to 1 or unknown"),
        ({}, {"steps": 4}, "steps: not known to iqp models"),
    ],
)
def test_what_it_can_not_do_is_refused_in_one_line(changes, ask, message):
    with pytest.raises(ValueError, match=message):
        made(**changes).settle(Ask(**ask))


def test_fidelity_0_is_allowed_without_stage_3():
    assert made(fidelity_sides=()).settle(Ask(fidelity=0)).fidelity == 0
