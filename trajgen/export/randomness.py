"""Randomness as an input: the draws of a function are recorded, and replayed to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from trajgen.core.errors import ConfigError

FILLS: dict[str, Callable[..., Tensor]] = {
    "exponential": Tensor.exponential_,
    "normal": Tensor.normal_,
    "uniform": Tensor.uniform_,
}
"""The distributions that can be an input, each in its standard form."""
DISTRIBUTIONS: dict[Callable[..., Any], str] = {
    Tensor.exponential_: "exponential",
    Tensor.normal_: "normal",
    torch.randn: "normal",
    torch.randn_like: "normal",
    Tensor.uniform_: "uniform",
    torch.rand: "uniform",
    torch.rand_like: "uniform",
}
UNSUPPORTED = (torch.multinomial, torch.bernoulli, torch.randint, torch.randperm, torch.normal, torch.poisson)
KEYWORDS = {"generator", "device", "dtype", "size"}


@dataclass(frozen=True)
class Draw:
    """One call for random numbers: its distribution, and the shape of its result."""

    kind: str
    shape: tuple[int, ...]

    def sample(self, rng: Generator | None, device: torch.device) -> Tensor:
        """Fresh numbers, as the recorded call would have drawn them from this generator."""
        return FILLS[self.kind](torch.empty(self.shape, device=device), generator=rng)


class RecordDraws(TorchFunctionMode):
    """Records what a function draws, and whether it takes gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []
        self.takes_gradients = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.takes_gradients |= func is torch.autograd.grad
        kind = _distribution(func, args, kwargs)
        if kind is not None:
            self.draws.append(Draw(kind, tuple(result.shape)))
        return result


class ReplayNoise(TorchFunctionMode):
    """Gives a function these numbers where it would draw, in the order in which its draws were recorded."""

    def __init__(self, noise: Sequence[Tensor]) -> None:
        super().__init__()
        self.noise = iter(noise)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if _distribution(func, args, kwargs) is not None:
            return next(self.noise)
        return func(*args, **(kwargs or {}))


def _distribution(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> str | None:
    """The distribution that a call draws from; None if it draws nothing.

    Raises:
        ConfigError: if it draws from one that cannot be an input.
    """
    kind = DISTRIBUTIONS.get(func)
    takes_shape = func in (torch.randn, torch.rand)  # their positional arguments are a shape, not parameters
    if func in UNSUPPORTED or (kind and not takes_shape and (len(args) > 1 or set(kwargs or {}) - KEYWORDS)):
        raise ConfigError(
            "A compiled or exported plan draws standard random numbers only: exponential_(), randn, randn_like, rand "
            "or rand_like, without parameters.",
            got=f"{getattr(func, '__name__', func)}",
            fix="sampler=greedy, or policy.backend=eager",
        )
    return kind
