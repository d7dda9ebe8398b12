"""Ctrl-C and SIGTERM: collected, and obeyed between two steps by all processes at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from trajgen.engine.distributed import world


class Stop:
    """Whether the training is to end, asked once per step.

    Several processes tell each other by a sum that is begun at one step and looked at in the next: all learn of a
    signal at the same step, no device is waited for, and the message has a whole step to arrive. A host is at most
    one step ahead of the slowest.
    """

    def __init__(self) -> None:
        self.caught: list[int] = []
        self._sent: tuple[dist.Work, torch.Tensor] | None = None

    def asked(self) -> bool:
        """Whether a signal came: to this process, or, one step later, to any of them."""
        if world() == 1:
            return bool(self.caught)
        heard = self.heard()
        flag = torch.tensor([len(self.caught)])
        work = dist.all_reduce(flag, async_op=True)
        if work is not None:
            self._sent = work, flag
        return heard

    def heard(self) -> bool:
        """What the processes said when they were last asked."""
        if self._sent is None:
            return False
        work, flag = self._sent
        self._sent = None
        work.wait()
        return bool(flag)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Collects SIGINT and SIGTERM, so that the loop can end between two steps; a second one does not wait.

    Among several processes a second signal is only another wish to stop: launchers pass on what the person's terminal
    has sent already, and send SIGKILL themselves when they have waited enough.
    """
    stop = Stop()

    def catch(number: int, _: FrameType | None) -> None:
        if stop.caught and world() == 1:
            raise KeyboardInterrupt
        stop.caught.append(number)

    try:
        before = {s: signal.signal(s, catch) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
