"""Options of an import of data in another format."""

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
    """Format of the source; auto looks at it."""
    env: str | None = None
    """Gymnasium id of the evaluation environment; without one, actions are compared with the recorded ones."""

    state: str | tuple[str, ...] | None = None
    """Entries that are the state, joined in this order; null takes the format's default (robomimic: all vectors), []
    none but images."""
    images: tuple[str, ...] | Literal["auto"] = "auto"
    """Entries that are images in uint8, each kept as it is; auto takes all of robomimic and LeRobot, else none."""
    action: str | None = None
    """Entry of the actions; null takes the format's default."""
    reward: str | None = None
    """Entry of the rewards; null takes the format's default."""
    goal: str | None = None
    """Entry of the desired goal: infos/goal."""
    achieved: str | tuple[int, ...] | None = None
    """What is measured against the goal: an entry, or indices of the state: [0,1]. Without a goal, the goal of an
    episode is where it ended."""

    actions: Literal["auto", "continuous"] = "auto"
    """Whether whole numbers are continuous actions; auto refuses them, since they mostly number discrete actions."""
    rewards: Literal["data", "zero", "last"] = "data"
    """The rewards of the data, none at all, or 1 for the last step of each episode (demonstrations that succeed)."""
    cut: Literal["auto", "marks", "timeouts"] = "auto"
    """Where one table is cut into episodes: at marks and wherever next observations break off, refusing marks that
    they contradict; at the marks alone; or at timeouts alone, whatever terminals are set between them."""
    ends: Literal["data", "terminal", "timeout"] = "data"
    """Why episodes ended: as in the data, or all because the task ended, or all because the recording did."""
    final: Literal["auto", "drop", "repeat"] = "auto"
    """Where any entry of the last observation is missing: the last step is dropped, or the observation before it
    repeated; auto repeats after a terminal, whose reward would be lost, and drops elsewhere."""
    episode_steps: int | None = None
    """Rows of an episode, for one table of many episodes that does not mark where they end."""
    skip: tuple[int, ...] = ()
    """Episodes that are left out."""
    force: bool = False
    """Replace a data set of this id."""

    def __post_init__(self) -> None:
        if self.episode_steps is not None and self.episode_steps < 2:
            raise ConfigError(f"episode_steps is at least 2, not {self.episode_steps}.")
        if self.reward is not None and self.rewards != "data":
            raise ConfigError(f"rewards={self.rewards} contradicts reward={self.reward}: leave out one of them.")

    @property
    def has_goals(self) -> bool:
        """Whether the new set has goals: the source's, or the positions where episodes ended."""
        return self.goal is not None or self.achieved is not None

    @property
    def named_images(self) -> tuple[str, ...]:
        """The entries that are named as images."""
        return () if self.images == "auto" else self.images

    def columns(self, states: tuple[str, ...], actions: str, rewards: str) -> dict[str, tuple[str, ...]]:
        """Names of the entries of each field of an episode, with a format's defaults where the options name none."""
        state = (self.state,) if isinstance(self.state, str) else self.state
        goals = {"goals": self.goal, "achieved": self.achieved}
        return {
            "states": states if state is None else state,
            "actions": (self.action or actions,),
            "rewards": (self.reward or rewards,),
            **{field: (name,) for field, name in goals.items() if isinstance(name, str)},
        }
