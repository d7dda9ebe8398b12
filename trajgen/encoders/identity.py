"""No encoder: the values of an image are features as they are."""

from __future__ import annotations

import math

from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.types import Batch, Losses

MOST_FEATURES = 1024


@register("encoder", "identity")
class IdentityEncoder(nn.Module):
    """The values of an image themselves, from 0 to 1: for images of few pixels, such as the cells of a map.

    Args:
        image_shape: height, width and channels.

    Raises:
        ConfigError: for an image of more than 1024 values.
    """

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.features = math.prod(image_shape)
        if self.features > MOST_FEATURES:
            raise ConfigError(
                f"An image of more than {MOST_FEATURES} values needs an encoder that makes fewer of them.",
                got=f"images of shape {tuple(image_shape)}",
                fix="encoder=conv",
            )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, height, width, channels) in uint8 to features (B, F)."""
        return images.flatten(1).float() / 255

    def trained_parameters(self) -> list[nn.Parameter]:
        """None."""
        return []

    def loss(self, batch: Batch) -> Losses:
        """No losses."""
        return {}
