"""What a restoration costs: parameters, multiply-accumulates, and speed and memory measured here.

Counting runs the real ``forward`` of every module on tensors that have a shape and no values: it
takes no memory and a few seconds, whatever the size of the model. Counted are convolutions and
matrix products, one multiply-accumulate (MAC) per product; everything elementwise is not:
activations, normalisation, noise, resizing, scaling weights by styles.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Not the meta device: autocast, which the networks switch off around their float32 islands, does
# not know it. Fake tensors say "cpu" and hold as little.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vsp_model.ask import Ask
from vsp_model.idm.chain import Settings as ChainSettings
from vsp_model.registry import AnyConfig, build
from vsp_model.runtime import Precision, Runtime
from vsp_model.vspbfr import VSPBFR

PAPER_PARAMETERS = 420_880_000
PAPER_OPERATIONS = 570_210_000_000
"""VSPBFR, Table III; what the paper counts as one operation is not known."""

_PUBLISHED = {
    "encoder": "style_encoder",
    "diffuser": "code_diffuser",
    "prior": "stylegan_generator",
    "restoration": "restoration_net",
}
"""VSPBFR's modules under the names of the published counts."""
_FLOPS_PER_MAC = 2  # of torch's formulas
_GROUPS = 8  # index among the arguments of a convolution
_ENCODER_PIXELS_AT_512 = 4  # times the pixels of the 256 input that the encoder really gets
_WARM_UPS = 2
_MIN_ROUNDS, _MAX_ROUNDS, _ENOUGH_S = 3, 10, 10.0


@dataclass(frozen=True)
class Cost:
    """Of one module, for one image."""

    parameters: int
    buffers: int
    """Stored values that are not trained; FIR kernels are constants of the code and not stored."""
    macs: int
    """Multiply-accumulates without the FIR filters."""
    fir_macs: int
    """Those of the FIR filters, which run as depthwise convolutions."""


@dataclass(frozen=True)
class ModelCost:
    """Of a whole model, for one image; VSPBFR's modules under the names of the published counts."""

    modules: dict[str, Cost]
    """What one restoration runs, as often as it does: twice under guidance, each step of a chain;
    of the generator only up to the last feature that the restorer reads."""
    generator_with_image: Cost | None = None
    """VSPBFR: the whole generator, RGB branch included, run once; restoration does not need it."""

    @property
    def total(self) -> Cost:
        """The sum over the modules."""
        return _sum(list(self.modules.values()))

    @property
    def total_with_image(self) -> Cost:
        """The same with the whole generator, as the published VSPBFR runs it."""
        assert self.generator_with_image, "only VSPBFR has one"
        parts = {**self.modules, "stylegan_generator": self.generator_with_image}
        return _sum(list(parts.values()))

    @property
    def paper_guess(self) -> Cost:
        """The nearest combination to the paper's operations: all modules, the encoder fed 512 px.

        A guess found by trying: the published encoder gets 256 px, a quarter of the work.
        """
        encoder, total = self.modules["style_encoder"], self.total_with_image
        extra = (_ENCODER_PIXELS_AT_512 - 1) * encoder.macs
        return Cost(total.parameters, total.buffers, total.macs + extra, total.fir_macs)


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(
        sum(c.parameters for c in costs),
        sum(c.buffers for c in costs),
        sum(c.macs for c in costs),
        sum(c.fir_macs for c in costs),
    )


