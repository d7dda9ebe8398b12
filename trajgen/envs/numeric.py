"""Observations as vectors and images, of environments that also give discrete entries and text."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium import spaces

from trajgen.core.errors import DataError


class NumericObservation(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Makes vectors of discrete entries, one-hot, and of arrays that are no images; drops text and what else is left.

    Attributes:
        dropped: the entries without numbers by name, "/" between those of nested dictionaries, with their spaces.

    Raises:
        DataError: if nothing is left.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.dropped: dict[str, Any] = {}
        self._original = env.observation_space  # read once: some environments make a new one each time
        space = _numeric_space(self._original, "", self.dropped)
        if space is None:
            raise DataError("An observation holds numbers.", got=self._original, fix="another environment")
        self.observation_space = space

    @property
    def changes_nothing(self) -> bool:
        """Whether all observations are vectors and images already."""
        return self.observation_space is self._original

    def observation(self, observation: Any) -> Any:
        """The observation with its numeric entries alone."""
        return _numeric(observation, self._original, self.observation_space)


def numeric(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The environment, in a `NumericObservation` where it has other observations than vectors and images."""
    wrapped = NumericObservation(env)
    return env if wrapped.changes_nothing else wrapped


def _numeric_space(space: Any, path: str, dropped: dict[str, Any]) -> Any:
    """The space of what has numbers, the same object where that is all of it; None if it is nothing."""
    if isinstance(space, spaces.Dict):
        parts = {key: _numeric_space(part, f"{path}{key}/", dropped) for key, part in space.spaces.items()}
        numbers = {key: part for key, part in parts.items() if part is not None}
        is_same = all(parts[key] is part for key, part in space.spaces.items())
        return space if is_same else spaces.Dict(numbers) if numbers else None
    if isinstance(space, spaces.Box) and len(space.shape) in (1, 3):
        return space
    if _holds_numbers(space):
        flat: Any = spaces.flatten_space(space)
        return spaces.Box(flat.low.astype("f"), flat.high.astype("f"))
    dropped[path.rstrip("/")] = space
    return None


def _holds_numbers(space: Any) -> bool:
    if isinstance(space, spaces.Tuple):
        return all(map(_holds_numbers, space.spaces))
    return isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)


def _numeric(value: Any, space: Any, numbers: Any) -> Any:
    if space is numbers:
        return value
    if isinstance(space, spaces.Dict):
        return {key: _numeric(value[key], space[key], part) for key, part in numbers.spaces.items()}
    flat: Any = spaces.flatten(space, value)
    return flat.astype(numbers.dtype)
