"""The stages of IQP, the third apart (test_iqp_fidelity.py): who learns from what."""

import math

import pytest
import torch

from tests.vsp_model.tiny_iqp import (
    BOOKS,
    KINDS,
    NAN,
    SIZE,
    TINY,
    USED,
    batch_of,
    brightness,
    moment,
    stage_of,
    step_on,
)
from vsp_model.ask import Ask
from vsp_model.checkpoints import load, save_parts
from vsp_model.iqp.codebook import BookKeeper, Codebook
from vsp_model.iqp.config import BooksConfig
from vsp_model.train.iqp_codes import IQPCodesConfig
from vsp_model.train.iqp_losses import structure_loss
from vsp_model.train.judges import Judges

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------- stage I


@pytest.mark.parametrize("low", [(0.1, 0.5, 0.0, NAN), (NAN,) * 4, (-3.0, 0.2, 0.4, 0.49)])
def test_a_low_score_gives_the_hq_book_no_gradient(low):
    stage = stage_of("books")
    stage.accumulate(batch_of(quality=low), moment())
    gradient = stage.dictionary.hq.codes.grad
    assert gradient is None or not gradient.any()  # exactly zero
    assert stage.dictionary.common.codes.grad.any()
    stage.accumulate(batch_of(quality=(0.1, 0.1, 0.51, NAN)), moment())
    assert stage.dictionary.hq.codes.grad.any()


def hq_state(stage):
    keeper = stage.keepers["keeper.hq"]
    return [stage.dictionary.hq.codes.clone(), *(b.clone() for b in keeper.buffers())]


def test_a_low_score_leaves_the_averaged_hq_book_bit_for_bit():
    stage = stage_of("books", model={"books": BOOKS})
    for n in range(4):
        step_on(stage, batch_of(n), n)
    before = hq_state(stage)
    for n in range(4, 8):
        step_on(stage, batch_of(n, quality=(0.1, 0.5, 0.0, NAN)), n)
        assert all(torch.equal(a, b) for a, b in zip(before, hq_state(stage), strict=True))
    step_on(stage, batch_of(9, quality=(0.1, 0.1, 0.51, NAN)), 9)
    after = hq_state(stage)
    codes, counts, sums = 0, 4, 5  # of the book, and of its keeper's buffers
    assert all(not torch.equal(before[n], after[n]) for n in (codes, counts, sums))


def test_averaged_codes_have_no_gradient_and_follow_their_latents():
    stage = stage_of("books", model={"books": BOOKS | {"restart_steps": 0, "decay": 0.9}})
    book = stage.dictionary.common
    assert not book.codes.requires_grad
    keeper = stage.keepers["keeper.common"]
    batch = batch_of()
    with torch.no_grad():
        places = stage.encoder(batch.hq).flatten(2).mT
        member = torch.nn.functional.one_hot(book.nearest(places).flatten(), 24).float()
    counts = 0.9 + 0.1 * member.sum(dim=0)
    sums = 0.9 * book.codes + 0.1 * member.T @ places.flatten(0, 1)
    used = member.any(dim=0)
    expected = torch.where(used[:, None], sums / counts[:, None], book.codes)
    step_on(stage, batch)
    torch.testing.assert_close(keeper.counts, counts)
    torch.testing.assert_close(book.codes, expected)
    assert keeper.used() == used.float().mean()


def test_unused_codes_begin_anew_at_latents_of_the_batch():
    torch.manual_seed(0)
    book = Codebook(6, 4, learnt=False)
    keeper = BookKeeper(book, BooksConfig(update="average", restart_steps=3))
    places = torch.randn(50, 4)

    def step(indices):
        keeper.observe(places, indices, torch.Generator().manual_seed(1))
        return keeper.follow(book, 1)

    assert step(torch.zeros(50, dtype=torch.int64)) == 5  # those that the first step does not use
    assert all((book.codes[k] == places).all(dim=1).any() for k in range(1, 6))
    kept = book.codes[1:].clone()
    assert [step(torch.zeros(50, dtype=torch.int64)) for _ in range(2)] == [0, 0]
    assert torch.equal(book.codes[1:], kept)
    assert step(torch.full((50,), 2)) == 4  # code 0 was used of late
    assert torch.equal(book.codes[0] == book.codes[0], torch.ones(4, dtype=torch.bool))
    assert not any(b.any() for b in keeper.gathered())
    assert keeper.used() == pytest.approx(2 / 6)


def test_a_trained_book_keeps_the_codes_that_its_first_batches_do_not_use():
    torch.manual_seed(0)
    book = Codebook(6, 4, learnt=False)
    with torch.no_grad():
        book.codes.normal_()
    before, places = book.codes.clone(), torch.randn(50, 4)
    keeper = BookKeeper(book, BooksConfig(update="average", restart_steps=3))

    def step():
        indices = torch.zeros(50, dtype=torch.int64)
        keeper.observe(places, indices, torch.Generator().manual_seed(1))
        return keeper.follow(book, 1)

    assert [step() for _ in range(2)] == [0, 0]
    assert torch.equal(book.codes[1:], before[1:])
    assert step() == 5  # they have waited as long as any


