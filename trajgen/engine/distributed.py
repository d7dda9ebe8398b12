"""Processes that train together: joining and leaving, what they agree on, and what they add up.

With one process nothing happens here: nothing is joined, and every function gives back what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trajgen.core.errors import ConfigError, TrainingError, TrajgenError
from trajgen.engine.launch import ElsewhereError, Launch, read_launch
from trajgen.engine.runtime import choose_device
from trajgen.engine.storage import unsaved_buffers

T = TypeVar("T")
HOST = torch.device("cpu")


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Whether this process is the one that reads, decides and writes."""
    return rank() == 0


def join(device: str) -> torch.device:
    """Joins the other processes, if the launcher started several; before any model is built.

    Args:
        device: auto, cpu, cuda or, for a single process, cuda:N.

    Returns:
        The device of this process: with several on a machine, each takes the one of its local number.

    Raises:
        ConfigError: if there are fewer devices than processes, or the launcher's words are incomplete.
        TrainingError: if the processes do not find each other.
    """
    launch = read_launch()
    if launch.world == 1:
        return choose_device(device)
    own = own_device(device, launch)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    # What is decided passes between hosts by gloo, so that no device has to be waited for.
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    if not dist.is_initialized():
        try:
            dist.init_process_group(
                backend, init_method=launch.meeting, rank=launch.rank, world_size=launch.world,
                device_id=own if own.type == "cuda" else None,
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                "The processes that train together find each other.",
                expected=f"{launch.world} processes that reach each other over the network",
                got=f"process {launch.rank}: {str(error).splitlines()[0]}",
                fix="check the launcher's address and port, and GLOO_SOCKET_IFNAME where a machine has many networks",
            ) from error
    return own


def own_device(name: str, launch: Launch) -> torch.device:
    """The device of one process among several; a `ConfigError` if there is none for it."""
    chosen = choose_device(name)
    if chosen.type != "cuda":
        return chosen
    count = torch.cuda.device_count()
    # Some launchers show each process its own device alone.
    own = 0 if count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ else launch.local
    if chosen.index is not None or own >= count:
        raise ConfigError(
            "Each process takes a device of its own.",
            expected=f"device=cuda, and at most {count} processes on this machine",
            got=f"device={name} for process {launch.rank}, the {launch.local + 1}. on its machine",
            fix="device=cuda with --nproc-per-node=gpu",
        )
    return torch.device("cuda", own)


def leave() -> None:
    """Waits for the other processes, and parts from them: what follows may take its time on one of them."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))
        dist.destroy_process_group()


def agree(decide: Callable[[], T]) -> T:
    """What rank 0 decides; it alone does, the others wait for it.

    Raises:
        ElsewhereError: on the others, if ``decide`` raised an error; on rank 0 the error itself.
    """
    if world() == 1:
        return decide()
    answer: list[T | None] = [None]
    words: list[str | None] = [None]
    failed: BaseException | None = None
    if leads():
        try:
            answer[0] = decide()
        except BaseException as error:  # whatever it is, the others must not wait for ever
            failed, words[0] = error, f"{type(error).__name__}: {error}"
    told = [answer[0], words[0]]
    dist.broadcast_object_list(told, src=0, device=HOST)
    if failed is not None:
        raise failed
    if told[1] is not None:
        raise _elsewhere(str(told[1]))
    return cast(T, told[0])


def in_turn(do: Callable[[], T]) -> T:
    """Has rank 0 do something first, then the others: what the first had to make, they find."""
    made: list[T] = []
    agree(lambda: made.append(do()))
    return made[0] if made else do()


def fail(error: TrajgenError) -> NoReturn:
    """Raises an error that all processes have met, in words on rank 0 alone."""
    raise error if leads() else _elsewhere(error.rule)


def _elsewhere(words: str) -> ElsewhereError:
    return ElsewhereError(
        "Processes that train together end together.",
        expected=f"{world()} processes that go on",
        got=words,
        fix="see what the first process says",
    )


@contextmanager
def together(last: Callable[[], str]) -> Iterator[None]:
    """Turns the loss of a process into a `TrainingError`; ``last`` names the last good checkpoint."""
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not _lost(error):
            raise
        fail(
            TrainingError(
                "Processes that train together end together.",
                expected=f"{world()} processes; the last good checkpoint is {last()}",
                got=f"one of them is gone: {str(error).splitlines()[0][:200]}",
                fix="see above why it ended, then the same command with resume=true",
            )
        )


def _lost(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone; gloo has no class for it."""
    said = str(error).lower()
    return issubclass(type(error), dist.DistError) or any(w in said for w in ("gloo", "connection", "nccl"))


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors of one type by their sums over all processes, in one message."""
    if world() == 1 or not tensors:
        return
    message = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(message)
    for tensor, total in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def mean(values: Tensor) -> Tensor:
    """The mean over all processes; not finite on all of them if it is not on one."""
    if world() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world()


@torch.no_grad()
def same_everywhere(model: nn.Module) -> None:
    """Gives all processes the weights and buffers of rank 0."""
    if world() > 1:
        for value in [*model.state_dict().values(), *unsaved_buffers(model).values()]:
            dist.broadcast(value, src=0)


def everywhere(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors of rank 0, on the device of each process."""
    if world() == 1:
        return dict(tensors)
    about = agree(lambda: {name: (value.shape, value.dtype) for name, value in tensors.items()})
    held = dict(tensors) if leads() else {n: torch.empty(s, dtype=t, device=device) for n, (s, t) in about.items()}
    for name in about:
        dist.broadcast(held[name], src=0)
    return held


class Tally:
    """Adds up what each process counted: the buffers that a model's state leaves out grow by what all of them saw.

    Args:
        model: whose buffers they are; the same on all processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.counts = {k: v for k, v in unsaved_buffers(model).items() if v.dtype != torch.bool}
        self.mark()

    @torch.no_grad()
    def mark(self) -> None:
        """From here on all processes count."""
        self.before = {k: v.clone() for k, v in self.counts.items()} if world() > 1 else {}

    @torch.no_grad()
    def add(self) -> None:
        """Makes each count that of all processes."""
        for name, before in self.before.items():
            grown = self.counts[name] - before
            dist.all_reduce(grown)
            self.counts[name].copy_(before + grown)
        self.mark()
