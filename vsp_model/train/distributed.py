"""What workers say to each other: sums of gradients, and nothing of who started them.

Gradients are summed as one flat tensor after the backward passes. PyTorch's own wrapper loses the
gradients of R1 in silence (static graph, or a penalty computed beside the wrapper); a plain sum is
exact for every loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Comm(Protocol):
    """The workers of a run."""

    rank: int
    world: int

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the workers."""

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the first worker's."""

    def barrier(self) -> None:
        """Wait for all workers."""

    def agree(self, flag: bool) -> bool:
        """Whether any worker says yes."""


class Alone:
    """One process."""

    rank = 0
    world = 1

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to add."""

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Nobody to tell."""

    def barrier(self) -> None:
        """Nobody to wait for."""

    def agree(self, flag: bool) -> bool:
        """What the one says."""
        return flag


class ProcessGroup:
    """Workers of an initialised ``torch.distributed`` group: gloo on CPUs, NCCL on GPUs."""

    def __init__(self, device: str) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self._device = device

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """See ``Comm``; one message for each type of number."""
        for same in _by_dtype(tensors):
            flat = torch.cat([t.reshape(-1) for t in same])
            dist.all_reduce(flat)
            _scatter(flat, same)

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """See ``Comm``."""
        for same in _by_dtype(tensors):
            flat = torch.cat([t.reshape(-1) for t in same])
            dist.broadcast(flat, 0)
            _scatter(flat, same)

    def barrier(self) -> None:
        """See ``Comm``."""
        dist.barrier()

    def agree(self, flag: bool) -> bool:
        """See ``Comm``."""
        told = torch.tensor([float(flag)], device=self._device)
        dist.all_reduce(told)
        return bool(told.item() > 0)


def _by_dtype(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return groups.values()


@torch.no_grad()
def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = flat.split([t.numel() for t in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.reshape(tensor.shape))


def fingerprint(nets: Iterable[nn.Module]) -> Tensor:
    """128 bits of the parameters' sha256 as four numbers, to compare workers."""
    digest = hashlib.sha256()
    for net in nets:
        for parameter in net.parameters():
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    words = [int.from_bytes(digest.digest()[i : i + 4], "big") for i in range(0, 16, 4)]
    return torch.tensor(words, dtype=torch.float64)
