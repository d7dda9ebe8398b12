"""What a person says when data of another format are imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trajgen.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of ``trajgen data import``.

    Raises:
        ConfigError: if two of them contradict each other, or a number is out of its range.
    """

    id: str
    """Minari id of the new data set: mine/name-v0."""
    format: Literal["auto", "d4rl", "robomimic", "lerobot", "npz"] = "auto"
    """What the source is; auto looks at it."""
    env: str | None = None
    """Gymnasium id of the world to evaluate in; without one the set can be trained on, but not be evaluated."""

    state: str | tuple[str, ...] | None = None
    """Entries that are the state, joined in this order; null takes the format's own (robomimic: all vectors)."""
    action: str | None = None
    """Entry of the actions; null takes the format's own."""
    reward: str | None = None
    """Entry of the rewards; null takes the format's own."""
    goal: str | None = None
    """Entry of the goal that was asked for: infos/goal."""
    achieved: str | tuple[int, ...] | None = None
    """What is measured against the goal: an entry, or the places of those numbers in the state: [0,1]. Without a
    goal, that of an episode is where it ended."""

    rewards: Literal["data", "zero", "last"] = "data"
    """The rewards of the data, none at all, or 1 for the last step of each episode (demonstrations that succeed)."""
    ends: Literal["data", "terminal", "timeout"] = "data"
    """Why episodes ended: as the data say, or all because the task ended, or all because the recording did."""
    final: Literal["auto", "drop", "repeat"] = "auto"
    """Where the last observation is missing: the last step is dropped, or the observation before it repeated; auto
    repeats after a terminal, whose reward would be lost, and drops elsewhere."""
    episode_steps: int | None = None
    """Rows of an episode, for one table of many episodes that does not mark where they end."""
    skip: tuple[int, ...] = ()
    """Episodes that are left out."""
    force: bool = False
    """Replace a data set of this id."""

    def __post_init__(self) -> None:
        if self.episode_steps is not None and self.episode_steps < 2:
            self._refuse("episode_steps", self.episode_steps, "at least 2 rows")
        if self.reward is not None and self.rewards != "data":
            self._refuse("rewards", self.rewards, "rewards=data beside reward=ENTRY")

    @property
    def state_names(self) -> tuple[str, ...] | None:
        """The entries of the state, if any are named."""
        return (self.state,) if isinstance(self.state, str) else self.state

    @property
    def has_goals(self) -> bool:
        """Whether the new set has goals: the source's, or the places where episodes ended."""
        return self.goal is not None or self.achieved is not None

    def _refuse(self, name: str, value: object, expected: str) -> None:
        raise ConfigError(
            f"Option '{name}' does not fit.",
            expected=expected,
            got=f"{name}={value}",
            fix=f"change or leave out {name}",
        )
