"""Noise levels, and networks over noisy tokens, shared by priors of noisy codes and their samplers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.nn.attention import AdaptiveBlock, modulated_norm, zero_linear
from trajgen.nn.layers import mlp

LINEAR_STEPS = 1000
"""The number of levels for which the usual ends of the linear schedules were chosen (arXiv 2006.11239, section 4)."""

KERNEL_SIZE = 5
"""As in Diffuser."""


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
            "Diffusion needs the package diffusers.",
            got=str(error),
            fix="pip install diffusers",
        ) from error
    factor = LINEAR_STEPS / timesteps  # with fewer levels, the last one is all noise too
    return DDIMScheduler(
        num_train_timesteps=timesteps,
        beta_schedule=beta_schedule,
        beta_start=min(1e-4 * factor, 0.999),
        beta_end=min(0.02 * factor, 0.999),
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )


class TimeEmbedding(nn.Module):
    """Times (B,) to embeddings (B, 1, E): an MLP of sines and cosines (arXiv 2212.09748, appendix A).

    Args:
        end: the latest time: the number of noise levels, or 1 for times from 0 to 1.
        width: E.
        frequencies: the number of sines, and of cosines.
    """

    frequency: Tensor

    def __init__(self, end: int, width: int, frequencies: int = 32) -> None:
        super().__init__()
        frequency = torch.exp(-math.log(10_000) * torch.arange(frequencies) / frequencies)
        self.register_buffer("frequency", frequency * (LINEAR_STEPS / end), persistent=False)
        self.layers = mlp(2 * frequencies, width, width)

    def forward(self, t: Tensor) -> Tensor:
        phase = t.unsqueeze(-1) * self.frequency
        return self.layers(torch.cat([phase.cos(), phase.sin()], dim=-1)).unsqueeze(1)


class NoisyTransformer(nn.Module):
    """Transformer with full attention, modulated by a condition (DiT, arXiv 2212.09748, section 3.2).

    All layers share one projection of the condition, to which each adds an offset (adaLN-single, arXiv 2310.00426,
    section 2.3). The MLPs have SiLU where DiT has GELU, and positions are learnt.

    Args:
        tokens: L.
        in_features: of a token.
        out_features: of the prediction for a token.
        cond_width: E, the width of the condition.
        width: W.
        depth: layers.
        heads: attention heads; must divide W.
        expansion: hidden width of the MLPs in units of W.
        dropout: on the outputs of attention and MLP.
    """

    def __init__(
        self,
        tokens: int,
        in_features: int,
        out_features: int,
        cond_width: int,
        *,
        width: int,
        depth: int,
        heads: int,
        expansion: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width = width
        self.input_proj = nn.Linear(in_features, width)
        self.pos_embed = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.blocks = nn.ModuleList(AdaptiveBlock(width, heads, expansion, dropout) for _ in range(depth))
        self.modulation = zero_linear(cond_width, 8 * width)
        self.head = nn.Linear(width, out_features)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B, L, in) and conditions (B, 1, E) to predictions (B, L, out)."""
        modulation = self.modulation(F.silu(condition)).unflatten(-1, (8, self.width))
        of_blocks, (shift, scale) = modulation[..., :6, :], modulation[..., 6:, :].unbind(-2)
        x = self.input_proj(x) + self.pos_embed
        for block in self.blocks:
            x = block(x, of_blocks)
        return self.head(modulated_norm(x, shift, 1 + scale))


