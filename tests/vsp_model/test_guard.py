"""When training for a score has to stop: a judge that can be fooled, beside one that can't."""

import numpy as np
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
    for n in range(14):
        row = [0.5 + 0.002 * n, 0.5, 0.6, 0.01]
        row[falling] -= 0.002 * n
        rows.append(row)
    weights = looks(guard, *rows)
    assert weights.index(0.0) == 10  # nine looks are a trend, two more confirm it
    assert guard.stopped == "the score rose for 3 looks at the cost of the rest"


def test_a_fall_within_the_slack_is_none():
    rows = [(0.5 + 0.002 * n, None, 0.6 - 0.001 * n) for n in range(40)]
    assert looks(QualityGuard(GuardConfig(slack=0.03)), *rows) == [1.0] * 40
    assert looks(QualityGuard(GuardConfig(slack=0.01)), *rows)[-1] == 0.0


def test_one_look_is_no_trend():
    guard = QualityGuard(GuardConfig())
    up = [(0.5 + 0.002 * n, 0.5, 0.6) for n in range(20)]
    up[10] = (0.52, 0.5, 0.4)  # an accident
    assert looks(guard, *up) == [1.0] * 20


def test_a_monitor_that_stays_behind_ends_it():
    guard = QualityGuard(GuardConfig(gap=0.05))
    rows = [(0.5 + 0.03 * n, 0.4 + 0.01 * n) for n in range(8)]
    assert looks(guard, *rows).index(0.0) == 4
    assert guard.stopped == "the monitor is 0.170 behind, 0.110 before"


def test_an_identity_that_is_lost_ends_it_before_a_trend_is_told():
    guard = QualityGuard(GuardConfig(fall=0.05))
    rows = [(0.5 + 0.01 * n, None, 0.6 - 0.02 * n) for n in range(8)]
    assert looks(guard, *rows).index(0.0) == 4
    assert guard.stopped == "the identity is 0.530, 0.590 before"
    slower = QualityGuard(GuardConfig(fall=0.2))
    assert looks(slower, *rows) == [1.0] * 8


def test_detail_out_of_proportion_counts_as_a_cost():
    rows = [(0.5 + 0.01 * n, None, None, 0.01 * (1 + n)) for n in range(14)]
    assert looks(QualityGuard(GuardConfig()), *rows)[-1] == 0.0
    sharp = QualityGuard(GuardConfig())  # what is as sharp as the truth is in order
    assert looks(sharp, *((*row, 0.1) for row in rows)) == [1.0] * 14


def test_what_has_stopped_stays_so_and_is_resumed():
    rows = [(0.5 + 0.03 * n, 0.5) for n in range(6)]
    guard, half, again = (QualityGuard(GuardConfig()) for _ in range(3))
    looks(guard, *rows[:5])
    assert guard.stopped
    again.load_state_dict(guard.state_dict())
    assert looks(again, (0.5, 0.5), (0.5, 0.6)) == [0.0, 0.0]
    looks(half, *rows[:4])
    assert not half.stopped
    again.load_state_dict(half.state_dict())
    assert looks(again, rows[4]) == [0.0]
    assert again.state_dict() == guard.state_dict()


def test_a_checkpoint_of_before_there_were_trends_goes_on():
    guard = QualityGuard(GuardConfig())
    guard.load_state_dict(
        {"stopped": "", "first": [0.5, 0.5, None, None, None], "last": None, "bad_looks": 1}
    )
    assert looks(guard, (0.5, 0.5)) == [1.0]


NUM_RUNS, NUM_LOOKS, NOISE = 200, 300, 0.005


def stops_at(seed, num_looks, drifts=(0.0, 0.0, 0.0), noise=NOISE):
    """Look at which score, monitor and identity with these drifts a look and noise end it."""
    generator, guard = np.random.default_rng(seed), QualityGuard(GuardConfig())
    noises = generator.normal(0, noise, (num_looks, 3))
    rows = np.array([0.5, 0.5, 0.6]) + np.arange(num_looks)[:, None] * np.array(drifts) + noises
    for n, row in enumerate(rows.tolist()):
        if not guard.observe(Evaluation(*row)):
            return n + 1
    return None


@pytest.mark.parametrize("rise", [0.0, pytest.param(0.0002, marks=pytest.mark.slow)])
def test_noise_does_not_end_it(rise):
    """Nothing changes, or the score rises and nothing falls."""
    drifts = (rise, rise, 0.0)
    stopped = [stops_at(n, NUM_LOOKS, drifts) for n in range(NUM_RUNS)]
    assert sum(n is not None for n in stopped) < 0.05 * NUM_RUNS


@pytest.mark.parametrize(
    ("drifts", "within"),
    [
        ((0.0005, 0.0005, -0.0005), 45),  # the identity falls
        ((0.0005, -0.0005, 0.0), 45),  # the monitor falls
        ((0.001, 0.0, 0.0), 75),  # the monitor stays behind: by more than 0.05 after 50 looks
    ],
)
def test_a_drift_in_noise_ends_it(drifts, within):
    stopped = [stops_at(n, within, drifts) for n in range(NUM_RUNS)]
    assert sum(n is not None for n in stopped) > 0.9 * NUM_RUNS


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
    steps(again, (0.6, 0.58))
    one, other = again.state_dict()["guard"]["recent"]
    assert one[:2] + other[:2] == pytest.approx([0.5, 0.5, 0.6, 0.54])


def test_a_figure_that_a_step_lacks_is_a_mean_over_the_others():
    watch = Watch(GuardConfig(every_steps=2))
    for terms in ({"score": 0.4}, {"score": 0.6, "cosine": 0.7}, {}, {}):
        watch.observe({name: torch.tensor(value) for name, value in terms.items()})
    (look,) = watch.state_dict()["guard"]["recent"]
    assert look[:3] == [pytest.approx(0.5), None, pytest.approx(0.7)]
