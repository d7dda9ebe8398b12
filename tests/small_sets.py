"""Minari data sets that tests write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from trajgen.data import minari


def episode(observations: Any, actions: Any, rewards: Any = None, terminated: bool = False) -> dict[str, Any]:
    """An episode, for `save`."""
    last = np.arange(len(actions)) == len(actions) - 1
    return {
        "observations": observations,
        "actions": actions,
        "rewards": np.zeros(len(actions)) if rewards is None else rewards,
        "terminations": last & terminated,
        "truncations": last & (not terminated),
    }


def unbounded(width: int | Mapping[str, int], dtype: Any = np.float64) -> Any:
    """A space of vectors, or of named ones."""
    if isinstance(width, Mapping):
        return Dict({name: unbounded(each, dtype) for name, each in width.items()})
    return Box(-np.inf, np.inf, (width,), dtype)


def save(id: str, episodes: Iterable[Mapping[str, Any]], observations: Any, actions: int | Box, **changes: Any) -> None:
    """Writes a set of these spaces, whose actions lie within 1; its environment is Pendulum."""
    spec = gymnasium.spec("Pendulum-v1")
    settings: dict[str, Any] = {
        "env_spec": spec,
        "eval_env_spec": spec,
        "observation_space": unbounded(observations) if isinstance(observations, int | dict) else observations,
        "action_space": Box(-1.0, 1.0, (actions,), np.float32) if isinstance(actions, int) else actions,
        "description": "a line",
        "algorithm": "none",
    }
    minari.save(id, episodes, **(settings | changes))
