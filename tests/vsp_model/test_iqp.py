"""IQP as a restorer: its parts, what may be asked of it, and the mistakes of the released code."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from tests.vsp_model.tiny import some_faces, some_keys
from tests.vsp_model.tiny_iqp import SIZE, TINY, awake, config, made, restored
from vsp_model.ask import Ask
from vsp_model.checkpoints import fill, hollow
from vsp_model.iqp.backbone import Decoder, Encoder
from vsp_model.iqp.codebook import Codebook, above, book_loss, gate
from vsp_model.iqp.config import BackboneConfig, BooksConfig, IQPConfig, PredictorConfig
from vsp_model.iqp.dictionary import Codes, Dictionary, as_map, as_places, straight_through
from vsp_model.iqp.model import IQP, adain
from vsp_model.iqp.predictor import Predictor

# -------------------------------------------------------------------------- networks


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
def test_the_backbone_goes_there_and_back(unshuffle):
    backbone = BackboneConfig(
        size=32, unshuffle=unshuffle, channels=16, multipliers=(1, 2), latent=8, groups=8
    )
    encoder, decoder = Encoder(backbone), Decoder(backbone)
    first = 32 // unshuffle
    latent, kept = encoder.features(some_faces(2, 32), (first,))
    assert latent.shape == (2, 8, first // 2, first // 2)
    assert {side: tuple(x.shape) for side, x in kept.items()} == {first: (2, 16, first, first)}
    tail = [] if unshuffle == 1 else [(32, 16)]
    seen = []
    image = decoder(latent, lambda side, x: seen.append((side, x.shape[1])) or x)
    assert image.shape == (2, 3, 32, 32)
    assert seen == [(first // 2, 32), (first, 16), *tail]


def test_stage_3_reaches_what_is_finer_than_the_unshuffled_pixels():
    model = awake(made(fidelity_sides=(SIZE,)), "fusion.")
    face, feature = some_faces(1, SIZE), torch.zeros(1, (SIZE // 4) ** 2, 16)

    @torch.no_grad()
    def decoded(seen):
        return model.dictionary.decode(feature, model.fusion({SIZE: seen}, 1.0))

    dotted = face.clone()
    dotted[..., ::2, ::2] += 0.1
    changed = decoded(dotted) - decoded(face)
    coarse = F.interpolate(F.avg_pool2d(changed, 2), scale_factor=2)
    assert (changed - coarse).abs().mean() > 0.1 * changed.abs().mean()


def test_the_published_sizes_are_the_defaults():
    model = hollow(lambda: IQP(IQPConfig()))
    assert model.config.encoder.latent_side == 16
    assert model.predictor.head.weight.shape == (2048, 512)
    assert model.predictor.head.bias is None
    assert model.dictionary.common.codes.shape == model.dictionary.hq.codes.shape == (1024, 256)
    assert model.embedding.condition.unknown.shape == (16 * 16 * 256,)
    assert list(model.fusion.sides) == ["32", "64", "128", "256"]


def test_a_hollow_model_is_filled():
    model = made()
    filled = fill(hollow(lambda: IQP(model.config)), model.state_dict()).eval()
    lq = some_faces(2, SIZE)
    assert torch.equal(
        restored(filled.to(memory_format=torch.channels_last), lq), restored(model, lq)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fidelity_sides": (64,)}, "sides: no level of 64 pixels; there are .32, 16, 8."),
        (
            {"books": {"fusion": "attention"}, "encoder": TINY["encoder"] | {"latent": 20}},
            "latent 20: can't be split among 8 heads",
        ),
        (
            {"transformer": {"width": 32, "num_heads": 5}},
            "width 32: can't be split among 5 heads",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_the_file_is_read(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


# ----------------------------------------------------------------------------- codes


def test_the_nearest_code_is_the_nearest():
    torch.manual_seed(0)
    book = Codebook(10, 4, learnt=True)
    assert book.codes.abs().max() <= 1 / 10
    with torch.no_grad():
        book.codes.normal_()
    places = torch.randn(3, 5, 4)
    expected = torch.cdist(places, book.codes[None].expand(3, -1, -1)).argmin(dim=2)
    assert torch.equal(book.nearest(places), expected)


def test_beta_stands_where_it_is_asked_for():
    places = torch.zeros(1, 2, 3, requires_grad=True)
    codes = torch.ones(1, 2, 3, requires_grad=True)
    found = {}
    for side in ("legacy", "paper"):
        loss = book_loss(places, codes, BooksConfig(beta_side=side, beta=0.25)).sum()
        assert loss.item() == 1.25
        pulls = torch.autograd.grad(loss, [places, codes])
        found[side] = [round(pull.abs().sum().item(), 6) for pull in pulls]
    assert found == {"legacy": [2.0, 0.5], "paper": [0.5, 2.0]}
    alone = book_loss(places, codes, BooksConfig(update="average")).sum()
    assert torch.autograd.grad(alone, codes, allow_unused=True) == (None,)


def test_the_gate_is_soft_in_what_is_asked_and_hard_in_what_teaches():
    books = BooksConfig(alpha=0.8, threshold=0.5, softness=0.05)
    asked = torch.tensor([-1.0, 0.0, 0.4, 0.5, 0.6, 1.0, 7.0, math.nan])
    weight = gate(asked, books)
    assert weight[3].item() == pytest.approx(0.4)
    assert weight[0] == weight[1] < 1e-3  # clamped, and a low quality adds nothing
    assert weight[5] == weight[6] > 0.799
    assert (weight[:6].diff() >= 0).all()
    assert weight[7].item() == pytest.approx(0.8)  # as without a condition
    assert above(asked, books).tolist() == [False] * 4 + [True] * 3 + [False]


@pytest.mark.parametrize("fusion", ["add", "attention"])
def test_both_books_say_their_part(fusion):
    torch.manual_seed(0)
    dictionary = Dictionary(config(books=TINY["books"] | {"fusion": fusion}).dictionary)
    codes = Codes(torch.randint(24, (2, 64)), torch.randint(16, (2, 64)))
    weight = torch.tensor([0.0, 0.5])
    feature = dictionary.look_up(codes, weight)
    common, hq = dictionary.common(codes.common), dictionary.hq(codes.hq)
    assert torch.equal(feature[0], common[0])
    if fusion == "add":
        torch.testing.assert_close(feature[1], common[1] + 0.5 * hq[1])
    assert not torch.equal(feature[1], common[1])


def test_a_single_book_is_enough():
    model = made(books={"num_codes": 24, "num_codes_hq": 0})
    assert model.dictionary.hq is None
    assert restored(model, some_faces(2, SIZE)).shape == (2, 3, SIZE, SIZE)


def test_maps_and_places_are_each_others_inverse():
    latent = torch.randn(2, 3, 4, 4)
    assert torch.equal(as_map(as_places(latent), 4), latent)


def test_straight_through_has_the_codes_values_and_the_latents_gradient():
    places = torch.randn(1, 2, 3, requires_grad=True)
    codes = torch.randn(1, 2, 3, requires_grad=True)
    passed = straight_through(places, codes)
    torch.testing.assert_close(passed, codes)
    passed.sum().backward()
    assert torch.equal(places.grad, torch.ones(1, 2, 3))
    assert codes.grad is None


def test_index_0_of_the_last_axis_is_hq():
    """As in the released head (pitfall 4)."""
    widths = {"latent": 8, "num_tokens": 4, "width": 16, "num_heads": 2, "hidden": 16}
    settings = PredictorConfig(num_codes=6, num_codes_hq=5, num_layers=1, **widths)
    predictor = Predictor(settings)
    scores = predictor(torch.randn(2, 4, 8))
    assert scores.shape == (2, 4, 6, 2)
    common, hq = predictor.split(scores)
    assert torch.equal(common, scores[..., 1])
    assert torch.equal(hq, scores[..., :5, 0])
    best = predictor.best(scores)
    assert torch.equal(best.hq, hq.argmax(dim=2))
    assert torch.equal(best.common, common.argmax(dim=2))


# ------------------------------------------------------------------------- stage III


def test_an_untrained_fusion_changes_nothing():
    model = made()
    lq = some_faces(2, SIZE)
    none = restored(model, lq, fidelity=0)
    assert all(torch.equal(restored(model, lq, fidelity=w), none) for w in (0.3, 1.0))


def test_fidelity_0_is_the_codes_alone_and_more_is_more():
    model = awake(made(), "fusion.")
    lq = some_faces(2, SIZE)
    at = {w: restored(model, lq, fidelity=w) for w in (0.0, 0.5, 1.0)}
    assert torch.equal(at[0.0], restored(made(), lq))
    assert not torch.equal(at[0.5], at[1.0])


# ----------------------------------------------------------------------------- colours


def test_adain_gives_the_means_and_deviations():
    torch.manual_seed(0)
    feature, like = torch.randn(2, 50, 4), torch.randn(2, 50, 4) * 3 + 2
    given = adain(feature, like)
    torch.testing.assert_close(given.mean(dim=1), like.mean(dim=1))
    torch.testing.assert_close(given.std(dim=1), like.std(dim=1), rtol=1e-3, atol=1e-3)


def test_colour_transfer_can_be_off():
    lq = some_faces(1, SIZE)
    assert not torch.equal(restored(made(), lq), restored(made(colour_transfer=False), lq))


# --------------------------------------------------------------------- bits and batches


def test_a_face_has_the_same_bits_at_every_place():
    model = awake(made(fidelity=0.5))
    lq, keys = some_faces(4, SIZE), some_keys(4)
    whole = model.restore(lq, keys)
    order = [2, 0, 3, 1]
    assert torch.equal(model.restore(lq[order], [keys[i] for i in order]), whole[order])
    others = torch.cat([some_faces(3, SIZE, seed=9), lq[:1]])
    assert torch.equal(model.restore(others, keys)[3], whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("fidelity", [0.0, 0.5])
def test_it_compiles_in_one_graph(fidelity):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, counter = awake(made(fidelity=fidelity)), CompileCounter()
    lq, settings = some_faces(2, SIZE), model.settle(Ask(guidance=2.0))
    with torch.no_grad():
        expected = model(lq, model.drawn(some_keys(2)), settings)
        model.compile(fullgraph=True, backend=counter)
        assert torch.equal(model(lq, model.drawn(some_keys(2)), settings), expected)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_bad_faces_are_refused():
    with pytest.raises(ValueError, match="faces: got 16 x 16 pixels"):
        restored(made(), some_faces(1, 16))
