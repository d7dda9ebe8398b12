"""What a policy is given, checked before it is used: observations, rewards, and which episodes start anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trajgen.core.errors import TrajgenError
from trajgen.core.observations import entry, join_images
from trajgen.core.planning import Observation
from trajgen.core.types import Space

Array = NDArray[np.float32]
FIX = "pass the observation that env.reset or env.step returns, as it is"


class ObservationReader:
    """Reads vectors, goals and images of observations, without the offsets that the data were read without.

    Args:
        space: of the data.
    """

    def __init__(self, space: Space) -> None:
        self.space, self._width = space, space.vector_dim
        self._offsets = {"state": np.asarray(space.state_offset), "goal": np.asarray(space.goal_offset)}

    def __call__(self, observation: Observation) -> tuple[Array, Array | None, NDArray[np.uint8] | None]:
        """The states (B, S) but for features of images, and the goals (B, G) and images, if there are any.

        Raises:
            TrajgenError: if the observation is not that of the data, or not finite.
        """
        space = self.space
        if isinstance(observation, list) and observation and isinstance(observation[0], Mapping):
            observation = _stacked(observation)
        has_goal = bool(space.goal_key and space.goal_dim)
        keys = [key for key in (space.state_key, space.goal_key if has_goal else None, space.image_key) if key]
        is_pair = isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], Mapping)
        if is_pair or bool(keys) != isinstance(observation, Mapping):
            expected = f"a dictionary with {', '.join(map(repr, keys))}" if keys else f"{space.state_dim} numbers"
            expected = f"an image of shape {space.image_shape}" if space.image_shape and not keys else expected
            raise TrajgenError(
                "The observation has another type than those of the data.",
                expected=expected,
                got="the pair (observation, info) of env.reset" if is_pair else type(observation).__name__,
                fix=FIX,
            )
        images = self._images(observation) if space.image_shape else None
        if images is not None and not self._width:
            states = np.zeros((len(images), 0), np.float32)
        else:
            states = self._vectors(observation, "state", space.state_key, self._width)
        goals = self._vectors(observation, "goal", space.goal_key, space.goal_dim) if has_goal else None
        if goals is not None and len(goals) != len(states):
            raise TrajgenError(f"There are {len(states)} states and {len(goals)} goals.", fix=FIX)
        if images is not None and len(images) != len(states):
            raise TrajgenError(f"There are {len(states)} states and {len(images)} images.", fix=FIX)
        return states, goals, images

    def _images(self, observation: Observation) -> NDArray[np.uint8]:
        """The images (B, height, width, channels), as they are in the observation."""
        try:
            images = join_images(observation, self.space.image_key)
        except KeyError as error:
            raise TrajgenError("An entry of the observation is missing.", got=error, fix=FIX) from error
        except ValueError as error:
            raise TrajgenError("An image of the observation has another shape than those of the data.", got=error,
                               fix=FIX) from error  # fmt: skip
        shape = self.space.image_shape
        if images.shape[-3:] != shape or images.ndim not in (3, 4):
            raise TrajgenError(f"An image has the shape {shape}.", got=f"shape {images.shape}", fix=FIX)
        if images.dtype != np.uint8:
            fix = "np.round(255 * images).astype(np.uint8) of images from 0 to 1"
            raise TrajgenError("Images are of uint8, from 0 to 255.", got=images.dtype, fix=fix)
        return images.reshape(-1, *shape)

    def _vectors(self, observation: Observation, name: str, key: Any, width: int) -> Array:
        try:
            values = np.asarray(entry(observation, key))
            if self._offsets[name].size:
                values = values.astype(np.float64) - self._offsets[name][:width]
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
                values = values.astype(np.float32, copy=False)
        except KeyError as error:
            raise TrajgenError("An entry of the observation is missing.", got=error, fix=FIX) from error
        except (TypeError, ValueError) as error:
            raise TrajgenError("An observation holds numbers.", got=error, fix=FIX) from error
        if values.ndim not in (1, 2) or values.shape[-1] != width:
            fix = FIX if values.ndim else "trajgen.envs.numeric.NumericObservation(env): it makes vectors of numbers"
            raise TrajgenError(f"The {name} has {width} values.", got=f"shape {values.shape}", fix=fix)
        if not np.isfinite(values).all():
            index = int(np.argwhere(~np.isfinite(values))[0][-1])
            raise TrajgenError("An observation is finite.", got=f"{name}, value {index}: not finite", fix=FIX)
        return values.reshape(-1, width)


def _stacked(observations: Sequence[Any]) -> Any:
    """A batch of the observations of several episodes, whose dictionaries may be nested."""
    if not isinstance(observations[0], Mapping):
        return np.stack(observations)
    return {name: _stacked([each[name] for each in observations]) for name in observations[0]}


def per_episode(values: Any, episodes: int, name: str, dtype: type) -> Tensor:
    """One finite value for each episode (B,), of shape (B,), (B, 1), or () for a single one.

    Raises:
        TrajgenError: if there are others.
    """
    try:
        array: NDArray[Any] = np.asarray(values).astype(dtype)
    except (TypeError, ValueError) as error:
        raise TrajgenError(f"The {name} is a number for each episode.", got=error) from error
    if array.shape not in {(episodes,), (episodes, 1), *([()] if episodes == 1 else [])}:
        expected = f"shape ({episodes},)"
        raise TrajgenError(f"The {name} is one value for each episode.", expected=expected, got=f"shape {array.shape}")
    if not np.isfinite(array).all():
        raise TrajgenError(f"The {name} is finite.", got=array[~np.isfinite(array)][0])
    return torch.from_numpy(array.reshape(episodes))


def episode_count(batch: Any) -> int:
    """How many episodes are to be started.

    Raises:
        TrajgenError: if that is no whole number of at least 1.
    """
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1:
        rule = "A batch is a whole number of episodes, at least 1."
        raise TrajgenError(rule, got=f"batch={batch}", fix="policy.reset(batch=1), or without batch for a single one")
    return int(batch)


def episode_indices(ids: Sequence[int] | Sequence[bool], episodes: int) -> Tensor:
    """Which of B episodes are meant, by their numbers or by a truth value for each; the indices (n,).

    Raises:
        TrajgenError: if there is no such episode.
    """
    array = np.asarray(ids)
    if array.dtype == bool and array.shape == (episodes,):
        return torch.from_numpy(np.flatnonzero(array))
    if not array.size:
        return torch.zeros(0, dtype=torch.long)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= episodes:
        raise TrajgenError(
            "Episodes that start anew are named by their numbers, or by a truth value for each.",
            expected=f"numbers from 0 to {episodes - 1}, or {episodes} truth values" if episodes else "reset(batch=n)",
            got=f"ids={ids}",
        )
    return torch.from_numpy(array.astype(np.int64))
