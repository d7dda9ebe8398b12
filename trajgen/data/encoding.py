"""Images to features, once for a whole data set: the weights of its encoder are fixed before anything else is trained.

From there on it is a data set of vectors, and its images are not needed any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trajgen.core.terminal import Terminal
from trajgen.core.types import Space
from trajgen.data.episodes import Episodes
from trajgen.data.mapped import drop_pages

if TYPE_CHECKING:
    from trajgen.core.normalizer import Normalizer
    from trajgen.core.planning import Encoder
    from trajgen.data.columns import Columns
    from trajgen.data.options import DataOptions

IMAGES_AT_ONCE = 64
"""Images that are encoded in one pass; the same ones together each time, so that features are the same to the bit."""
ANNOUNCED_FROM = 10_000
"""Number of images from which on a line announces their encoding, which takes a while."""


def with_room(episodes: Episodes, features: int, encoder: Mapping[str, Any]) -> Episodes:
    """The episodes with zeros in the place of the features of their images.

    Args:
        episodes: with images.
        features: F.
        encoder: the node of the component that makes them.
    """
    space = encoded_space(episodes.space, features, encoder)
    room = np.zeros((len(episodes.states), features), np.float32)
    return replace(episodes, space=space, states=np.concatenate([episodes.states, room], axis=1))


def encoded_space(space: Space, features: int, encoder: Mapping[str, Any]) -> Space:
    """The space with features of images at the end of its state."""
    offset = (*space.state_offset, *(0.0,) * features) if space.state_offset else ()
    state_dim = space.state_dim + features
    return replace(space, state_dim=state_dim, state_offset=offset, feature_dim=features, encoder=dict(encoder))


@torch.no_grad()
def encoded(episodes: Episodes, encoder: Encoder, device: torch.device) -> Episodes:
    """The episodes with the features of their images, and without the images.

    Args:
        episodes: of `with_room`.
        encoder: whose weights are fixed; in evaluation mode.
        device: of the encoder.
    """
    images, space = episodes.images, episodes.space
    if images is None:
        return episodes
    if len(images) >= ANNOUNCED_FROM:
        Terminal(stderr=True).print(f"Encoding {len(images):,} images, once …", highlight=False)
    states = episodes.states.copy()
    for first in range(0, len(images), IMAGES_AT_ONCE):
        block = slice(first, first + IMAGES_AT_ONCE)
        pixels = torch.from_numpy(np.array(images[block])).to(device)  # mapped ones are read-only
        states[block, space.vector_dim :] = encoder(pixels).float().cpu().numpy()
    drop_pages(images)
    return replace(episodes, states=states, images=None)


@dataclass
class Unencoded:
    """What is left to do once an encoder is trained: features for the windows of a data set, and their normalizer.

    Args:
        episodes: of `with_room`.
        options: of the windows.
        encoder: of their images.
        device: of the encoder.
        normalizer: which is fitted anew; None leaves it as it is.
    """

    episodes: Episodes
    options: DataOptions
    encoder: Any
    device: torch.device
    normalizer: Normalizer | None
    is_done: bool = False

    def __call__(self, fields: Columns) -> None:
        """Puts the states with their features into the columns, if it was not done before."""
        from trajgen.data.windows import fit_normalizer

        if self.is_done:
            return
        mode = self.encoder.training
        episodes = encoded(self.episodes, self.encoder.eval(), self.device)
        self.encoder.train(mode)
        fields.put("states", episodes.states)
        fields.drop("images")
        if self.normalizer is not None:
            fit_normalizer(episodes, self.options, self.normalizer)
        self.is_done = True
