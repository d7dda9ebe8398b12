"""The decoder of latents that are trajectories."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.protocols import HasPoints
from trajgen.core.registry import register
from trajgen.core.types import Cond


@register("decoder", "identity")
class IdentityDecoder(nn.Module):
    """The trajectory of a latent that is one, for tokenizers of values such as Diffuser's; nothing is learnt.

    Args:
        tokenizer: one whose latent is the trajectory, as ``identity`` and ``bins``.

    Raises:
        ConfigError: if the tokenizer's latent is not a trajectory.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        if not isinstance(tokenizer, HasPoints):
            raise ConfigError(
                "The identity decoder needs a tokenizer whose latent is the trajectory itself.",
                got=type(tokenizer).__name__,
                fix="decoder=plain, or schedule=unit with tokenizer=identity or tokenizer=bins",
            )
        self._tokenizer: list[HasPoints] = [tokenizer]  # in a list: a submodule of the planner, not of this module

    def base_parameters(self) -> list[nn.Parameter]:
        """None."""
        return []

    def adapter_parameters(self) -> list[nn.Parameter]:
        """None."""
        return []

    def base(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D)."""
        return self._tokenizer[0].points(latent)

    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D); the condition is ignored."""
        return self.base(latent, cond)
