"""The device: its choice and precision, the time that parts of a step take on it, and random numbers by step."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch

from trajgen.core.errors import ConfigError

SEED_RANGE = 2**63
INDEX_STRIDE = 3_266_489_917
"""Distance of the seeds of two micro-batches; 256 of them have no seed in common in 10^7 steps."""
PARTS = ("data", "forward", "backward", "optimizer", "logging")
"""Parts of a step that are timed; logging includes validation and checkpoints."""


def choose_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is CUDA where there is one, else the CPU.

    A CUDA device with a number becomes the current one, on which streams and graphs are made.

    Raises:
        ConfigError: if torch does not know the name, or finds no such CUDA device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"torch knows no device={name}.", expected="auto, cpu, cuda or cuda:N", fix="device=auto"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device={name}, and torch finds no CUDA device.",
            got=f"torch {torch.__version__}, built for CUDA {torch.version.cuda}",
            fix="device=cpu, or device=auto; CUDA takes an NVIDIA GPU with its driver, and a torch built for it",
        )
    if device.type == "cuda" and device.index is not None:
        count = torch.cuda.device_count()
        if device.index >= count:
            raise ConfigError(
                f"There is no device={name}.",
                expected="cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}",
                fix="device=cuda, or another number",
            )
        torch.cuda.set_device(device)
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which losses are computed; ``auto`` is bfloat16 where the device computes faster in it."""
    if precision == "auto":
        precision = "bfloat16" if _has_fast_bfloat16(device) else "float32"
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@cache
def _has_fast_bfloat16(device: torch.device) -> bool:
    """Whether there are instructions for matrix products: CUDA since Ampere, x86 with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def prefer_fast_matmul(device: torch.device) -> None:
    """Lets float32 matrix products use TF32 on CUDA; the CPU keeps full precision."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def check_compiler() -> None:
    """Raises a `ConfigError` if there is no C++ compiler, which torch.compile needs on every device."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"engine.compile=true needs a C++ compiler, and there is no {compiler}.",
            fix="install one (environment variable CXX names it), or engine.compile=false",
        )


def seed_step(seed: int, step: int, index: int = 0) -> None:
    """Makes all random numbers of a micro-batch a function of seed, step and its index, so that no state is saved."""
    number = (seed * 1_000_003 + step * 7_919 + 12_345 + index * INDEX_STRIDE) % SEED_RANGE
    torch.default_generator.manual_seed(number)  # torch.manual_seed takes 0.7 ms where CUDA is not initialized
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device has no memory left; torch has a class for it on CUDA alone."""
    return type(error) is torch.OutOfMemoryError or "can't allocate memory" in str(error)


@contextmanager
def fits_into_memory(device: torch.device, what: str) -> Iterator[None]:
    """Turns memory that runs out while something is put on a device into a `ConfigError`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"There is no memory left for {what}.",
            got=f"{device}: {str(error).splitlines()[0]}",
            fix="end what else uses the device's memory, a smaller model, or device=cpu",
        ) from error


class Timer:
    """Sums up the seconds of the parts of steps without waiting for the device.

    On CUDA the host runs ahead, so parts are marked by events in the device's queue, and read when a line is logged,
    where the losses are waited for anyway. Logging is measured on the host's clock.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._cuda = device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what is done within it as ``name``, one of `PARTS`."""
        if self._cuda and name != "logging":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            start = time.perf_counter()
            yield
            self.seconds[name] += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Seconds so far, as ``seconds/PART``."""
        for name, begin, end in self._events:
            end.synchronize()
            self.seconds[name] += begin.elapsed_time(end) / 1e3
        self._events.clear()
        return {f"seconds/{name}": value for name, value in self.seconds.items()}
