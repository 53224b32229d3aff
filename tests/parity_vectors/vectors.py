"""One part of a vector set: the recorded entries, their sources, and how a value is compared.

A part is an .npz whose entry ``meta`` (JSON) names seed, inputs, noise maps and shapes. Entries are
outputs (``NAME``), summaries of outputs (``digest:NAME``), pieces of outputs (``NAME_crops``,
``NAME_crop``, ``NAME_avgN``) or inputs. Every entry is either compared or read as an input; what is
left over counts as a failure, so that nothing passes by being overlooked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from parity_data import parity_weights
from torch import Tensor

DIGEST = "digest:"
SOURCE_TOLERANCE = 1e-6  # cos and tanh of another machine may differ in the last bit
_FLOORS = "max_abs_fp32_minus_fp64_and_max_abs"

Spec = dict[str, list[Any]]
Specs = dict[str, Spec]


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    part: str
    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """False for an error that is not a number, too."""
        return self.error <= self.tolerance

    def line(self) -> str:
        """Part and name, largest error, tolerance, verdict."""
        verdict = "pass" if self.passed else "FAIL"
        text = f"{self.part + '/' + self.name:58} {self.error:9.2e} {self.tolerance:9.2e} {verdict}"
        return f"{text}  {self.note}" if self.note else text


class Vectors:
    """The entries of one file; ``report`` hears of each result as soon as it is known."""

    def __init__(self, path: Path, keys: Specs, report: Callable[[Result], None]) -> None:
        with np.load(path) as file:
            self.entries = {name: file[name] for name in file.files}
        self.part = path.stem
        self.meta: dict[str, Any] = json.loads(str(self.entries.pop("meta")))
        self.pending = set(self.entries)
        self.keys = keys
        self._report = report

    # ------------------------------------------------------------------------------- inputs

    def array(self, name: str) -> np.ndarray:
        """An entry that is an input."""
        self.pending.discard(name)
        return self.entries[name]

    def given(self, name: str) -> Tensor:
        """An entry that is an input, as tensor; checked against its source where meta names one."""
        if name in self.meta.get("inputs", {}):
            return self.source(name)
        return torch.from_numpy(self.array(name))

    def source(self, name: str) -> Tensor:
        """The input that meta names, rebuilt from the seed."""
        return self._rebuilt(self.meta["inputs"][name], stored_as=name)

    def sources(self, name: str) -> list[Tensor]:
        """A list of inputs."""
        return [self._rebuilt(entry) for entry in self.meta["inputs"][name]]

    def noise(self, prefix: str) -> list[Tensor]:
        """The noise maps below ``prefix``, in call order."""
        found = [entry for entry in self.meta["noise"] if entry[0].startswith(f"{prefix}/")]
        stored_as = "noise" if len(self.meta["noise"]) == 1 else ""
        return [self._rebuilt(["normal", *entry], stored_as) for entry in found]

    def drawn(self, entry: list[Any]) -> np.ndarray:
        """Standard normal values, entry = [name, shape]."""
        return self._rebuilt(["normal", *entry]).numpy()

    def _rebuilt(self, entry: list[Any], stored_as: str = "") -> Tensor:
        kind, name, shape = entry
        seed = self.meta["base_seed"]
        if kind == "weight":
            value = parity_weights.weight(seed, *name.split("|"), shape)
        else:
            value = {"normal": parity_weights.normal, "image": parity_weights.image}[kind](
                seed, name, shape
            )
        if DIGEST + name in self.pending:
            self._compare_source(DIGEST + name, parity_weights.digest(value))
        for stored in {stored_as, name} & self.pending:
            self._compare_source(stored, value)
        return torch.from_numpy(value)

    def _compare_source(self, entry: str, value: np.ndarray) -> None:
        error, note = largest_error(value, self.entries[entry])
        if not error <= SOURCE_TOLERANCE:
            recorded = self.meta.get("numpy", "unknown")
            note = f"{note} the random source differs: numpy {np.__version__}, recorded {recorded}"
        self._result(entry, error, SOURCE_TOLERANCE, note.strip())

    # ------------------------------------------------------------------------------ weights

    def weights(self, namespace: str, spec: Spec | None = None) -> dict[str, Tensor]:
        """Synthetic tensors under their published names.

        Args:
            namespace: of the random source.
            spec: name -> [shape, dtype]; by default the file's own, else the list of keys.
        """
        spec = spec or self.meta.get("spec") or self.keys.get(namespace)
        if spec is None:
            raise ValueError(f"no list of tensors for {namespace!r}: neither in meta nor in --keys")
        return parity_weights.state_dict(spec, self.meta["base_seed"], namespace)

    # --------------------------------------------------------------------------- comparison

    def check(self, name: str, value: Tensor | np.ndarray | float) -> None:
        """Compare an output with everything recorded of it; no-op for what is not recorded."""
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        for entry, piece in self._recorded(name, array):
            reference = self.entries[entry]
            floor = self.meta.get(_FLOORS, {}).get(name, [0.0])[0]
            error, note = largest_error(piece, reference)
            self._result(entry, error, tolerance(reference, floor), note)

    def _recorded(self, name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        for entry in [e for e in self.entries if e in self.pending]:
            averaged = re.fullmatch(re.escape(name) + r"_avg(\d+)", entry)
            if entry == name:
                yield entry, array
            elif entry == DIGEST + name:
                yield entry, parity_weights.digest(array)
            elif averaged:
                yield entry, averaged_to(array, int(averaged[1]))
            elif entry == f"{name}_crops":
                yield entry, self._crops(name, array)
            elif entry == f"{name}_crop":
                yield entry, array[_index(self.meta["crop_boxes_yxs"][entry])]

    def _crops(self, name: str, array: np.ndarray) -> np.ndarray:
        boxes = self.meta["crop_boxes_yxs"]
        boxes = boxes[name] if isinstance(boxes, dict) else boxes
        return np.stack([array[..., y : y + side, x : x + side] for y, x, side in boxes])

    def _result(self, entry: str, error: float, limit: float, note: str = "") -> None:
        self.pending.discard(entry)
        self._report(Result(self.part, entry, error, limit, note))

    def fail(self, name: str, note: str) -> None:
        """Record something that could not be compared."""
        self._report(Result(self.part, name, math.inf, 0.0, note))

    def check_unread_sources(self) -> None:
        """Compare recorded inputs that the part had no use for, such as a second z."""
        for key, entry in self.meta.get("inputs", {}).items():
            for each in entry if isinstance(entry[0], list) else [entry]:
                if {key, each[1], DIGEST + each[1]} & self.pending:
                    self._rebuilt(each, stored_as=key)

    def fail_unchecked(self) -> None:
        """One failure for each entry that nobody compared or read."""
        for entry in [e for e in self.entries if e in self.pending]:
            self.fail(entry, "nobody checked this entry")


def tolerance(reference: np.ndarray, floor: float) -> float:
    """Relative to the largest magnitude; tighter where the reference is small throughout."""
    largest = float(np.abs(reference.astype(np.float64)).max(initial=0.0))
    if largest < 0.1:
        return max(1e-3 * largest, 4 * floor, 1e-9)
    return 1e-4 * max(1.0, largest)


def largest_error(value: np.ndarray, reference: np.ndarray) -> tuple[float, str]:
    """Largest absolute difference; infinite, with a note, if the shapes differ."""
    if value.size != reference.size or value.squeeze().shape != reference.squeeze().shape:
        return math.inf, f"shape {value.shape}, expected {reference.shape}"
    difference = value.astype(np.float64).reshape(reference.shape) - reference.astype(np.float64)
    return float(np.abs(difference).max(initial=0.0)), ""


def averaged_to(array: np.ndarray, side: int) -> np.ndarray:
    """Adaptive average pooling to (..., side, side)."""
    return F.adaptive_avg_pool2d(torch.from_numpy(array), side).numpy()


def _index(text: str) -> tuple[slice, ...]:
    """The index that a text such as ``[:, :8, 240:256]`` means."""
    parts = text.strip("[]").split(",")
    return tuple(slice(*(int(n) if n.strip() else None for n in p.split(":"))) for p in parts)
