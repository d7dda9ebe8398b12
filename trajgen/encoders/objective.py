"""What an encoder is trained for: features from which the image can be drawn, and the actions between two read off."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.types import Batch, Losses
from trajgen.nn.layers import mlp

GRID = 16
"""Pixels of the longer side of an image that is drawn."""
EPS = 1e-8
"""Least variance of features and of images."""


class ImageObjective(nn.Module):
    """The losses of an encoder, both of which grow where features lose what distinguishes two images.

    What is drawn is a small version of the image, in which small things are large enough to be found, and of that the
    difference from the mean of the batch, so that nothing is spent on what all images share. The squared error is a
    share of the variance: 1 or more if all features are the same. The inverse loss is that of the mean action between
    two images M steps apart (arXiv 1705.05363, section 2.2, with a regression in place of a classification).

    Args:
        image_shape: height, width and channels.
        features: F.
        action_dim: A.
        width: hidden width.
    """

    def __init__(self, image_shape: Sequence[int], features: int, action_dim: int, width: int) -> None:
        super().__init__()
        height, length, channels = image_shape
        shrink = max(1.0, max(height, length) / GRID)
        self.size = round(height / shrink), round(length / shrink)
        self.draw = mlp(features, 2 * width, channels * math.prod(self.size), depth=3)
        self.inverse = mlp(2 * features, 2 * width, action_dim)

    def forward(self, encode: Callable[[Tensor], Tensor], batch: Batch) -> Losses:
        """The losses of a batch with images.

        Args:
            encode: from images (B, height, width, channels) to features (B, F).
            batch: with `Batch.images`.
        """
        images = batch.image_pairs.flatten(0, 1)
        # Features of one scale, however little those of fresh weights differ: else nothing is drawn of them for long.
        features, small = F.batch_norm(encode(images).float(), None, None, training=True, eps=EPS), self._small(images)
        mean, variance = small.mean(0), small.var(0, unbiased=False).mean().clamp(min=EPS)
        error = (self.draw(features) - (small - mean).flatten(1)).square().mean() / variance
        actions = self.inverse(features.unflatten(0, (-1, 2)).flatten(1))
        inverse_error = (actions - batch.actions[:, 0].mean(1)).square().mean(-1, keepdim=True)
        inverse = batch.mean(inverse_error, lambda each: each.mask[:, 1:2] if each.mask.shape[1] > 1 else each.mask)
        return {"reconstruction": error, "inverse": inverse}

    def _small(self, images: Tensor) -> Tensor:
        """Images (B, height, width, channels) in uint8 as pixels (B, channels, rows, columns), made small."""
        return F.interpolate(to_pixels(images), size=self.size, mode="bilinear", antialias=True, align_corners=False)


def grid(rows: int, columns: int) -> Tensor:
    """The coordinates (2, rows, columns) of the places of a grid, row and column, each from -1 to 1."""
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in (rows, columns)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def to_pixels(images: Tensor) -> Tensor:
    """Images (B, height, width, channels) in uint8 as (B, channels, height, width) from 0 to 1."""
    return images.movedim(-1, 1).float() / 255


def resized(pixels: Tensor, side: int) -> Tensor:
    """Pixels (B, channels, height, width) as squares (B, channels, side, side)."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
