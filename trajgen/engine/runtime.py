"""The device, its precision, and random numbers that depend on the step alone."""

from __future__ import annotations

import contextlib
import os
import shutil
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

from trajgen.core.errors import ConfigError

SEED_RANGE = 2**63
SHARE = 3_266_489_917
"""What lies between the seeds of two shares of a batch, so chosen that 256 of them share none in 10^7 steps."""


def choose_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: if CUDA is asked for and there is none, or the name means nothing to torch.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            "The device is one that torch knows.",
            expected="auto, cpu, cuda or cuda:N",
            got=f"device={name}",
            fix="device=auto to take what there is",
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "CUDA was asked for, and torch finds no CUDA device.",
            expected="an NVIDIA GPU with its driver, and a torch that is built for it",
            got=f"device={name}; torch {torch.__version__}, built for CUDA {torch.version.cuda}",
            fix="device=cpu, or device=auto to take what there is",
        )
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which losses are computed; ``auto`` is bfloat16 where the device computes faster in it."""
    if precision == "auto":
        precision = "bfloat16" if _gains_by_bfloat16(device) else "float32"
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@cache
def _gains_by_bfloat16(device: torch.device) -> bool:
    """Whether matrix products have instructions of their own: CUDA since Ampere, x86 with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def prefer_fast_matmul(device: torch.device) -> None:
    """Lets float32 matrix products use TF32 on CUDA; the CPU keeps full precision."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def check_compiler() -> None:
    """Refuses to compile where torch could not, before anything is trained.

    Raises:
        ConfigError: if there is no C++ compiler; torch.compile needs one on every device.
    """
    asked = os.environ.get("CXX", "g++")
    if shutil.which(asked) is None:
        raise ConfigError(
            "torch.compile needs a C++ compiler.",
            expected="g++, or another one named by the environment variable CXX",
            got=f"engine.compile=true, and no {asked} here",
            fix="install one, or engine.compile=false",
        )


def seed_step(seed: int, step: int, part: int = 0) -> None:
    """Makes all random numbers of a step's share a function of seed, step and share, so that no state needs saving."""
    torch.manual_seed((seed * 1_000_003 + step * 7_919 + 12_345 + part * SHARE) % SEED_RANGE)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that the memory of a device is used up; torch has a class for it on CUDA alone."""
    return type(error) is torch.OutOfMemoryError or "can't allocate memory" in str(error)
