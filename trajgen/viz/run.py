"""A run whose pictures are drawn: its model, its environment and the range of its data, each loaded on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trajgen.core.errors import TrajgenError

if TYPE_CHECKING:
    from trajgen.config import Config
    from trajgen.envs.eval_env import EnvRecord, EvalEnv
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy

WINDOWS = 4096
"""Windows of the data from which its range is read."""
PERCENTILES = (1.0, 99.0)
"""Between which a state counts as usual."""


@dataclass(frozen=True)
class DataRange:
    """What is usual in a data set, in its own units."""

    limits: tuple[NDArray[Any], NDArray[Any]]  # (S,), (S,) lowest and highest
    returns: NDArray[np.float32]  # (W,) returns-to-go of W windows, ascending


@dataclass
class Run:
    """A run folder whose pictures are drawn."""

    folder: Path
    config: Config  # of the run, some options replaced
    load: Callable[[Mapping[str, Any]], RecedingHorizonPolicy]  # its policy, more options replaced
    recorded_env: Callable[[], EnvRecord | None]  # the environment that its data set names

    @property
    def metrics(self) -> Path:
        """The metrics of its training; the file may be missing."""
        return self.folder / "metrics.jsonl"

    @cached_property
    def policy(self) -> RecedingHorizonPolicy:
        """Its policy, ready to act; raises a CheckpointError if the folder holds no weights that fit."""
        return self.load({})

    @cached_property
    def eval_env(self) -> EvalEnv:
        """Its evaluation environment, or its data replayed; raises a DataError if neither is on this machine."""
        from trajgen.envs.replay import env_of_run
        from trajgen.evaluation.disturbance import disturb

        return disturb(env_of_run(self.config.data, self.recorded_env()), self.config.evaluation)

    @cached_property
    def data(self) -> DataRange | None:
        """The range of its data; None where they are not on this machine."""
        from trajgen.data import minari
        from trajgen.data.encoding import with_room
        from trajgen.data.windows import Windows

        norm = deepcopy(self.policy.normalizer).cpu()  # where the windows are
        try:
            episodes = minari.load(self.config.data.id, self.config.data)
            if episodes.images is not None:  # whose features are not drawn
                episodes = with_room(episodes, self.policy.space.feature_dim, self.policy.space.encoder)
            batch = Windows(episodes, self.config.data, norm).batch(0, WINDOWS)
        except TrajgenError:
            return None
        states = norm.state.inverse(batch.states)[batch.mask].numpy() + (episodes.space.state_offset or 0.0)
        returns = norm.returns.inverse(batch.returns[:, 0]).numpy()
        low, high = np.percentile(states[:, : episodes.space.vector_dim], PERCENTILES, axis=0)
        return DataRange((low, high), np.sort(returns))
