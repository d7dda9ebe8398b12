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
    """The condition-guided decoder D′(Z, R_0): zero-initialized adapters fed by the return-to-go (MAGE, section 3).

    The current state is not an input: only Z can bring it, which is what lets L_cond train the prior.

    Args:
        features: D.
        horizon: T.
        latent_length: N.
        code_dim: C.
        state_dim: S.
        width: channels.
        depth: residual blocks per length.
        bottleneck: width of the adapters.
        returns: whether decoder and adapters read the return-to-go; false is the paper's ablation "without R in D".
        state: whether the adapters read the current state too, an ablation: D′ then copies it, and L_cond is met
            without the prior.
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
        self.position = nn.Parameter(torch.zeros(len(self.network.levels), width))
        self.adapters = nn.ModuleList(_Adapter(width, width, bottleneck) for _ in self.network.levels)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The adapters' weights, trained with the prior."""
        embed = list(self.embed.parameters()) if self.embed is not None else []
        return [self.position, *embed, *self.adapters.parameters()]

    def base_parameters(self) -> list[nn.Parameter]:
        """The decoder's own weights, trained with the tokenizer."""
        embed = list(self.base_embed.parameters()) if self.base_embed is not None else []
        return [*self.network.parameters(), *embed]

    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D) without the adapters: the tokenizer's decoder D(f̂, R_0)."""
        return self._decode(latent, cond, adapted=False)

    def forward(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D): D′(Z, R_0)."""
        return self._decode(latent, cond, adapted=True)

    def _decode(self, latent: Tensor, cond: Cond, adapted: bool) -> Tensor:
        x = self.network.head(latent.transpose(1, 2))
        returns = cond.returns.unsqueeze(-1)
        if self.base_embed is not None:
            x = x + self.base_embed(returns).unsqueeze(-1)
        inputs = [*([returns] if self.returns else []), *([cond.state] if self.state else [])]
        embedded = self.embed(torch.cat(inputs, dim=-1)) if self.embed is not None else x.new_zeros(())
        for level, adapter, offset in zip(self.network.levels, self.adapters, self.position, strict=True):
            x = level(x)
            if adapted:
                x = adapter(x, (embedded + offset).expand(len(x), -1))
        return self.network.tail(x).transpose(1, 2)
