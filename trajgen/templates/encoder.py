"""An encoder of one's own: the features of an image, which follow the vectors of an observation in the state."""

import torch.nn.functional as F
from torch import Tensor, nn

from trajgen import register
from trajgen.core.types import Batch, Losses


@register("encoder", "mine")
class MineEncoder(nn.Module):
    """A linear map of a small version of the image, trained to draw that version.

    Args:
        image_shape: height, width and channels.
        dim: F, numbers of a vector.
        side: pixels of a side of the small version.
    """

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(self, image_shape: tuple[int, ...], *, dim: int = 16, side: int = 8) -> None:
        super().__init__()
        self.features, self.side = dim, side
        pixels = image_shape[-1] * side**2
        self.encode, self.draw = nn.Linear(pixels, dim), nn.Linear(dim, pixels)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, height, width, channels) in uint8, as they come, to features (B, F)."""
        return self.encode(self._small(images))

    def trained_parameters(self) -> list[nn.Parameter]:
        """What stage ``encoder`` trains, before all others; an empty list leaves the encoder as it is."""
        return list(self.parameters())

    def loss(self, batch: Batch) -> Losses:
        """The error of the drawing, which keeps features of different images apart."""
        pixels = self._small(batch.image_pairs[:, 0])  # the first of two images
        return {"drawing": (self.draw(self.encode(pixels)) - pixels).square().mean()}

    def _small(self, images: Tensor) -> Tensor:
        """The small version of images, as rows of values from 0 to 1."""
        return F.adaptive_avg_pool2d(images.movedim(-1, 1).float() / 255, self.side).flatten(1)
