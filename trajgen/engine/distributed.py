"""Data-parallel training: the process group, collectives, and stopping together.

With one process every function here returns what it was given.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trajgen.core.errors import ConfigError, TrainingError, TrajgenError
from trajgen.engine.device import choose_device
from trajgen.engine.launch import Launch, PeerError, read_launch
from trajgen.engine.storage import unsaved_buffers

T = TypeVar("T")
HOST = torch.device("cpu")
PATIENCE = timedelta(seconds=1)
"""For the answer of a process that may be gone."""


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this process is the one that reads, decides and writes: rank 0."""
    return rank() == 0


def init_process_group(device: str) -> torch.device:
    """Joins the processes that a launcher started, if it started several; call it before a model is built.

    Args:
        device: auto, cpu, cuda or, for a single process, cuda:N.

    Returns:
        The device of this process: with several on a machine, the one of its local rank.

    Raises:
        ConfigError: if there are fewer devices than processes, or the launcher's variables are incomplete.
        TrainingError: if the processes do not reach each other.
    """
    launch = read_launch()
    if launch.world_size == 1:
        return choose_device(device)
    chosen = local_device(device, launch)
    cuda = chosen.type == "cuda"
    if cuda:
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",  # decisions go by gloo, so that no device is waited for
                init_method=launch.init_method,
                rank=launch.rank,
                world_size=launch.world_size,
                device_id=chosen if cuda else None,
            )
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                f"Process {launch.rank} does not reach the {launch.world_size - 1} others.",
                got=str(error).splitlines()[0],
                fix="check the launcher's address and port, and GLOO_SOCKET_IFNAME where a machine has many networks",
            ) from error
    return chosen


def local_device(name: str, launch: Launch) -> torch.device:
    """The device of one process among several; a `ConfigError` if there is none for it."""
    chosen = choose_device(name)
    if chosen.type != "cuda":
        return chosen
    count = torch.cuda.device_count()
    # Some launchers show each process its own device alone.
    index = 0 if count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ else launch.local_rank
    if chosen.index is not None or index >= count:
        raise ConfigError(
            "Each process needs a device of its own.",
            expected=f"device=cuda, and at most {count} processes on this machine",
            got=f"device={name} for local rank {launch.local_rank}",
            fix="device=cuda with --nproc-per-node=gpu",
        )
    return torch.device("cuda", index)