PATCHES = {"network": {"channels": 16, "num_layers": 1}, "starts_at": 0.5}


def test_attention_between_the_books_learns_from_the_picture():
    stage = stage_of("books", model={"books": TINY["books"] | {"fusion": "attention"}})
    fusion = stage.dictionary.fusion
    before = {name: value.clone() for name, value in fusion.named_parameters()}
    stage.accumulate(batch_of(quality=(0.1, 0.5, 0.0, NAN)), moment())
    assert not any(p.grad.any() for p in fusion.parameters())  # nobody's HQ+ codes are added
    weights = stage.config.weights.model_copy(update={"books": 0.0})
    stage.config = stage.config.model_copy(update={"weights": weights})
    stage.players["books"].zero_grad()
    stage.accumulate(batch_of(quality=(0.9,) * 4), moment())
    assert all(p.grad.any() for p in fusion.parameters())
    assert stage.encoder.last.weight.grad.any()
    books = (stage.dictionary.common.codes, stage.dictionary.hq.codes)
    assert all(codes.grad is None for codes in books)  # their own loss alone teaches them
    player = stage.players["books"]
    player.update(player.gradient_norm(), 0, 1)
    moved = [not torch.equal(before[name], value) for name, value in fusion.named_parameters()]
    assert all(moved)
    assert len(moved) == 8


def test_the_adversary_is_balanced_by_gradients():
    stage = stage_of("books", patches=PATCHES)
    terms, figures = step_on(stage, batch_of())
    assert "adversarial" not in terms
    assert "balance" not in figures
    assert not stage.players["discriminator"].has_gradients()
    terms, figures = step_on(stage, batch_of(1), 2)
    assert torch.isfinite(terms["adversarial"])
    assert 0 < figures["balance"] <= 1
    alone = {n: p.grad.clone() for n, p in stage.dictionary.decoder.named_parameters()}
    state = stage.extra_state()
    stage.patches.balance = 0.0
    step_on(stage, batch_of(1), 2)
    for n, p in stage.dictionary.decoder.named_parameters():
        torch.testing.assert_close(p.grad, alone[n], atol=1e-6, rtol=1e-4)  # it begins with 0
    stage.load_extra_state(state)
    assert stage.patches.balance == figures["balance"]
    step_on(stage, batch_of(1), 2)
    last = "last.weight"
    assert not torch.allclose(
        dict(stage.dictionary.decoder.named_parameters())[last].grad, alone[last]
    )


def test_structure_stands_in_for_a_missing_judge():
    picture = batch_of().hq
    assert structure_loss(picture, picture).item() == pytest.approx(0, abs=1e-6)
    other = batch_of(1).hq
    assert 0.5 < structure_loss(picture, other) < 1.5
    terms, _ = step_on(stage_of("books"), batch_of())
    assert "structure" in terms
    assert "lpips" not in terms


# ------------------------------------------------------------------------- stage II


def test_only_the_predicting_side_learns():
    stage = stage_of("codes")
    terms = stage.accumulate(batch_of(), moment())
    assert all(torch.isfinite(value) for value in terms.values())
    frozen = (stage.hq_encoder, stage.dictionary)
    assert all(p.grad is None for net in frozen for p in net.parameters())
    trained = [p for net in stage.players["codes"].nets.values() for p in net.parameters()]
    assert all(p.grad is not None for p in trained)
    assert set(stage.players["codes"].nets) == {"lq_encoder", "predictor", "embedding"}


def test_the_encoder_of_clean_faces_is_not_kept():
    assert set(stage_of("codes").result()) == set(USED["codes"]) - {"hq_encoder"}


def test_fidelity_is_not_promised_before_stage_3(tmp_path):
    stage = stage_of("codes")
    path = tmp_path / "codes.safetensors"
    save_parts(stage.result(), stage.result_config(), path)
    model = load(path)
    assert model.fusion is None
    assert model.settle(Ask()).fidelity == 0
    with pytest.raises(ValueError, match="fidelity: this iqp model was trained without stage III"):
        model.settle(Ask(fidelity=0.5))
    last = stage_of("fidelity")
    save_parts(last.result(), last.result_config(), path)
    assert load(path).settle(Ask(fidelity=0.5)).fidelity == 0.5


