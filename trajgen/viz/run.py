"""A run as pictures see it: its model, its world and the range of its data, each opened when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trajgen.config import Config
from trajgen.core.errors import TrajgenError

if TYPE_CHECKING:
    from trajgen.envs.eval_env import EvalEnv
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy

WINDOWS = 4096
"""Windows of the data from which its range is read."""
USUAL = (1.0, 99.0)
"""Percentiles between which a state counts as usual."""

Load = Callable[[Mapping[str, Any]], "RecedingHorizonPolicy"]
"""Loads the run's policy, some of its options replaced."""


@dataclass(frozen=True)
class DataRange:
    """What is usual in a data set, in its own units."""

    low: NDArray[np.float32]  # (S,)
    high: NDArray[np.float32]  # (S,)
    returns: NDArray[np.float32]  # (W,) returns-to-go of W windows, ascending


@dataclass
class Run:
    """A run folder whose pictures are drawn.

    Args:
        folder: of the run.
        config: of the run, with whatever is to be different from its training.
        load: loads its policy.
    """

    folder: Path
    config: Config
    load: Load

    @property
    def metrics(self) -> Path:
        """The lines that its training wrote; perhaps not there."""
        return self.folder / "metrics.jsonl"

    @cached_property
    def policy(self) -> RecedingHorizonPolicy:
        """Its policy, ready to act.

        Raises:
            CheckpointError: if the folder holds no weights that fit.
        """
        return self.load({})

    @cached_property
    def eval_env(self) -> EvalEnv:
        """The world in which it is evaluated.

        Raises:
            DataError: if its data set, which names the world, is not on this machine.
        """
        from trajgen.envs.eval_env import make_eval_env

        return make_eval_env(self.config.data)

    @cached_property
    def data(self) -> DataRange | None:
        """The range of its data; None where they are not on this machine."""
        from trajgen.data import minari
        from trajgen.data.windows import Windows

        norm = self.policy.normalizer
        try:
            episodes = minari.load(self.config.data.id, self.config.data)
            batch = Windows(episodes, self.config.data, norm, self.policy.device).batch(0, WINDOWS)
        except TrajgenError:
            return None
        states = norm.state.inverse(batch.states)[batch.mask].cpu().numpy()
        returns = norm.returns.inverse(batch.returns[:, 0]).cpu().numpy()
        low, high = np.percentile(states, USUAL, axis=0).astype(np.float32)
        return DataRange(low, high, np.sort(returns))
