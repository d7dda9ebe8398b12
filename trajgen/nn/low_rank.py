"""Low-rank adapters of linear layers (LoRA, arXiv 2106.09685, section 4.1), as torch's parametrizations of weights.

The paper's factor α / r is left out. A checkpoint names the adapted weight
``LAYER.parametrizations.weight.original``, and the two factors that are added to it
``LAYER.parametrizations.weight.0.up`` and ``.down``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trajgen.core.errors import CheckpointError

ADAPTED = ".parametrizations.weight."
"""What stands between an adapted layer and its tensors in the names of a state."""


class LowRank(nn.Module):
    """Adds ``up @ down`` to a weight (out, in); ``up`` starts at 0, so that the layer starts as it was.

    Args:
        weight: (out, in).
        rank: columns of ``up`` (out, rank) and rows of ``down`` (rank, in); of a smaller weight, its smaller side.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        width, inputs = weight.shape
        rank = min(rank, width, inputs)
        self.up = nn.Parameter(weight.new_zeros(width, rank))
        self.down = nn.Parameter(weight.new_empty(rank, inputs).uniform_(-1, 1) * inputs**-0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight (out, in)."""
        return weight + self.up @ self.down


def add_adapters(module: nn.Module, rank: int) -> int:
    """Adds low-rank adapters to the linear layers of a module that have none; returns how many layers have one."""
    layers = adaptable(module)
    for layer in layers:
        if not parametrize.is_parametrized(layer, "weight"):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return len(layers)


def adaptable(module: nn.Module) -> list[nn.Linear]:
    """The linear layers of a module; not those of target networks, whose weights are buffers that follow others."""
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    return [layer for layer in layers if "weight" not in dict(layer.named_buffers(recurse=False))]


def adapter_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of all low-rank adapters below a module."""
    return [p for each in module.modules() if isinstance(each, LowRank) for p in each.parameters()]


@torch.no_grad()
def merge_adapters(module: nn.Module) -> None:
    """Adds the adapters of a module to the weights that they adapt, and removes them."""
    for layer in list(module.modules()):
        adapter = dict(layer.named_modules()).get("parametrizations.weight.0")
        if isinstance(adapter, LowRank):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def plain_name(name: str) -> str:
    """The name of an adapted weight without adapters; any other name as it is."""
    return name.replace(f"{ADAPTED}original", ".weight")


def merged_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model in which its adapters are merged, by the names that it has without them.

    Raises:
        CheckpointError: if an adapter is missing, or does not fit the weight that it adapts.
    """
    merged = {}
    for name, value in state.items():
        layer, adapted, part = name.partition(ADAPTED)
        if not adapted:
            merged[name] = value
        elif part == "original":
            up, down = (state.get(f"{layer}{ADAPTED}0.{factor}", torch.empty(0)) for factor in ("up", "down"))
            if (*up.shape[:1], *down.shape[1:]) != value.shape or up.shape[1:] != down.shape[:1]:  # of any size
                rule = "An adapter has the shape of the weight that it adapts."
                raise CheckpointError(rule, got=name, fix="another run")
            merged[f"{layer}.weight"] = value + up @ down
    return merged
