"""When training for a score has to stop: a judge that can be fooled, beside one that can't."""

import pytest
import torch

from vsp_model.train.guard import Evaluation, GuardConfig, QualityGuard, Watch, detail_energy


def looks(guard, *evaluations):
    return [guard.observe(Evaluation(*each)) for each in evaluations]


def test_an_honest_rise_goes_on():
    guard = QualityGuard(GuardConfig())
    rising = [(0.5 + 0.02 * n, 0.5 + 0.015 * n, 0.6 + 0.001 * n, 0.01) for n in range(9)]
    assert looks(guard, *rising) == [1.0] * 9
    assert not guard.stopped


@pytest.mark.parametrize("falling", [1, 2])
def test_a_rise_at_the_cost_of_the_rest_ends_it(falling):
    """Judge A rises by little while the monitor (1) or the identity (2) falls."""
    guard = QualityGuard(GuardConfig())
    rows = []
    for n in range(5):
        row = [0.5 + 0.002 * n, 0.5, 0.6, 0.01]
        row[falling] -= 0.002 * n
        rows.append(row)
    assert looks(guard, *rows) == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert guard.stopped == "the score rose for 3 looks at the cost of the rest"


def test_a_good_look_between_forgives():
    guard = QualityGuard(GuardConfig())
    a, b = (0.50, 0.5, 0.60), (0.501, 0.5, 0.599)
    good = (0.502, 0.5, 0.61)
    more = [(0.503, 0.5, 0.609), (0.504, 0.5, 0.608), (0.503, 0.5, 0.607)]
    assert looks(guard, a, b, good, *more)[-1] == 1.0


def test_a_monitor_that_stays_behind_ends_it_at_once():
    guard = QualityGuard(GuardConfig(gap=0.05))
    assert looks(guard, (0.5, 0.4), (0.56, 0.42), (0.6, 0.44)) == [1.0, 1.0, 0.0]
    assert guard.stopped == "the monitor is 0.160 behind, 0.100 before"


def test_detail_out_of_proportion_counts_as_a_cost():
    guard = QualityGuard(GuardConfig(patience=2))
    rows = [(0.5 + 0.01 * n, None, None, 0.01 * (1 + n)) for n in range(3)]
    assert looks(guard, *rows) == [1.0, 1.0, 0.0]
    blurred = QualityGuard(GuardConfig(patience=2))  # what is as sharp as the truth is in order
    assert looks(blurred, *((*row, 0.03) for row in rows)) == [1.0, 1.0, 1.0]


def test_what_has_stopped_stays_so_and_is_resumed():
    guard = QualityGuard(GuardConfig())
    looks(guard, (0.5, 0.5), (0.6, 0.5))
    again = QualityGuard(GuardConfig())
    again.load_state_dict(guard.state_dict())
    assert looks(again, (0.5, 0.5), (0.5, 0.6)) == [0.0, 0.0]
    half = QualityGuard(GuardConfig())
    looks(half, (0.5, 0.5, 0.6), (0.501, 0.5, 0.59), (0.502, 0.5, 0.58))
    again.load_state_dict(half.state_dict())
    assert looks(again, (0.503, 0.5, 0.57)) == [0.0]


class Toy:
    """Gradient ascent of pictures on a scorer, watched by an honest monitor: closeness to truth."""

    def __init__(self, scorer):
        torch.manual_seed(0)
        self.truth = torch.rand(4, 3, 16, 16) - 0.5
        self.picture = (self.truth * 0.3).requires_grad_(True)
        self.scorer = scorer

    def honest(self, picture):
        return (-4 * (picture - self.truth).square().mean(dim=(1, 2, 3))).exp()

    def run(self, guard, num_looks):
        optimiser = torch.optim.Adam([self.picture], lr=0.01)
        for _ in range(num_looks):
            for _ in range(5):
                score = self.scorer(self, self.picture).mean()
                optimiser.zero_grad()
                ((1 - score) * guard.weight).backward()
                if guard.weight:
                    optimiser.step()
            with torch.no_grad():
                guard.observe(self.look())

    def look(self):
        picture, truth = self.picture, self.truth
        score, close = self.scorer(self, picture), self.honest(picture)
        cosine = torch.cosine_similarity(picture.flatten(1), truth.flatten(1))
        means = (each.mean().item() for each in (score, close, cosine))
        return Evaluation(*means, detail_energy(picture).item(), detail_energy(truth).item())


def checkerboard(toy, picture):
    """A scorer that can be fooled: it likes a pattern of single pixels."""
    sign = (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16)[None])
    return ((picture * sign).mean(dim=(1, 2, 3)) * 4).sigmoid()


def test_an_adversarial_scorer_is_caught_and_an_honest_one_is_not():
    fooled, honest = QualityGuard(GuardConfig()), QualityGuard(GuardConfig())
    toy = Toy(checkerboard)
    toy.run(fooled, 12)
    assert fooled.stopped
    frozen = toy.picture.detach().clone()
    toy.run(fooled, 2)
    assert torch.equal(toy.picture, frozen)  # a weight of zero moves nothing
    Toy(Toy.honest).run(honest, 12)
    assert not honest.stopped


def test_detail_is_what_a_mean_takes_away():
    flat, stripes = torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    stripes[..., ::2] = -1
    assert detail_energy(flat) == 0
    assert detail_energy(stripes).item() == pytest.approx(16 / 9)


def test_a_look_is_a_mean_over_steps():
    watch = Watch(GuardConfig(every_steps=2, gap=0.05))

    def steps(watch, *pairs):
        told = [{"score": torch.tensor(a), "monitor": torch.tensor(b)} for a, b in pairs]
        return [watch.observe(terms) for terms in told]

    assert steps(watch, (0.4, 0.4), (0.6, 0.6), (0.6, 0.5)) == [1.0, 1.0, 1.0]
    again = Watch(watch.guard.config)
    again.load_state_dict(watch.state_dict())
    assert steps(again, (0.6, 0.58)) == [0.0]  # 0.06 apart on average, 0 before
