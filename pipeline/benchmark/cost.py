"""What a method costs: parameters, operations, faces a second here (VSPBFR, Table III)."""

import statistics
import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pipeline import images
from pipeline.baselines.others import SpandrelRestorer
from pipeline.replica import Refined, ReplicaConfig, load_model
from vsp_model import cost
from vsp_model.registry import Restorer
from vsp_model.runtime import Runtime

WARM_UPS = 2
MIN_ROUNDS, MAX_ROUNDS, ENOUGH_S = 3, 10, 10.0


@dataclass(frozen=True, slots=True)
class MethodCost:
    """Of one face, but for the speed.

    Attributes:
        params_m: Millions of parameters.
        gmacs: Billions of multiply-accumulates of convolutions and matrix products. The paper's
            column "FLOPs" counts these: RestoreFormer has 340.80 there, 341.40 here.
        images_per_s: Of the median round, checks, random numbers and copies included.
        batch_size: Faces a round.
        threads: Of torch.
    """

    params_m: float
    gmacs: float
    images_per_s: float
    batch_size: int
    threads: int

    def as_dict(self) -> dict[str, float]:
        """The numbers by name."""
        return {name: float(value) for name, value in asdict(self).items()}


def measure(config: ReplicaConfig) -> MethodCost:
    """Load a network, count and time it.

    Args:
        config: What to load; its threads, device and batch size are those of the timing.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        restorer = load_model(config)
        params, macs = count(restorer)
        speed = images_per_s(restorer, config.batch_size)
    finally:
        torch.set_num_threads(threads_before)
    return MethodCost(params / 1e6, macs / 1e9, speed, config.batch_size, config.threads)


def count(restorer: Restorer) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of one face, restored as it is asked for.

    Raises:
        TypeError: If it is no network.
    """
    if isinstance(restorer, Runtime):
        total = cost.count(restorer.model.config, restorer.settings).total
        return total.parameters, total.macs + total.fir_macs
    if isinstance(restorer, Refined):
        both = [count(runtime) for runtime in restorer.runtimes]
        return sum(parameters for parameters, _ in both), sum(macs for _, macs in both)
    if isinstance(restorer, SpandrelRestorer):
        return _count_other(restorer)
    raise TypeError(f"{type(restorer).__name__} is no network")


def _count_other(restorer: SpandrelRestorer) -> tuple[int, int]:
    """Run the network once on a tensor without values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    parameters = list(restorer.network.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True):
        lq = torch.empty(1, 3, restorer.size, restorer.size, device=parameters[0].device)
        macs = sum(cost.count_macs(lambda: restorer.forward(lq)))
    return sum(parameter.numel() for parameter in parameters), macs


def images_per_s(restorer: Restorer, batch_size: int) -> float:
    """Faces a second of the median round, of random faces."""
    draw = torch.Generator().manual_seed(0)
    lq = images.new_batch(batch_size, restorer.size)
    lq.copy_(torch.rand(lq.shape, generator=draw) * 2 - 1)
    for _ in range(WARM_UPS):
        _round_s(restorer, lq)
    rounds: list[float] = []
    while len(rounds) < MIN_ROUNDS or (len(rounds) < MAX_ROUNDS and sum(rounds) < ENOUGH_S):
        rounds.append(_round_s(restorer, lq))
    return batch_size / statistics.median(rounds)


def _round_s(restorer: Restorer, lq: Tensor) -> float:
    start_s = time.perf_counter()
    restorer.restore(lq, [str(slot) for slot in range(len(lq))]).to("cpu")  # waits for a GPU, too
    return time.perf_counter() - start_s
