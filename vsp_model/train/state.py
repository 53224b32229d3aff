"""Nested state as tensors and JSON, so that a checkpoint needs no pickle."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_TENSOR = "$tensor"
_PAIRS = "$pairs"  # a mapping whose keys are no strings, as an optimiser's


def save_state(state: Any, tensors_path: Path, json_path: Path) -> None:
    """Write dicts, lists, numbers, strings and tensors; ``load_state`` gives equal ones back.

    Raises:
        OSError: if a file can't be written.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_split(state, "", tensors))
    try:
        save_file(tensors, tensors_path)
    except SafetensorError as error:  # hides the system's error in its text
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(tensors_path)) from None
    json_path.write_text(text, "utf-8")


def load_state(tensors_path: Path, json_path: Path) -> Any:
    """Read what ``save_state`` wrote, onto the CPU."""
    tensors = load_file(tensors_path)
    return _join(json.loads(json_path.read_text("utf-8")), tensors)


def _split(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # A copy of its own memory: averages may share theirs, which safetensors refuses.
        tensors[place] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: place}
    if isinstance(value, dict):
        items = [(k, _split(v, f"{place}.{k}", tensors)) for k, v in value.items()]
        if all(isinstance(key, str) for key in value):
            return dict(items)
        return {_PAIRS: items}
    if isinstance(value, list | tuple):
        return [_split(v, f"{place}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if _PAIRS in value:
            return {key: _join(v, tensors) for key, v in value[_PAIRS]}
        return {key: _join(v, tensors) for key, v in value.items()}
    if isinstance(value, list):
        return [_join(v, tensors) for v in value]
    return value
