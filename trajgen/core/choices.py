"""Discrete actions: models learn and generate one-hot vectors of them, environments take the numbers of the choices.

``choices`` are the numbers of choices of the parts of an action, (n,) for Discrete(n); their sum is A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


ACTIONS = "vectors of real numbers, Discrete from 0 on, or MultiDiscrete of several parts from 0 on"
"""The actions that there can be, for messages."""


def choices_of(space: Any) -> tuple[int, ...]:
    """The choices of a Gymnasium space of actions; empty unless it is Discrete from 0 on, or MultiDiscrete."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete) and space.start == 0:
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and len(space.nvec) > 1:
        return tuple(map(int, space.nvec)) if not space.start.any() else ()
    return ()


def is_vector(space: Any) -> bool:
    """Whether a Gymnasium space is one of vectors of real numbers."""
    from gymnasium import spaces

    return isinstance(space, spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)


def one_hot(actions: np.ndarray, choices: Sequence[int]) -> np.ndarray:
    """Numbers (n,), or (n, parts), as vectors (n, A) in float32.

    Raises:
        ValueError: if one of them is no number of a choice.
    """
    numbers = np.asarray(actions)
    columns = numbers.reshape(len(numbers), -1)
    if columns.shape[1] != len(choices) or numbers.dtype.kind not in "iu":
        raise ValueError(f"actions of shape {numbers.shape} and type {numbers.dtype}, not of {len(choices)} choices")
    if ((columns < 0) | (columns >= np.array(choices))).any():
        raise ValueError(f"an action between {columns.min()} and {columns.max()}, of {list(choices)} choices")
    return np.concatenate([np.eye(n, dtype=np.float32)[columns[:, k]] for k, n in enumerate(choices)], axis=1)


def likeliest(vectors: Tensor, choices: Sequence[int]) -> Tensor:
    """Scores (B, A) as the one-hot vectors (B, A) of the highest score of each part."""
    import torch
    from torch.nn import functional

    parts = vectors.split(list(choices), dim=-1)
    return torch.cat([functional.one_hot(part.argmax(-1), part.shape[-1]).to(part) for part in parts], dim=-1)


def numbers_of(vectors: np.ndarray, choices: Sequence[int]) -> np.ndarray:
    """One-hot vectors (B, A) as numbers (B,), or (B, parts) of several parts, in int64."""
    parts = np.split(vectors, np.cumsum(choices)[:-1], axis=-1)
    numbers = np.stack([part.argmax(-1) for part in parts], axis=-1)
    return numbers[..., 0] if len(choices) == 1 else numbers
