"""The decoder that is conditioned on the current state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.types import Cond
from trajgen.nn.conv import ConvDecoder, doublings
from trajgen.nn.layers import mlp


@register("decoder", "state_conditioned")
class StateConditionedDecoder(nn.Module):
    """Decodes latents given the current state, trained with the tokenizer (TAP, arXiv 2208.10291, section 3.2).

    An embedding of the current state is added to the features of every latent, so that codes need not describe where
    the window starts. The condition is therefore required, and is used even where it is masked for the prior. With
    causal convolutions, latents 0 to i decode to the first (i + 1) · T / N points whatever follows, which a search
    over partial rows of latents needs.

    Args:
        features: D.
        horizon: T, which is N times a power of two.
        latent_length: N.
        code_dim: C.
        state_dim: S.
        goal_dim: G.
        width: channels.
        depth: residual blocks per length.
        causal: whether a latent's points depend on it and the latents before it alone.
        goal: whether the goal is embedded as well.

    Raises:
        ConfigError: if T is not N times a power of two, or ``goal`` without goals.
    """

    def __init__(
        self,
        features: int,
        horizon: int,
        latent_length: int,
        code_dim: int,
        state_dim: int,
        goal_dim: int,
        *,
        width: int = 64,
        depth: int = 1,
        causal: bool = True,
        goal: bool = False,
    ) -> None:
        super().__init__()
        if goal and not goal_dim:
            raise ConfigError(
                "decoder.goal=true needs data with goals.",
                expected="data.goals=dataset or hindsight",
                got="data without goals",
                fix="decoder.goal=false",
            )
        self.goal = goal
        self.embed = mlp(state_dim + goal * goal_dim, width, width)
        self.network = ConvDecoder(
            code_dim, features, doublings(horizon, latent_length), width=width, depth=depth, causal=causal
        )

    def base_parameters(self) -> list[nn.Parameter]:
        """All parameters, which are trained with the tokenizer."""
        return list(self.parameters())

    def adapter_parameters(self) -> list[nn.Parameter]:
        """None."""
        return []

    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        """The same as `forward`."""
        return self(latent, cond)

    def forward(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latent (B, N, C) and the current state to trajectory (B, T, D)."""
        values = [cond.state, cond.goal] if self.goal and cond.goal is not None else [cond.state]
        return self.network(latent, self.embed(torch.cat(values, dim=-1)))
