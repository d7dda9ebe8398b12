"""Convolutional decoders: plain, MAGE's with adapters for the condition, and TAP's with the current state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.types import Cond
from trajgen.nn.layers import ConvDecoder, doublings, mlp


class _Decoder(nn.Module):
    """A convolutional network from (B, N, C) to (B, T, D)."""

    def __init__(
        self,
        features: int,
        horizon: int,
        latent_length: int,
        code_dim: int,
        width: int,
        depth: int,
        causal: bool = False,
    ) -> None:
        super().__init__()
        times = doublings(horizon, latent_length)
        self.network = ConvDecoder(code_dim, features, times, width=width, depth=depth, causal=causal)

    def base_parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained with the tokenizer."""
        return list(self.network.parameters())

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Parameters of the adapters, trained with the prior."""
        return []

    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D) without the condition."""
        return self.network(latent)


@register("decoder", "plain")
class PlainDecoder(_Decoder):
    """Decodes the latent without the condition.

    Args:
        features: D.
        horizon: T.
        latent_length: points N of the latent, the number of tokens of the finest scale.
        code_dim: C.
        width: channels of its convolutions.
        depth: residual blocks per length.

    Raises:
        ConfigError: if T is not N times a power of two.
    """

    def __init__(
        self, features: int, horizon: int, latent_length: int, code_dim: int, *, width: int = 64, depth: int = 1
    ) -> None:
        super().__init__(features, horizon, latent_length, code_dim, width, depth)

    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D)."""
        return self.network(latent)


class _Adapter(nn.Module):
    """Adds a bottleneck of features (B, W, n) and condition (B, E) to the features; zero at initialization."""

    def __init__(self, width: int, cond_width: int, bottleneck: int) -> None:
        super().__init__()
        self.input_proj = nn.Conv1d(width, bottleneck, 3, padding=1)
        self.cond_proj = nn.Linear(cond_width, bottleneck)
        self.out = nn.Conv1d(bottleneck, width, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.input_proj(x) + self.cond_proj(embedded).unsqueeze(-1))
        return x + self.out(hidden)


@register("decoder", "adapter")
class AdapterDecoder(_Decoder):
    """The condition-guided decoder D′(Z, R_0): zero-initialized adapters fed by the return-to-go (MAGE, section 3).

    The current state is not an input: only Z can bring it, which is what lets L_cond train the prior.

    Args:
        features: D.
        horizon: T.
        latent_length: points N of the latent, the number of tokens of the finest scale.
        code_dim: C.
        state_dim: S.
        width: channels of its convolutions.
        depth: residual blocks per length.
        bottleneck: width of the adapters.
        returns: whether decoder and adapters take the return-to-go; false is the paper's ablation "without R in D".
        state: whether the adapters take the current state too, an ablation: D′ then copies it, and L_cond is met
            without the prior.

    Raises:
        ConfigError: if T is not N times a power of two.
    """

    def __init__(
        self,
        features: int,
        horizon: int,
        latent_length: int,
        code_dim: int,
        state_dim: int,
        *,
        width: int = 64,
        depth: int = 1,
        bottleneck: int = 32,
        returns: bool = True,
        state: bool = False,
    ) -> None:
        super().__init__(features, horizon, latent_length, code_dim, width, depth)
        self.returns, self.state = returns, state
        self.base_embed = mlp(1, width, width) if returns else None
        self.embed = mlp(returns + state * state_dim, width, width) if returns or state else None
        self.level_embed = nn.Parameter(torch.zeros(len(self.network.levels), width))
        self.adapters = nn.ModuleList(_Adapter(width, width, bottleneck) for _ in self.network.levels)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Parameters of the adapters, trained with the prior."""
        embed = list(self.embed.parameters()) if self.embed is not None else []
        return [self.level_embed, *embed, *self.adapters.parameters()]

    def base_parameters(self) -> list[nn.Parameter]:
        """Parameters of the decoder without its adapters, trained with the tokenizer."""
        embed = list(self.base_embed.parameters()) if self.base_embed is not None else []
        return [*self.network.parameters(), *embed]

    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D) without the adapters: the tokenizer's decoder D(f̂, R_0)."""
        bias = None if self.base_embed is None else self.base_embed(cond.returns.unsqueeze(-1))
        return self.network(latent, bias)

    def forward(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D): D′(Z, R_0)."""
        x = self.network.head(latent.transpose(1, 2))
        if self.base_embed is not None:
            x = x + self.base_embed(cond.returns.unsqueeze(-1)).unsqueeze(-1)
        values = [*([cond.returns.unsqueeze(-1)] if self.returns else []), *([cond.state] if self.state else [])]
        embedded = self.embed(torch.cat(values, dim=-1)) if self.embed is not None else x.new_zeros(())
        for level, adapter, level_embed in zip(self.network.levels, self.adapters, self.level_embed, strict=True):
            x = adapter(level(x), (embedded + level_embed).expand(len(x), -1))
        return self.network.tail(x).transpose(1, 2)


@register("decoder", "state_conditioned")
class StateConditionedDecoder(_Decoder):
    """Decodes latents given the current state, trained with the tokenizer (TAP, arXiv 2208.10291, section 3.2).

    An embedding of the current state is added to the features of every latent, so that codes need not describe where
    the window starts. The condition is therefore required, and is used even where it is masked for the prior. With
    causal convolutions, latents 0 to i decode to the first (i + 1) · T / N points whatever follows, which a search
    over partial rows of latents needs.

    Args:
        features: D.
        horizon: T, which is N times a power of two.
        latent_length: points N of the latent, the number of tokens of the finest scale.
        code_dim: C.
        state_dim: S.
        goal_dim: G.
        view: features of a point.
        width: channels of its convolutions.
        depth: residual blocks per length.
        causal: whether a latent's points depend on it and the latents before it alone.
        goal: whether the goal is embedded as well, where the data have goals.
        residual: whether decoded states are differences from the current one, as in TAP's code.

    Raises:
        ConfigError: if T is not N times a power of two, or for ``residual`` without states.
    """

    def __init__(
        self,
        features: int,
        horizon: int,
        latent_length: int,
        code_dim: int,
        state_dim: int,
        goal_dim: int,
        view: Any,
        *,
        width: int = 64,
        depth: int = 1,
        causal: bool = True,
        goal: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__(features, horizon, latent_length, code_dim, width, depth, causal)
        if residual and "state" not in view.slices:
            raise ConfigError(
                "decoder.residual=true needs a view with the state.",
                got=f"view.fields={list(view.slices)}",
                fix="decoder.residual=false",
            )
        self.goal, self.view, self.residual = goal and goal_dim > 0, view, residual
        self.embed = mlp(state_dim + self.goal * goal_dim, width, width)

    def base_parameters(self) -> list[nn.Parameter]:
        """All parameters, which are trained with the tokenizer."""
        return list(self.parameters())

    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        """The same as `forward`."""
        return self(latent, cond)

    def forward(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latent (B, N, C) and the current state to trajectory (B, T, D)."""
        values = [cond.state, cond.goal] if self.goal and cond.goal is not None else [cond.state]
        x = self.network(latent, self.embed(torch.cat(values, dim=-1)))
        if not self.residual:
            return x
        fields = self.view.slices.items()
        return x + torch.cat(
            [cond.state if name == "state" else torch.zeros_like(x[:, 0, field]) for name, field in fields], dim=-1
        ).unsqueeze(1)