def destroy_process_group() -> None:
    """Waits for the other processes, and parts from them, so that rank 0 can go on alone for long."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))
        dist.destroy_process_group()


# --- decisions and failures -----------------------------------------------------------------------------------------


def broadcast_decision(decide: Callable[[], T]) -> T:
    """What ``decide`` returns on rank 0, where alone it is called.

    Raises:
        PeerError: on the other ranks, if ``decide`` raised an error; rank 0 raises the error itself.
    """
    if world_size() == 1:
        return decide()
    answer: list[Any] = [None, None]
    failure: BaseException | None = None
    if is_main_process():
        try:
            answer[0] = decide()
        except BaseException as error:  # whatever it is, the others must not wait for ever
            failure, answer[1] = error, f"{type(error).__name__}: {error}"
    dist.broadcast_object_list(answer, src=0, device=HOST)
    if failure is not None:
        raise failure
    if answer[1] is not None:
        raise _peer_error(str(answer[1]))
    return cast(T, answer[0])


def main_process_first(call: Callable[[], T]) -> T:
    """Calls something on rank 0 and then on the others, which find what rank 0 had to make."""
    results: list[T] = []
    broadcast_decision(lambda: results.append(call()))
    return results[0] if results else call()


def raise_together(error: TrajgenError) -> NoReturn:
    """Raises an error that all processes have met: itself on rank 0, a `PeerError` on the others."""
    raise error if is_main_process() else _peer_error(error.rule)


def _peer_error(message: str) -> PeerError:
    return PeerError("Another process cannot go on.", got=message, fix="see what the first process says")


@contextmanager
def lost_peers(last_checkpoint: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turns the loss of another process into a `TrainingError` that names it and the last checkpoint.

    The first process that is left raises it, and the others a `PeerError`.
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error)  # gloo has no class of its own for it
        lost = issubclass(type(error), dist.DistError) or any(
            w in message.lower() for w in ("gloo", "connection", "nccl")
        )
        if world_size() == 1 or not lost:
            raise
        gone, checkpoint = _unreachable(), last_checkpoint()
        rest = f"; the last good checkpoint is {checkpoint}" if checkpoint else ""
        if rank() != min({*range(world_size())} - {*gone}):
            raise _peer_error(message) from error
        numbers = ", ".join(map(str, gone))
        raise TrainingError(
            "Processes that train together end together.",
            expected=f"{world_size()} processes{rest}",
            got=f"process {numbers} is gone" if gone else f"one of them is gone: {message.splitlines()[0][:200]}",
            fix="see above why it ended, then the same command with resume=true",
        ) from error


def _unreachable() -> list[int]:
    """The processes whose connection to this one is closed."""
    gone = []
    for other in range(world_size()):
        try:
            if other != rank():
                cast(dist.Work, dist.isend(torch.zeros(1), other)).wait(PATIENCE)
        except RuntimeError as error:
            if "timed out" not in str(error).lower():  # one that is there does not expect a message
                gone.append(other)
    return gone


# --- tensors --------------------------------------------------------------------------------------------------------


def all_reduce_sum(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors of one type by their sums over all processes, in one message."""
    if world_size() == 1 or not tensors:
        return
    message = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(message)
    for tensor, total in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over all processes; not finite on all of them if it is not on one."""
    total = [values.clone()]
    all_reduce_sum(total)
    return total[0] / world_size()


@torch.no_grad()
def broadcast_model(model: nn.Module) -> None:
    """Gives all processes the weights and buffers of rank 0."""
    if world_size() > 1:
        for value in [*model.state_dict().values(), *unsaved_buffers(model).values()]:
            dist.broadcast(value, src=0)


def broadcast(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors of rank 0, on the device of each process."""
    if world_size() == 1:
        return dict(tensors)
    specs = broadcast_decision(lambda: {name: (value.shape, value.dtype) for name, value in tensors.items()})
    received = {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in specs.items()}
    if is_main_process():
        received = dict(tensors)
    for name in specs:
        dist.broadcast(received[name], src=0)
    return received


class SyncedCounters:
    """Sums what each process counts in the buffers outside a model's state.

    Args:
        model: with equal buffers on all processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.counters = {k: v for k, v in unsaved_buffers(model).items() if v.dtype != torch.bool}
        self.mark()

    @torch.no_grad()
    def mark(self) -> None:
        """Remembers the counters, which are equal now."""
        self.before = {k: v.clone() for k, v in self.counters.items()} if world_size() > 1 else {}

    @torch.no_grad()
    def sync(self) -> None:
        """Makes each counter that of all processes."""
        for name, before in self.before.items():
            now = self.counters[name]
            increase = torch.where(now == before, 0, now - before)  # infinities of a mask have no difference
            dist.all_reduce(increase)
            self.counters[name].copy_(before + increase)
        self.mark()


# --- stopping -------------------------------------------------------------------------------------------------------


class StopSignal:
    """Whether SIGINT or SIGTERM came to any of the processes.

    The processes sum their flags: the sum is begun at one step and read at the next, so that all stop after the same
    step, no device is waited for, and the message has a whole step to arrive.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._pending: tuple[dist.Work, Tensor] | None = None

    def should_stop(self) -> bool:
        """Whether a signal came to this process or, a step later, to any of them; called once per step."""
        if world_size() == 1:
            return bool(self.received)
        stop, flag = self.finish(), torch.tensor([len(self.received)])
        work = dist.all_reduce(flag, async_op=True)
        self._pending = None if work is None else (work, flag)
        return stop

    def finish(self) -> bool:
        """Reads the sum that was begun last."""
        if self._pending is None:
            return False
        (work, flag), self._pending = self._pending, None
        work.wait()
        return bool(flag)


@contextmanager
def catch_signals() -> Iterator[StopSignal]:
    """Collects SIGINT and SIGTERM; in a single process a second one raises KeyboardInterrupt at once.

    Launchers of several processes pass on what the terminal has sent already, so there a second signal is as the first.
    """
    stop = StopSignal()

    def receive(number: int, _: FrameType | None) -> None:
        if stop.received and world_size() == 1:
            raise KeyboardInterrupt
        stop.received.append(number)

    try:
        handlers = {s: signal.signal(s, receive) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, where alone signals can be handled
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
