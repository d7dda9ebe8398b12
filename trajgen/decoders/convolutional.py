"""Convolutional decoders: the plain one, and MAGE's with adapters that read the condition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajgen.core.registry import register
from trajgen.core.types import Cond
from trajgen.nn.conv import ConvDecoder, doublings
from trajgen.nn.layers import mlp


class _Decoder(nn.Module):
    """What both decoders share: a convolutional network from (B, N, C) to (B, T, D)."""

    def __init__(self, features: int, horizon: int, latent_length: int, code_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.network = ConvDecoder(code_dim, features, doublings(horizon, latent_length), width=width, depth=depth)

    def base_parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained with the tokenizer."""
        return list(self.network.parameters())


@register("decoder", "plain")
class PlainDecoder(_Decoder):
    """Decodes the latent alone.

    Args:
        features: D.
        horizon: T.
        latent_length: N.
        code_dim: C.
        width: channels.
        depth: residual blocks per length.
    """

    def __init__(
        self,
        features: int,
        horizon: int,
        latent_length: int,
        code_dim: int,
        *,
        width: int = 64,
        depth: int = 1,
    ) -> None:
        super().__init__(features, horizon, latent_length, code_dim, width, depth)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """None: the condition is not read."""
        return []

    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        """The same as with the condition."""
        return self(latent)

    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D)."""
        x = self.network.head(latent.transpose(1, 2))
        for level in self.network.levels:
            x = level(x)
        return self.network.tail(x).transpose(1, 2)


class _Adapter(nn.Module):
    """Adds a bottleneck of features and condition to the features; zero at the start, so that nothing changes."""

    def __init__(self, width: int, embedding: int, bottleneck: int) -> None:
        super().__init__()
        self.features = nn.Conv1d(width, bottleneck, 3, padding=1)
        self.condition = nn.Linear(embedding, bottleneck)
        self.out = nn.Conv1d(bottleneck, width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias if self.out.bias is not None else self.out.weight)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.features(x) + self.condition(embedded).unsqueeze(-1))
        return x + self.out(hidden)


@register("decoder", "adapter")
class AdapterDecoder(_Decoder):
    """The condition-guided decoder D′: zero-initialized adapters fed by (s_0, R_0) (MAGE, section 3).

    Args:
        features: D.
        horizon: T.
        latent_length: N.
        code_dim: C.
        state_dim: S.
        width: channels.
        depth: residual blocks per length.
        bottleneck: width of the adapters.
        returns: whether the adapters read the return-to-go ("without R in D" is false).
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
    ) -> None:
        super().__init__(features, horizon, latent_length, code_dim, width, depth)
        self.returns = returns
        self.embed = mlp(state_dim + returns, width, width)
        self.position = nn.Parameter(torch.zeros(len(self.network.levels), width))
        self.adapters = nn.ModuleList(_Adapter(width, width, bottleneck) for _ in self.network.levels)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Parameters that read the condition, trained with the prior."""
        return [self.position, *self.embed.parameters(), *self.adapters.parameters()]

    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        """The trajectory without the adapters."""
        return self(latent)

    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D); without a condition the adapters are left out."""
        x = self.network.head(latent.transpose(1, 2))
        values = None
        if cond is not None:
            known = [cond.state, cond.returns.unsqueeze(-1)] if self.returns else [cond.state]
            values = self.embed(torch.cat(known, dim=-1))
        for level, adapter, offset in zip(self.network.levels, self.adapters, self.position, strict=True):
            x = level(x)
            if values is not None:
                x = adapter(x, values + offset)
        return self.network.tail(x).transpose(1, 2)
