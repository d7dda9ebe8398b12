"""Batches that are made on the host and used on a CUDA device: pinned, few copies, and made ahead in a thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from trajgen.core.types import Batch


class PinnedBatch:
    """A batch of the host in pinned memory, all its tensors of a type in one piece.

    Args:
        batch: on the host.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._groups: dict[torch.dtype, list[Tensor]] = {}
        for tensor in batch.tensors():
            self._groups.setdefault(tensor.dtype, []).append(tensor)
        self._pieces = {
            dtype: torch.cat([tensor.reshape(-1) for tensor in tensors]).pin_memory()
            for dtype, tensors in self._groups.items()
        }

    def to(self, device: torch.device) -> Batch:
        """The batch on a CUDA device, in one copy for each type, which the host does not wait for."""
        parts = {}
        for dtype, tensors in self._groups.items():
            piece = self._pieces[dtype].to(device, non_blocking=True)
            parts[dtype] = iter(piece.split([tensor.numel() for tensor in tensors]))
        return self._batch.map(lambda tensor: next(parts[tensor.dtype]).view(tensor.shape))


class BatchesAhead:
    """Makes the batch after the requested one in a thread, while the device computes.

    Args:
        make: from step, size and rank to a batch on the host.
        device: on which the batches are used.
    """

    def __init__(self, make: Callable[[int, int, int], Batch], device: torch.device) -> None:
        self._make, self._device = make, device
        # Pinned memory belongs to the thread's current device, which is set by its number alone.
        number = torch.cuda.current_device() if device.index is None else device.index
        self._thread = ThreadPoolExecutor(1, "batches", torch.cuda.set_device, (number,))
        self._next: tuple[tuple[int, int, int], Future[PinnedBatch]] | None = None

    def __call__(self, step: int, size: int, rank: int) -> Batch:
        """The batch of a step on the device."""
        request = step, size, rank
        is_next = self._next is not None and self._next[0] == request
        future = self._next[1] if self._next is not None and is_next else self._submit(*request)
        batch = future.result().to(self._device)
        self._next = (step + 1, size, rank), self._submit(step + 1, size, rank)
        return batch

    def _submit(self, *request: int) -> Future[PinnedBatch]:
        return self._thread.submit(lambda: PinnedBatch(self._make(*request)))