class NoisyConvolutions(nn.Module):
    """Residual convolutions along time, modulated by a condition (Diffuser, arXiv 2205.09991, section 3.1).

    Where Diffuser halves and doubles the length (`NoisyUNet`), these dilate.

    Args:
        tokens: L.
        in_features: of a token.
        out_features: of the prediction for a token.
        cond_width: E, the width of the condition.
        width: W.
        depth: residual blocks of two convolutions.
        dropout: on what a block adds.
    """

    def __init__(
        self,
        tokens: int,
        in_features: int,
        out_features: int,
        cond_width: int,
        *,
        width: int,
        depth: int,
        dropout: float,
    ) -> None:
        super().__init__()
        dilations = max(1, (tokens - 1).bit_length() - 2)  # a dilation of half the tokens would reach past both ends
        self.input_proj = nn.Conv1d(in_features, width, KERNEL_SIZE, padding=KERNEL_SIZE // 2)
        self.blocks = nn.ModuleList(_ConvBlock(width, 2 ** (i % dilations), dropout) for i in range(depth))
        self.modulation = zero_linear(cond_width, 2 * width * depth)
        self.head = nn.Conv1d(width, out_features, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B, L, in) and conditions (B, 1, E) to predictions (B, L, out)."""
        modulations = self.modulation(F.silu(condition)).transpose(1, 2).chunk(2 * len(self.blocks), dim=1)  # (B, W, 1)
        x = self.input_proj(x.transpose(1, 2))
        for block, shift, scale in zip(self.blocks, modulations[::2], modulations[1::2], strict=True):
            x = block(x, shift, scale)
        return self.head(F.silu(x)).transpose(1, 2)


class NoisyUNet(nn.Module):
    """Diffuser's temporal U-Net, of the diffusers library (arXiv 2205.09991, figure A2).

    Level i has W · 2^i channels at a 2^i-th of the length, rounded up. A condition takes the place of the library's
    embedding of the noise level.

    Args:
        in_features: of a token.
        out_features: of the prediction for a token.
        cond_width: E, the width of the condition.
        width: W, channels of the first level; a multiple of 8, the groups of its normalization.
        depth: levels.

    Raises:
        ConfigError: for another width, or no level.
    """

    def __init__(self, in_features: int, out_features: int, cond_width: int, *, width: int, depth: int) -> None:
        super().__init__()
        from diffusers import UNet1DModel  # takes seconds, and only a U-Net needs it

        if width < 8 or width % 8 or depth < 1:
            raise ConfigError(
                "A U-Net has a width that is a multiple of 8, and at least one level.",
                got=f"prior.width={width} prior.depth={depth}",
                fix="prior.width=32 prior.depth=4",
            )
        unet: Any = UNet1DModel(
            in_channels=in_features,
            out_channels=out_features,
            block_out_channels=tuple(width * 2**level for level in range(depth)),
            down_block_types=("DownResnetBlock1D",) * depth,
            mid_block_type="MidResTemporalBlock1D",
            up_block_types=("UpResnetBlock1D",) * (depth - 1),
            out_block_type="OutConv1DBlock",
            time_embedding_type="positional",
            act_fn="mish",
        )
        self.condition = nn.Linear(cond_width, width)
        self.down, self.middle, self.up, self.out = unet.down_blocks, unet.mid_block, unet.up_blocks, unet.out_block

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B, L, in) and conditions (B, 1, E) to predictions (B, L, out)."""
        embedded, hidden = self.condition(condition.squeeze(1)), x.transpose(1, 2)
        skipped: list[Tensor] = []
        for block in self.down:
            hidden, outputs = block(hidden, embedded)
            skipped += outputs
        hidden = self.middle(hidden, embedded)
        for block in self.up:
            skip = skipped.pop()
            hidden = block(hidden[..., : skip.shape[-1]], (skip,), embedded)  # an odd length grows by one more
        return self.out(hidden[..., : x.shape[1]], embedded).transpose(1, 2)


class _ConvBlock(nn.Module):
    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()

        def conv_norm(dilation: int) -> nn.Sequential:
            padding = dilation * (KERNEL_SIZE // 2)
            conv = nn.Conv1d(width, width, KERNEL_SIZE, padding=padding, dilation=dilation)
            return nn.Sequential(conv, nn.GroupNorm(math.gcd(8, width), width))

        self.conv1, self.conv2 = conv_norm(dilation), conv_norm(1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        hidden = F.silu(torch.addcmul(shift, self.conv1(x), 1 + scale))
        return x + self.dropout(F.silu(self.conv2(hidden)))
