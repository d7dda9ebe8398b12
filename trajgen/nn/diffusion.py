"""What a denoising prior and its sampler share: the noise levels, and networks over noisy tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.nn.attention import AdaptiveBlock
from trajgen.nn.layers import mlp

LINEAR_STEPS = 1000
"""The number of levels for which the usual ends of the linear schedules were chosen (arXiv 2006.11239, section 4)."""

KERNEL = 5
"""Points that a convolution spans, as in Diffuser."""


def noise_levels(timesteps: int, beta_schedule: str) -> Any:
    """The noise levels 0 (least) to ``timesteps`` - 1 (most), as a ``DDIMScheduler`` of the diffusers library.

    Level t keeps a share ᾱ_t of the codes' variance: x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) noise. The scheduler expects
    predictions of x_0, clips nothing, and starts at the last level.

    Args:
        timesteps: the number of levels.
        beta_schedule: how noise grows: squaredcos_cap_v2 (arXiv 2102.09672, section 3.2), linear or scaled_linear.

    Raises:
        ConfigError: if diffusers is not installed.
    """
    try:
        from diffusers import DDIMScheduler  # takes seconds, and only diffusion needs it
    except ImportError as error:
        raise ConfigError(
            "Diffusion takes its noise levels from the diffusers library, which is not installed.",
            expected="the package diffusers",
            got=str(error),
            fix="pip install diffusers",
        ) from error
    spread = LINEAR_STEPS / timesteps  # so that with fewer levels the last one still is all noise
    return DDIMScheduler(
        num_train_timesteps=timesteps,
        beta_schedule=beta_schedule,
        beta_start=min(1e-4 * spread, 0.999),
        beta_end=min(0.02 * spread, 0.999),
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )


class LevelEmbedding(nn.Module):
    """Noise levels (B,) to embeddings (B, 1, E): an MLP of sines and cosines (arXiv 2212.09748, appendix A).

    Args:
        timesteps: the number of levels.
        width: E.
        frequencies: how many sines, and how many cosines.
    """

    waves: Tensor

    def __init__(self, timesteps: int, width: int, frequencies: int = 32) -> None:
        super().__init__()
        share = torch.arange(timesteps, dtype=torch.float32) * (LINEAR_STEPS / timesteps)
        falling = torch.exp(-math.log(10_000) * torch.arange(frequencies) / frequencies)
        phase = share[:, None] * falling
        self.register_buffer("waves", torch.cat([phase.cos(), phase.sin()], dim=-1), persistent=False)
        self.layers = mlp(2 * frequencies, width, width)

    def forward(self, t: Tensor) -> Tensor:
        embedded: Tensor = self.layers(self.waves[t])
        return embedded.unsqueeze(1)


class NoisyTransformer(nn.Module):
    """Transformer in which all tokens see each other, modulated by a condition (DiT, arXiv 2212.09748, section 3.2).

    Args:
        tokens: L.
        inputs: width of a token.
        outputs: width of what is predicted for each.
        embedding: E, the width of the condition.
        width: W.
        depth: layers.
        heads: attention heads; must divide W.
        expansion: hidden width of the MLPs in units of W.
        dropout: on the outputs of attention and MLP.
    """

    def __init__(
        self,
        tokens: int,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        width: int,
        depth: int,
        heads: int,
        expansion: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width = width
        self.read = nn.Linear(inputs, width)
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.blocks = nn.ModuleList(AdaptiveBlock(width, heads, expansion, dropout) for _ in range(depth))
        self.modulate = nn.Linear(embedding, 8 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B, L, inputs) and conditions (B, 1, E) to predictions (B, L, outputs)."""
        modulation = self.modulate(F.silu(condition)).unflatten(-1, (8, self.width))
        six, (shift, scale) = modulation[..., :6, :], modulation[..., 6:, :].unbind(-2)
        x = self.read(x) + self.position
        for block in self.blocks:
            x = block(x, six)
        return self.head(torch.addcmul(shift, F.layer_norm(x, (self.width,)), 1 + scale))


class NoisyConvolutions(nn.Module):
    """Residual convolutions along time, modulated by a condition (Diffuser, arXiv 2205.09991, section 3.1).

    Neighbouring points agree before anything is learnt of the far ones, which makes smooth plans early. Where Diffuser
    halves and doubles the length (a U-Net), these see further by dilation, so that any number of tokens will do.

    Args:
        tokens: L.
        inputs: width of a token.
        outputs: width of what is predicted for each.
        embedding: E, the width of the condition.
        width: W.
        depth: residual blocks of two convolutions.
        dropout: on what a block adds.
    """

    def __init__(
        self, tokens: int, inputs: int, outputs: int, embedding: int, *, width: int, depth: int, dropout: float
    ) -> None:
        super().__init__()
        reach = max(1, (tokens - 1).bit_length() - 2)  # a dilation of half the tokens would look past both ends
        self.read = nn.Conv1d(inputs, width, KERNEL, padding=KERNEL // 2)
        self.blocks = nn.ModuleList(_Convolutions(width, 2 ** (i % reach), dropout) for i in range(depth))
        self.modulate = nn.Linear(embedding, 2 * width * depth)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.head = nn.Conv1d(width, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B, L, inputs) and conditions (B, 1, E) to predictions (B, L, outputs)."""
        modulations = self.modulate(F.silu(condition)).transpose(1, 2).chunk(2 * len(self.blocks), dim=1)  # (B, W, 1)
        x = self.read(x.transpose(1, 2))
        for block, shift, scale in zip(self.blocks, modulations[::2], modulations[1::2], strict=True):
            x = block(x, shift, scale)
        predicted: Tensor = self.head(F.silu(x)).transpose(1, 2)
        return predicted


class _Convolutions(nn.Module):
    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        groups = math.gcd(8, width)
        around = dilation * (KERNEL // 2)
        self.first = nn.Sequential(
            nn.Conv1d(width, width, KERNEL, padding=around, dilation=dilation), nn.GroupNorm(groups, width)
        )
        self.second = nn.Sequential(nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2), nn.GroupNorm(groups, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        hidden = F.silu(torch.addcmul(shift, self.first(x), 1 + scale))
        return x + self.dropout(F.silu(self.second(hidden)))
