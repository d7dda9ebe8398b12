"""The device: its choice and its memory."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from trajgen.core.checks import check_device
from trajgen.core.errors import ConfigError, is_out_of_memory


def choose_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is CUDA where there is one, else the CPU.

    A CUDA device with a number becomes the current one, on which streams and graphs are made.

    Raises:
        ConfigError: if it is no name of a device, or torch finds no such CUDA device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device(name)
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device={name}, and torch finds no CUDA device.",
            got=f"torch {torch.__version__}, built for CUDA {torch.version.cuda}",
            fix="device=cpu, or device=auto; CUDA takes an NVIDIA GPU with its driver, and a torch built for it",
        )
    if device.type == "cuda" and device.index is not None:
        count = torch.cuda.device_count()
        if device.index >= count:
            fix = "device=cuda or cuda:0" if count == 1 else f"device=cuda, or cuda:0 to cuda:{count - 1}"
            raise ConfigError(f"There is no device={name}.", fix=fix)
        torch.cuda.set_device(device)
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which losses are computed, for a precision of ``float32`` or ``bfloat16``."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def fast_matmul(device: torch.device) -> Iterator[None]:
    """Lets float32 matrix products use TF32 on CUDA; the CPU keeps full precision.

    The setting is that of the process, so it is put back: an evaluation after the training acts as one by itself.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check_compiler() -> None:
    """Raises a `ConfigError` if there is no C++ compiler, which torch.compile needs on every device."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"engine.compile=true needs a C++ compiler, and there is no {compiler}.",
            fix="install one (environment variable CXX names it), or engine.compile=false",
        )


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
