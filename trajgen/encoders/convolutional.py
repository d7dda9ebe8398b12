"""A small convolutional encoder, which knows where things are in the image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.registry import register
from trajgen.core.types import Batch, Losses
from trajgen.encoders.objective import ImageObjective, grid, to_pixels

LONGEST_SIDE = 24
"""Of the maps in which things are located; they are halved at least twice, and until they are no longer."""

SHARPNESS = 4.0
"""Of the softmax over the places of a map whose values have a deviation of 1."""


@register("encoder", "conv")
class ConvEncoder(nn.Module):
    """Convolutions, and of each of their maps where it is highest (arXiv 1504.00702, section 5.1) and its mean.

    It is trained first, to draw the image and to tell the action between two images, and is fixed from there on.

    Args:
        image_shape: height, width and channels.
        action_dim: A.
        dim: F, numbers of a vector.
        width: feature maps of each layer.
    """

    coordinates: Tensor

    def __init__(self, image_shape: tuple[int, ...], action_dim: int, *, dim: int = 16, width: int = 32) -> None:
        super().__init__()
        check_range("encoder.dim", dim, 1, usual=16)
        check_range("encoder.width", width, 1, usual=32)
        height, length, channels = image_shape
        self.features = dim
        halvings = max(2, math.ceil(math.log2(max(height, length) / LONGEST_SIDE)))
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 5, stride=2, padding=2)]
        for _ in range(halvings - 1):
            layers += [nn.SiLU(), nn.Conv2d(width, width, 3, stride=2, padding=1)]
        self.maps = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        sides = (-(-side // 2**halvings) for side in (height, length))
        self.register_buffer("coordinates", grid(*sides).flatten(1), persistent=False)  # (2, places)
        self.sharpness = nn.Parameter(torch.full((width,), SHARPNESS))
        self.head = nn.Linear(3 * width, dim)
        self.objective = ImageObjective(image_shape, dim, action_dim, 2 * width)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, height, width, channels) in uint8 to features (B, F)."""
        maps = self.maps(to_pixels(images)).flatten(2)  # (B, width, places)
        heights = F.instance_norm(maps) * self.sharpness.unsqueeze(-1)  # else all maps are flat before they are trained
        keypoints = heights.softmax(-1) @ self.coordinates.t()  # (B, width, 2)
        features: Tensor = self.head(torch.cat([keypoints.flatten(1), maps.mean(-1)], dim=-1))
        return features

    def trained_parameters(self) -> list[nn.Parameter]:
        """All of them."""
        return list(self.parameters())

    def loss(self, batch: Batch) -> Losses:
        """The losses of `ImageObjective`."""
        return self.objective(self, batch)
