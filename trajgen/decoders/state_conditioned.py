"""The decoder that continues a given state: latents say what happens, the state says from where."""

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

    An embedding of the current state is added to the first features of every latent, so that the codes need not
    say where the window starts. The condition is therefore required; whether it is withheld from the prior makes no
    difference here, since the state was measured in any case. Causal convolutions, normalized place by place, decode
    latents 0 to i to the first (i + 1) · T / N points exactly, whatever follows: what a search over partial rows of
    latents relies on.

    Args:
        features: D.
        horizon: T, which is N times a power of two.
        latent_length: N.
        code_dim: C.
        state_dim: S.
        goal_dim: G.
        width: channels.
        depth: residual blocks per length.
        causal: whether a latent's points follow from it and the latents before it alone.
        goal: whether the goal is added as well.

    Raises:
        ConfigError: if T is not N times a power of two, or there is no goal to add.
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
                "A decoder can be told the goal only if plans have one.",
                expected="data.goals=dataset or hindsight",
                got="decoder.goal=true, data without goals",
                fix="decoder.goal=false",
            )
        self.goal = goal
        self.embed = mlp(state_dim + goal * goal_dim, width, width)
        self.network = ConvDecoder(
            code_dim, features, doublings(horizon, latent_length), width=width, depth=depth, causal=causal
        )

    def base_parameters(self) -> list[nn.Parameter]:
        """All of them: they are trained with the tokenizer."""
        return list(self.parameters())

    def adapter_parameters(self) -> list[nn.Parameter]:
        """None: nothing is left for the prior's stage."""
        return []

    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        """The same as the whole."""
        return self(latent, cond)

    def forward(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latent (B, N, C), given the current state, to trajectory (B, T, D)."""
        known = [cond.state]
        if self.goal and cond.goal is not None:
            known.append(cond.goal)
        x = self.network.head(latent.transpose(1, 2)) + self.embed(torch.cat(known, dim=-1)).unsqueeze(-1)
        for level in self.network.levels:
            x = level(x)
        return self.network.tail(x).transpose(1, 2)