def test_the_loss_is_the_cross_entropy_of_both_books_and_the_features_distance():
    stage, batch = stage_of("codes"), batch_of(quality=(1.0, 0.0, 0.5, NAN))
    terms = stage.accumulate(batch, moment())
    with torch.no_grad():
        codes = stage.dictionary.nearest(stage.hq_encoder(batch.hq).flatten(2).mT)
        q_c, q_h = stage.dictionary.common(codes.common), stage.dictionary.hq(codes.hq)
        quality = batch.quality
        z = stage.model.conditioned(stage.model.encode(batch.lq, fused=False).places, quality)
        scores = stage.model.predictor(z)
        gates = torch.tensor([0.8, 0.0, 0.4, 0.0])[:, None, None]
        feature = (q_c + gates * q_h - z).square().mean()
        logs = scores.log_softmax(dim=2)
        index = -logs[..., 1].gather(2, codes.common[..., None]).mean()
        own = scores[..., :16, 0].log_softmax(dim=2)
        index = index - own.gather(2, codes.hq[..., None]).mean()
    torch.testing.assert_close(terms["feature"], feature, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(terms["index"], index)
    torch.testing.assert_close(terms["loss"], terms["feature"] + 0.5 * terms["index"])


@pytest.mark.parametrize(
    ("mode", "reached", "missed"),
    [("st_encoder", "lq_encoder", "predictor"), ("st_logits", "predictor", None)],
)
def test_the_scores_gradient_goes_where_the_mode_says(mode, reached, missed):
    """Straight through codes it never reaches the Transformer; through expected codes it does."""
    stage = stage_of(
        "codes",
        Judges(quality=brightness, monitor=brightness),
        quality_mode=mode,
        weights={"feature": 0.0, "index": 0.0, "quality": 0.1},
    )
    terms = stage.accumulate(batch_of(), moment())
    assert {"quality", "score", "monitor", "detail"} <= set(terms)
    assert any(p.grad.any() for p in stage.parts[reached].parameters() if p.grad is not None)
    if missed:
        assert not any(p.grad.any() for p in stage.parts[missed].parameters() if p.grad is not None)
    assert all(p.grad is None for p in stage.dictionary.parameters())


@pytest.mark.parametrize("mode", ["st_encoder", "st_logits"])
def test_the_score_is_that_of_a_picture_as_wide_as_its_network(mode):
    seen = []

    def judge(image):
        seen.append(image.dtype)
        return brightness(image)

    torch.set_default_dtype(torch.float64)
    try:
        stage = stage_of("codes", Judges(quality=judge), quality_mode=mode)
        stage.accumulate(batch_of(), moment())
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen == [torch.float64]


def test_hard_codes_go_forward_in_either_mode():
    stage = stage_of("codes", quality_mode="st_logits")
    predicted = stage._predict(batch_of(), torch.full((4,), 0.9))
    best = stage.model.predictor.best(predicted.scores)
    hard = stage.dictionary.look_up(best, predicted.gate)
    torch.testing.assert_close(stage._decodable(predicted), hard, atol=1e-6, rtol=0)


def test_the_guard_takes_the_weight_away():
    """A judge that anything satisfies, a monitor that falls behind."""
    told = iter(0.9 - 0.1 * n for n in range(100))
    monitor = lambda image: torch.full((len(image),), next(told))  # noqa: E731
    stage = stage_of(
        "codes",
        Judges(quality=brightness, monitor=monitor),
        quality_mode="st_encoder",
        guard={"every_steps": 1},
    )
    steps = [step_on(stage, batch_of(n), n) for n in range(8)]
    allowed = [figures["quality_allowed"] for _, figures in steps]
    stop = allowed.index(0.0)
    assert 0 < stop < 7
    assert [("score" in terms) for terms, _ in steps] == [n <= stop for n in range(8)]
    assert next(told) == pytest.approx(0.9 - 0.1 * (stop + 1))  # nothing is judged any more
    assert "monitor is" in stage.quality.watch.guard.stopped
    again = stage_of("codes", Judges(quality=brightness), quality_mode="st_encoder")
    again.load_extra_state(stage.extra_state())
    assert not again.quality.active


def test_a_score_without_a_judge_is_refused():
    values = stage_of("codes", quality_mode="st_logits").config.model_dump()
    values["judges"]["quality"]["path"] = ""
    with pytest.raises(ValueError, match=r"judges: \{quality: \{path: built-in\}\}"):
        IQPCodesConfig.model_validate(values)
    assert not IQPCodesConfig.model_validate(values | {"quality_mode": "off"}).asks_quality


def test_validation_needs_no_score():
    """The released one can't be run: it calls the network without a score (pitfalls 5 and 6)."""
    for kind in KINDS:
        stage = stage_of(kind)
        figures = stage.validate(batch_of(quality=(NAN,) * 4))
        assert all(torch.isfinite(value) for value in figures.values())
        assert math.isfinite(figures["loss"])
        assert all(x.shape == (4, 3, SIZE, SIZE) for x in stage.preview(batch_of()).values())