def count(config: AnyConfig, settings: Any = None) -> ModelCost:
    """Count parameters and MACs per module, on tensors without values.

    Args:
        config: Of the model.
        settings: What is asked of it (``Model.settle``); None: what it does by itself.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model: Any = build(config).eval()
    settings, steps = _one_step(model.settle(Ask()) if settings is None else settings)
    drawn = model.drawn(["a"], mode="mean")  # real: numpy draws, and knows no fake tensors
    children: dict[str, nn.Module] = dict(model.named_children())
    with fake, torch.no_grad(), _MacCounter() as counter:
        for name, child in children.items():
            for module in child.modules():
                module.register_forward_pre_hook(lambda *_, name=name: counter.enter(name))
        model(torch.empty(1, 3, config.size, config.size), drawn, settings)
    modules = {_PUBLISHED.get(name, name):
               _cost(child, steps * counter.plain[name], steps * counter.depthwise[name])
               for name, child in children.items()}  # fmt: skip
    return ModelCost(modules, _whole_prior(model, fake) if isinstance(model, VSPBFR) else None)


def _one_step(settings: Any) -> tuple[Any, int]:
    """Settings that walk one step of a chain, and how often it counts: all steps cost alike."""
    if isinstance(settings, ChainSettings):
        return settings._replace(steps=1), settings.steps
    return settings, 1


def _whole_prior(model: VSPBFR, fake: FakeTensorMode) -> Cost:
    """The whole generator with its RGB branch, which no restoration runs."""
    prior = model.config.prior
    with fake:
        codes = torch.empty(1, prior.num_slots, prior.style_dim)
        return _cost(model.prior, *count_macs(lambda: model.prior(codes, image=True)))


def _cost(module: nn.Module, macs: int, fir_macs: int) -> Cost:
    parameters = sum(p.numel() for p in module.parameters())
    stored = sum(t.numel() for t in module.state_dict().values())
    return Cost(parameters, stored - parameters, macs, fir_macs)


def count_macs(run: Callable[[], object]) -> tuple[int, int]:
    """MACs of what ``run`` computes: without the depthwise convolutions, and those alone.

    The FIR filters are the only depthwise convolutions of this package.
    """
    with torch.no_grad(), _MacCounter() as counter:
        run()
    return counter.plain[""], counter.depthwise[""]


class _MacCounter(TorchDispatchMode):
    """Sums torch's own formulas, as ``FlopCounterMode`` does, without its hooks on every module.

    The hooks are a third of the time, and what is asked here is one sum a part of a model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plain: Counter[str] = Counter()
        self.depthwise: Counter[str] = Counter()
        self._inside = ""

    def enter(self, name: str) -> None:
        """What follows belongs to this module, until another one is entered."""
        self._inside = name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            macs = formula(*args, **(kwargs or {}), out_val=out) // _FLOPS_PER_MAC
            is_depthwise = func.overloadpacket is torch.ops.aten.convolution and args[_GROUPS] > 1
            (self.depthwise if is_depthwise else self.plain)[self._inside] += macs
        return out


# ------------------------------------------------------------------------------------ measured


@dataclass(frozen=True)
class Speed:
    """Measured on one device."""

    device: str
    threads: int
    torch: str
    precision: Precision
    batch_size: int
    round_s: tuple[float, ...]
    """Seconds per batch, one value a round, after the warm-up."""
    peak_bytes: int | None
    """Highest use of memory while it ran; None where the system does not tell."""
    peak_of: str
    """What the peak counts."""
    finite: bool
    """False if the network gave NaN or infinities."""

    @property
    def images_per_s_median(self) -> float:
        """Of the median round."""
        return self.batch_size / statistics.median(self.round_s)

    @property
    def images_per_s_best(self) -> float:
        """Of the fastest round."""
        return self.batch_size / min(self.round_s)


@torch.inference_mode()
def measure(runtime: Runtime, batch_size: int = 1) -> Speed:
    """Time the network on random faces, everything random drawn before.

    Two batches to warm up, then rounds of one batch for 10 s, at least 3 and at most 10.
    """
    model, device = runtime.model, next(runtime.model.parameters()).device
    faces = torch.rand(
        batch_size, 3, model.size, model.size, generator=torch.Generator().manual_seed(0)
    )
    lq = faces.mul_(2).sub_(1).to(device)
    drawn = model.drawn([str(i) for i in range(batch_size)]).to(device)
    _reset_peak(device)
    for _ in range(_WARM_UPS):
        finite = bool(runtime.forward(lq, drawn).isfinite().all())
    round_s: list[float] = []
    while len(round_s) < _MIN_ROUNDS or (len(round_s) < _MAX_ROUNDS and sum(round_s) < _ENOUGH_S):
        _wait(device)
        start_s = time.perf_counter()
        runtime.forward(lq, drawn)
        _wait(device)
        round_s.append(time.perf_counter() - start_s)
    return Speed(
        device=_name(device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        precision=runtime.config.precision,
        batch_size=batch_size,
        round_s=tuple(round_s),
        peak_bytes=_peak_bytes(device),
        peak_of="resident in the process" if device.type == "cpu" else "allocated on the device",
        finite=finite,
    )


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _name(device: torch.device) -> str:
    """The name of the chip, as far as the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cpu" and cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"{device.type} {platform.processor() or platform.machine()}"


def _reset_peak(device: torch.device) -> None:
    """Forget the peak of loading the model, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):  # Linux alone has it, and not in every container
            Path("/proc/self/clear_refs").write_text("5")  # the resident peak (proc(5))


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if device.type == "cpu" and status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return None
