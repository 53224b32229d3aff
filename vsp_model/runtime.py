"""Running a restorer: device, precision, compilation and the check for NaN.

The networks name no device and no precision; this is the one place that does. Everything runs in
``channels_last``, the faster format and the one that keeps bits in place (``vspbfr.FORMAT``).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vsp_model.ask import Ask
from vsp_model.condition import Dial
from vsp_model.config import Config
from vsp_model.faces import check_faces, finite_items
from vsp_model.randomness import NoiseMode
from vsp_model.vspbfr import FORMAT

Precision = Literal["fp32", "bf16", "fp16"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


class RuntimeConfig(Config):
    """How a model runs. What changes the result's bits: device kind, precision, compile."""

    device: str = "cpu"
    """"cpu", "cuda", "cuda:1", "mps"."""
    precision: Precision = "fp32"
    """Autocast; weights stay float32. Error bounds: docs/performance.md."""
    compile: bool = False
    """torch.compile without graph breaks; needs a compiler on the machine."""


class Runtime:
    """A model made ready to restore; implements ``registry.Restorer``.

    Takes the model over: moves it to the device and puts it in evaluation mode.
    """

    def __init__(self, model: nn.Module, config: RuntimeConfig, ask: Ask | None = None) -> None:
        """Take a model of the registry.

        Args:
            model: Built or loaded.
            config: Where and how.
            ask: What is wanted of it; None: what it does by itself.

        Raises:
            ValueError: in one line, if the model can't do what is asked.
        """
        self.config = config
        self._device = resolve_device(config.device)
        self.model: Any = model.eval().to(self._device).to(memory_format=FORMAT)
        self.settings = self.model.settle(ask or Ask())
        if config.compile:
            self.model.compile(fullgraph=True)

    @property
    def size(self) -> int:
        """Working size S in pixels."""
        return self.model.size

    @property
    def quality(self) -> float | None:
        """The percentile of quality that is asked for; NaN: unknown; None: it has no dial."""
        dial: Dial | None = getattr(self.settings, "dial", self.settings)
        return None if dial is None else dial.quality

    @torch.inference_mode()
    def restore(
        self,
        lq: Tensor,
        keys: Sequence[str],
        *,
        seed: int = 0,
        noise: NoiseMode = "seeded",
        estimate: Tensor | None = None,
    ) -> Tensor:
        """Check, draw, move, restore.

        An item that comes out NaN or infinite in reduced precision is computed again in float32;
        one that stays so is returned as it is (``faces.finite_items`` finds it).

        Args:
            lq: (B, 3, S, S) float32 in [-1, 1], on any device.
            keys: one a face.
            seed: of the run.
            noise: see ``randomness.draw``.
            estimate: IDM: what another model made of the faces, (B, 3, S, S).

        Returns:
            (B, 3, S, S) float32 on the runtime's device, about [-1, 1], not clamped.

        Raises:
            ValueError: in one line, for a bad batch.
        """
        check_faces(lq, self.size, keys)
        drawn = self.model.drawn(keys, seed, noise).to(self._device)
        lq = lq.to(self._device, memory_format=FORMAT, non_blocking=True)
        beside = () if estimate is None else (estimate.to(self._device, memory_format=FORMAT),)
        restored = self.forward(lq, drawn, *beside)
        bad = ~finite_items(restored)
        if self.config.precision != "fp32" and bad.any():
            again = self.model(lq, drawn, self.settings, *beside).float()
            restored = torch.where(bad[:, None, None, None], again, restored)
        return restored

    def forward(self, lq: Tensor, drawn: Any, *beside: Tensor) -> Tensor:
        """The network alone, in the configured precision: (B, 3, S, S) -> float32 of that shape."""
        dtype = _AUTOCAST.get(self.config.precision)
        if dtype is None:
            return self.model(lq, drawn, self.settings, *beside)
        with torch.autocast(self._device.type, dtype=dtype):
            return self.model(lq, drawn, self.settings, *beside).float()


def resolve_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: if this machine or this build of torch does not have it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device '{name}': unknown; use cpu, cuda, cuda:N or mps") from None
    present = {
        "cpu": lambda: True,
        "cuda": lambda: (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if device.type not in present or not present[device.type]():
        raise ValueError(f"device '{name}': not available here; use cpu, or check the driver")
    return device


def keep_freed_memory() -> bool:
    """Let the C library keep freed activations instead of returning them page by page.

    Every layer at 512 pixels frees and takes 64 MB blocks; glibc maps and unmaps each, and the page
    faults then cost as much as the elementwise work itself. For a process that does nothing but run
    the model; it keeps up to 2 GiB of freed memory. Numbers: docs/performance.md.

    Returns:
        True where the setting took (glibc on Linux), False elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 1 << 28))
    return all(mallopt(name, value) for name, value in settings)
