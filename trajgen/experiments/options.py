"""What ``trajgen data record`` records, ``trajgen data encode`` encodes, and ``trajgen sample`` draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trajgen.core.checks import check_finite, check_range
from trajgen.data.options import EnvShift


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """Options of ``trajgen data record``."""

    env: str
    """Id of a Gymnasium environment; a module that registers it before a colon, as my_module:Mine-v0."""
    policy: str = "random"
    """random, the folder of a run, or my_module:NAME: a function from observation to action, an object with act, or its
    class, which is made with the environment if it takes one."""
    episodes: int = 100
    """Number of episodes."""
    seed: int = 0
    """Seed of the first episode; the others count on from it."""
    id: str | None = None
    """Id of the data set; by default recorded/ENV-POLICY-v0."""
    max_episode_steps: int | None = None
    """Longest episode; by default the environment's own limit."""
    env_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Arguments of the environment, as 'env_options={env: mpe2.simple_spread_v3, continuous_actions: true}'."""
    shift: EnvShift | None = None
    """How the environment differs from its own, as 'shift={mass: 2}'; also friction, damping, gear, blocked."""
    device: str = "auto"
    """Device of the policy of a run."""
    imports: tuple[str, ...] = ()
    """Modules that register own components of that run, or environments."""
    force: bool = False
    """Replace a data set that is there, and a stopped recording of other options."""

    def __post_init__(self) -> None:
        check_range("episodes", self.episodes, 1, usual=100)
        check_range("seed", self.seed, 0, usual=0)

    @property
    def name(self) -> str:
        """Id of the data set."""
        if self.id is not None:
            return self.id
        env = self.env.rpartition(":")[2].rpartition("-v")[0] or self.env
        policy = Path(self.policy).name if Path(self.policy).is_dir() else self.policy.rpartition(":")[2]
        return "recorded/" + "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{env}-{policy}") + "-v0"


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """The condition of the plans that ``trajgen sample`` draws."""

    seed: int = 0
    """Seed of the episode whose first state and goal are planned for."""
    state: tuple[float, ...] | None = None
    """Another state to plan from."""
    goal: tuple[float, ...] | None = None
    """Another goal."""
    return_: float | None = None
    """Return-to-go to condition on, discounted, in the units of the data; by default that of the return target."""
    plans: int = 8
    """Number of plans."""

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, usual=0)
        check_range("plans", self.plans, 1, usual=8)
        check_finite("return", self.return_)


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Options of ``trajgen data encode``."""

    new_id: str
    """Id of the new data set: mine/name-v0."""
    force: bool = False
    """Replace a data set of this id."""
