"""How a restorer learns its quality condition, and to look good to a judge."""

import math

import pytest
import torch

from tests.vsp_model.test_training_loop import BATCH, RUN, Source, model, same, state_of, trainer
from vsp_model.condition import NUM_KNOTS
from vsp_model.networks import build_part
from vsp_model.style_condition import Shifts
from vsp_model.train.condition import told_qualities
from vsp_model.train.judges import Judges
from vsp_model.train.restorer import RestorerConfig, RestorerStage
from vsp_model.train.stage import Moment


def stage(alone=0.5, drop=0.15, judges=None, **settings):
    values = {"model": model(), "run": RUN, "weights": {"l1": 1.0}, "adam": {"lr": 1e-3}}
    encoder, restoration = values["model"]["encoder"], values["model"]["restoration"]
    values["model"]["condition"] = {
        "num_tokens": encoder["num_tokens"],
        "style_dim": encoder["style_dim"],
        "global_dim": restoration["global_dim"],
        "drop": drop,
    }
    values["condition"] = {"alone": alone, "adam": {"lr": 1e-2}}
    values["judges"] = {"quality": {"path": "built-in"}}
    config = RestorerConfig.model_validate(values | settings)
    torch.manual_seed(0)
    names = ("encoder", "prior", "diffuser", "condition", "restoration")
    built = {name: build_part(name, getattr(config.model, name)) for name in names}
    made = RestorerStage(config, built, judges or Judges())
    made.observe_scores([k / (NUM_KNOTS - 1) for k in range(NUM_KNOTS)])
    return made


class Scored(Source):
    """Random faces whose qualities are spread evenly."""

    def batches(self, parts, first_step):
        step = first_step
        for pieces in super().batches(parts, first_step):
            spread = torch.linspace(0.05, 0.95, BATCH) + 0.01 * (step % 4)
            yield [
                piece._replace(quality=spread[part :: parts.count])
                for part, piece in zip(parts.own, pieces, strict=True)
            ]
            step += 1


def one_batch():
    return next(Scored().batches(RestorerConfig(model=model(), run=RUN).run.parts(0, 1), 0))[0]


def moment(step):
    return Moment(step, step * BATCH, 4 * BATCH, 1)


def test_at_first_only_the_condition_moves_and_then_both(tmp_path):
    made = stage(alone=0.5)  # two of four steps
    copies = []

    class Notes:
        def scalars(self, images_seen, values):
            copies.append((state_of(made), values))

        def pictures(self, images_seen, columns): ...

        def say(self, line): ...

    before = state_of(made)
    trainer(made, tmp_path, Notes()).train(Scored())
    moved = []
    for state, values in copies:
        changed = {
            name.split(".")[0] for name in state if not torch.equal(state[name], before[name])
        }
        moved.append(changed - {"average"})
        assert ("norm/restoration" in values) == ("restoration" in changed)
        before = state
    assert moved == [{"condition"}, {"condition"}] + [{"condition", "restoration"}] * 2


def test_all_additions_learn_and_the_frozen_parts_do_not():
    made = stage(alone=0.5, drop=0.0)
    made.accumulate(one_batch(), moment(0))
    embedding = made.condition.embedding
    learnt = embedding.second.weight.grad.split(made.condition.config.widths)
    for place, rows in zip(Shifts._fields, learnt, strict=True):
        assert rows.abs().sum() > 0, place
    assert all(p.grad is None for p in made.net.parameters())
    for name in ("encoder", "prior", "diffuser"):
        assert all(p.grad is None for p in made.parts[name].parameters()), name
    made.accumulate(one_batch(), moment(2))
    assert any(p.grad is not None for p in made.net.parameters())
    for name in ("encoder", "prior", "diffuser"):
        assert all(p.grad is None for p in made.parts[name].parameters()), name


def test_whose_quality_is_withheld_follows_from_the_record_alone():
    made = stage(drop=0.5)
    whole = one_batch()
    many = whole._replace(
        streams=tuple(f"{n}" for n in range(2000)), quality=torch.linspace(0, 1, 2000)
    )
    embedding = made.condition.embedding
    seen = told_qualities(embedding, many, seed=0)
    assert seen.isnan().float().mean() == pytest.approx(0.5, abs=0.04)
    few = many._replace(streams=many.streams[70:90], quality=many.quality[70:90])
    assert told_qualities(embedding, few, seed=0).tolist() == pytest.approx(
        seen[70:90].tolist(), abs=0, nan_ok=True
    )
    assert not torch.equal(told_qualities(embedding, many, 1).isnan(), seen.isnan())
    known = seen[~seen.isnan()]
    assert torch.allclose(known, many.quality[~seen.isnan()], atol=1e-6)  # even knots: u is S


