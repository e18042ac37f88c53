"""Training in several processes that torchrun starts; without it there is one, and nothing here does anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> tuple[int, int]:
    """Meet the other processes: this one's number and how many there are."""
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        dist.init_process_group("gloo")
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their mean over all processes."""
    if not dist.is_initialized():
        return
    tensors = list(tensors)
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts):
        tensor.copy_(part.view_as(tensor))


def wait() -> None:
    """Until all processes are here: after one has written what others may read next."""
    if dist.is_initialized():
        dist.barrier()


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return any(collect(flag)) if dist.is_initialized() else flag


def collect(value: Any) -> list:
    """The value of every process, in order."""
    values = [value]
    if dist.is_initialized():
        values *= dist.get_world_size()
        dist.all_gather_object(values, value)
    return values
