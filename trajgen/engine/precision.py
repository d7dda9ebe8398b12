"""The precision of a stage's losses: bfloat16 where the device is faster in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from trajgen.core.stages import Stage
from trajgen.core.types import Batch
from trajgen.engine.storage import unsaved_buffers

CUDA_PRODUCT = 2**28
"""Operations of a matrix product, in the mean of a stage, from which bfloat16 is used on CUDA. A smaller product takes
less time than its launch, and the casts are launches too: on an H100 steps with 19 and 37 million are 16 and 7 % faster
in float32. Larger ones are taken to gain, and have not been measured."""


def choose_precision(
    stage: Stage, batch: Callable[[], Batch], model: nn.Module, device: torch.device, precision: str
) -> str:
    """``float32`` or ``bfloat16``; ``auto`` is decided by the device and by the size of the stage's matrix products.

    The size alone decides, never a clock, so that a training that is repeated or resumed computes the same.

    Args:
        stage: whose losses are computed.
        batch: draws as many windows as a step computes at once.
        model: begins the stage again afterwards, unchanged.
        device: that computes.
        precision: ``auto``, ``float32`` or ``bfloat16``.
    """
    if precision != "auto":
        return precision
    if not _has_fast_bfloat16(device):
        return "float32"
    if device.type == "cuda" and mean_product(stage, batch(), model) < CUDA_PRODUCT:
        return "float32"
    return "bfloat16"


@torch.no_grad()
def mean_product(stage: Stage, batch: Batch, model: nn.Module) -> float:
    """Operations of a matrix product or convolution of the stage's losses, in the mean; 0 where there is none."""
    buffers = {name: value.clone() for name, value in unsaved_buffers(model).items()}
    model.eval()  # as in validation, where nothing is learnt
    with CostCounter() as cost:
        stage.loss(batch)
    stage.begin(model)
    for name, value in unsaved_buffers(model).items():
        value.copy_(buffers[name])
    return cost.operations / max(1, cost.products)


class CostCounter(TorchDispatchMode):
    """Counts the work that is done within it.

    ``products`` are matrix products, convolutions and attention; ``operations`` theirs, two for each multiply-add;
    ``bytes`` are read by them, each operand once for each product; ``launches`` are the calls of operations that
    compute something.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = self.operations = self.bytes = self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.launches += not func.is_view
        if count := flop_registry.get(func.overloadpacket):
            self.products += 1
            self.operations += count(*args, **(kwargs or {}), out_val=result)
            self.bytes += sum(a.numel() * a.element_size() for a in args if torch.is_tensor(a))
        return result


@cache
def _has_fast_bfloat16(device: torch.device) -> bool:
    """Whether there are instructions for matrix products: CUDA since Ampere, x86 with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
