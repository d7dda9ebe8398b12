"""A batch in shares: one for each process, and on each process one for each micro-batch.

Share p of P holds the windows p, p + P, p + 2P, … of the batch that the source gives. So the batch of a step never
depends on how it is cut, and its first n windows are the first n / P of every share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from trajgen.engine.distributed import rank, world

WHOLE = "full_batch"
"""The field of a batch in which its shares find it."""


class Holding(Protocol):
    """A module that learns by itself from what passes through it, once per batch rather than per micro-batch."""

    def hold(self) -> None:
        """From here on it keeps what it sees."""
        ...

    def learn_held(self) -> None:
        """It learns from all that it has kept."""
        ...


class Shares:
    """Cuts batches into the shares of this process.

    Args:
        module: that is trained.
        micro: micro-batches on each process.
    """

    def __init__(self, module: nn.Module, micro: int) -> None:
        self.micro, self.parts = micro, micro * world()
        self._holding: list[Holding] = []
        if micro > 1:
            self._holding = [part for part in map(_holding, module.modules()) if part is not None]

    def of(self, batch: Any) -> Iterator[tuple[int, Any]]:
        """The micro-batches of this process, each with its number among all shares."""
        for part in self._holding:
            part.hold()
        for k in range(self.micro):
            number = k * world() + rank()
            yield number, share(batch, number, self.parts)

    @property
    def held(self) -> bool:
        """Whether a module waits for the end of the batch."""
        return bool(self._holding)

    def learn_held(self) -> None:
        """Has all modules learn that waited for the end of the batch."""
        for part in self._holding:
            part.learn_held()


def share(batch: Any, part: int, parts: int) -> Any:
    """Every ``parts``-th window of a batch from ``part`` on: of a tensor, or of all tensors of a dataclass."""
    if parts == 1:
        return batch
    if torch.is_tensor(batch):
        return batch[part::parts]
    if is_dataclass(batch):
        cut: Any = replace  # of one that its checker cannot tell from its class
        names = [f.name for f in fields(batch)]
        own = {name: share(getattr(batch, name), part, parts) for name in names if name != WHOLE}
        return cut(batch, **own, **({WHOLE: batch} if WHOLE in names else {}))
    return batch


def _holding(module: Any) -> Holding | None:
    return module if hasattr(module, "hold") and hasattr(module, "learn_held") else None
