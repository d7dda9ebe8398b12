"""Target networks: copies of a network that follow it slowly, so that what is bootstrapped from stands still."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def target_of(network: M) -> M:
    """A copy of a network whose weights are buffers: they are saved, and no optimizer trains them."""
    target = deepcopy(network)
    for module in target.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.detach().clone())
    return target


@torch.no_grad()
def follow(target: nn.Module, network: nn.Module, rate: float) -> None:
    """Moves a target's weights towards those of its network: θ' ← θ' + rate (θ - θ') (arXiv 1509.02971, section 3).

    Where the network has low-rank adapters, θ includes them.
    """
    names = [name.rpartition(".") for name, _ in target.named_buffers()]
    weights = [getattr(network.get_submodule(layer), weight) for layer, _, weight in names]
    torch._foreach_lerp_(list(target.buffers()), weights, rate)