def test_an_unscored_face_trains_what_unknown_is():
    made = stage(drop=0.0)
    batch = one_batch()
    made.accumulate(batch._replace(quality=torch.full_like(batch.quality, math.nan)), moment(0))
    embedding = made.condition.embedding
    assert embedding.unknown.grad.abs().sum() > 0
    assert not embedding.second.weight.grad.any()


def test_resumed_training_ends_with_the_same_bits(tmp_path):
    whole, half, rest = stage(alone=0.25), stage(alone=0.25), stage(alone=0.25)
    trainer(whole, tmp_path / "whole").train(Scored())
    short = trainer(half, tmp_path / "parts")
    short.run = short.run.model_copy(update={"num_images": 2 * BATCH})
    short.train(Scored())
    trainer(rest, tmp_path / "parts").train(Scored())
    assert same(state_of(whole), state_of(rest))


def test_validation_says_how_far_the_dial_turns():
    made = stage()
    assert made.validate(one_batch())["dial"] == 0
    teach_part = made.averages["condition"].embedding.second.weight
    with torch.no_grad():
        teach_part.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    assert made.validate(one_batch())["dial"] > 1e-4
    assert list(made.preview(one_batch())) == [
        "LQ", "prompt", "restored", "quality 0.1", "quality 0.9", "HQ"
    ]  # fmt: skip


def test_without_scores_there_is_no_dial_to_look_at():
    made = stage()
    made.observe_scores([math.nan] * NUM_KNOTS)
    assert "dial" not in made.validate(one_batch())
    assert list(made.preview(one_batch())) == ["LQ", "prompt", "restored", "HQ"]


@pytest.mark.parametrize("which", ["model", "condition"])
def test_a_condition_and_how_it_is_taught_come_together(which):
    values = stage().config.model_dump()
    if which == "model":
        values["condition"] = None
    else:
        values["model"]["condition"] = None
    with pytest.raises(ValueError, match=r"condition: expected with model\.condition, and only wi"):
        RestorerConfig.model_validate(values)


# A loss for a score.


def brightness(image):
    return image.mean(dim=(1, 2, 3)).sigmoid()


def scoring_stage(patience=2, judges=None):
    taught = {"alone": 0.25, "adam": {"lr": 1e-2}, "quality": {
        "weight": 0.02, "warmup_images": 2 * BATCH,
        "guard": {"every_steps": 1, "patience": patience},
    }}  # fmt: skip
    return stage(condition=taught, judges=judges or Judges(quality=brightness))


def test_the_loss_for_a_score_warms_up_once_the_restorer_moves():
    made = scoring_stage()
    weights = [made.config.condition.quality_weight(moment(step)) for step in range(4)]
    assert weights == pytest.approx([0.0, 0.0, 0.01, 0.02])
    terms = made.accumulate(one_batch(), moment(3))
    assert terms["quality"].item() == pytest.approx(1 - terms["score"].item())
    assert terms["loss"].item() == pytest.approx(
        terms["l1"].item() + 0.02 * terms["quality"].item(), rel=1e-5
    )
    assert "quality" not in made.accumulate(one_batch(), moment(0))
    assert scoring_stage(judges=Judges(embedder=None)).quality is None  # nobody to ask


def test_a_score_that_others_do_not_share_ends_its_loss():
    made = scoring_stage()
    assert "score" in made.accumulate(one_batch(), moment(3))
    for n in range(8):
        figures = {"score": 0.5 + 0.1 * n, "monitor": 0.5 - 0.01 * n, "detail": 1.0}
        told = made.quality.observe({n: torch.tensor(v) for n, v in figures.items()})
    assert told == {"quality_allowed": 0.0}
    terms = made.accumulate(one_batch(), moment(3))
    assert not {"quality", "score", "detail"} & set(terms)  # nothing is judged any more
    assert made.quality.observe(terms) == {"quality_allowed": 0.0}
    again = scoring_stage()
    again.load_extra_state(made.extra_state())
    assert not again.quality.active


def test_a_score_without_a_judge_is_refused():
    values = scoring_stage().config.model_dump()
    values["judges"]["quality"]["path"] = ""
    with pytest.raises(ValueError, match=r"judges: \{quality: \{path: built-in\}\}"):
        RestorerConfig.model_validate(values)
