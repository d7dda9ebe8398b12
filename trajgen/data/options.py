"""What a recipe says about its data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from trajgen.core.errors import ConfigError


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"data.{name} does not fit.", expected=expected, got=f"data.{name}={value}")


@dataclass(frozen=True, kw_only=True)
class SuccessRule:
    """A step is good if an entry of its info is large enough; an episode succeeds by enough good steps.

    Raises:
        ConfigError: if no step, or every step, would be good.
    """

    info: str = "success"
    """Entry of the step's info, or reward. A truth value counts 1 or 0, a list by its length: the kitchen's completed
    tasks."""
    at_least: float = 1.0
    """The least value of a good step."""
    steps: int = 1
    """The least number of good steps, together or not."""

    def __post_init__(self) -> None:
        _require(self.at_least > 0, "success.at_least", self.at_least, "more than 0")
        _require(self.steps >= 1, "success.steps", self.steps, "at least 1")

    @property
    def words(self) -> str:
        """The rule in words."""
        least = "" if self.at_least == 1 else f" of {self.at_least:g} or more"
        return f"the environment's {self.info.replace('_', ' ')}{least} {self.times}"

    @property
    def times(self) -> str:
        """The least number of good steps, in words."""
        return "at any step" if self.steps == 1 else f"at {self.steps} steps or more"


PHYSICS = ("mass", "friction", "damping", "gear")
"""What a shift multiplies."""


@dataclass(frozen=True, kw_only=True)
class EnvShift:
    """How an environment differs from its own: factors of its physics, and cells of its maze that are blocked.

    Raises:
        ConfigError: for a factor that is not positive and finite.
    """

    mass: float = 1.0
    """Factor of the masses and the moments of inertia of all bodies."""
    friction: float = 1.0
    """Factor of the sliding friction of all contacts."""
    damping: float = 1.0
    """Factor of the damping of all joints."""
    gear: float = 1.0
    """Factor of the gears of all actuators: of the force that an action gives."""
    blocked: tuple[tuple[int, int], ...] = ()
    """Free cells of a maze that become walls, as [row, column] from the upper left."""

    def __post_init__(self) -> None:
        for name in PHYSICS:
            value = getattr(self, name)
            _require(0 < value < math.inf, f"shift.{name}", value, "a positive factor; 1 leaves it as it is")

    @property
    def factors(self) -> dict[str, float]:
        """The factors of the physics that are other than 1."""
        return {name: value for name in PHYSICS if (value := getattr(self, name)) != 1}

    @property
    def words(self) -> str:
        """The shift in words that follow others; empty where there is none."""
        parts = [f"{name} × {value:g}" for name, value in self.factors.items()]
        parts += [f"cell {list(cell)} blocked" for cell in self.blocked]
        return "".join(f", {part}" for part in parts)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data set of a recipe, how windows are cut from it, and the environment it is evaluated in.

    Raises:
        ConfigError: if a number is out of its range, or if two options contradict each other.
    """

    id: str
    """Minari id, as "trajgen/pointmaze/umaze-dwell-v0"."""
    maker: str | None = None
    """Name of the maker of the set, as "pointmaze/umaze-dwell"."""

    horizon: int = 32
    """T, points in a window."""
    stride: int | tuple[int, ...] = 8
    """M, environment steps between points; or several, as [4, 8, 16]: each window, and each plan, has one."""
    chunk: int = 8
    """H, environment steps at full rate from the window's start."""
    max_padding: float = 0.5
    """Largest share of a window past a timeout; past a terminal there is no limit."""
    ends_with_task: bool = False
    """Whether recordings end with the task: there is no limit past a timeout either."""

    memory_map: bool | None = None
    """Whether windows are read from a file; null if they would fill half of the memory."""

    val_fraction: float = 0.0
    """Share of held-out episodes, whose losses are logged and select the best weights."""
    top_fraction: float = 1.0
    """Share of the steps to train on, of the episodes with the highest returns (%BC, arXiv 2106.01345, 5.1)."""
    stitch: float = 0.0
    """Share of the steps in episodes that are put together from pieces of recorded ones."""
    discount: float = 0.99
    """Discount per environment step."""
    return_power: float = 0.25
    """Exponent of the signed power of returns before they are standardized."""

    state_key: str | tuple[str, ...] | None = None
    """Observation entry with the state, or entries to join ("/" for nested ones); [] for images only; null if it is
    the observation."""
    image_key: str | tuple[str, ...] | None = None
    """Observation entry with an image, or entries of one size to join along the channels; null for none, or if it is
    the observation."""
    goal_key: str | None = None
    """Observation entry with the desired goal."""
    achieved_key: str | None = None
    """Observation entry that is compared with the goal."""
    goal_state: tuple[int, ...] = ()
    """Indices of the state that a goal sets, in its order; for plans that end at the goal."""

    goals: Literal["none", "dataset", "hindsight"] = "none"
    """Goal of a window: none, that of the data, or also a position reached later."""
    relabel_ratio: float = 0.5
    """Share of windows with hindsight goals."""
    relabel_steps: Literal["uniform", "log_uniform"] = "uniform"
    """Distribution of the steps until a hindsight goal is reached: uniform in their number, or in its logarithm."""
    goal_radius: float | None = None
    """Distance to the window's goal within which a step earns 1."""
    terminate_at_goal: bool = False
    """Whether episodes, and windows, end within the goal radius."""
    relative_goals: bool = False
    """Whether conditioner and action head read goals also as direction and distance from the position."""
    absorbing_terminals: bool = False
    """Whether points beyond a terminal or such an arrival are absorbing states without reward (arXiv 1809.02925), or
    padding."""
    absorbing_goals: bool = False
    """Whether a window stays at its last point, without reward, once the data turn to another goal."""
    action_limits: Literal["space", "data"] = "space"
    """Bounds of actions: those of the action space, or of the data."""

    env_id: str | None = None
    """Gymnasium id for evaluation; null for that of the data set."""
    env_options: dict[str, bool | int | float] = field(default_factory=dict)
    """Arguments of the evaluation environment, as {continuing_task: false}."""
    shift: EnvShift = field(default_factory=EnvShift)
    """Changes of the evaluation environment, as {gear: 0.3}: factors of ``mass``, ``friction``, ``damping``, ``gear``,
    and ``blocked`` cells of a maze, as [[3, 3]]."""
    max_episode_steps: int | None = None
    """Length of an evaluation episode; null for the environment's."""
    resets: tuple[dict[str, int | tuple[int, ...]], ...] = ()
    """Reset options of evaluation episodes, in turn: [{goal_cell: [1, 1]}] fixes the goal of a maze."""
    success: SuccessRule = field(default_factory=SuccessRule)
    """When an episode succeeds; by default as the environment reports, else by the distance to the goal."""
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Returns of the normalized scores 0 and 100, by name; before the environment's."""

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of windows, one or several."""
        return self.stride if isinstance(self.stride, tuple) else (self.stride,)

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, expected: str) -> None:
            _require(holds, name, getattr(self, name), expected)

        for name in ("horizon", "chunk", "max_episode_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "a whole number of at least 1")
        increasing = all(low < high for low, high in zip((0, *self.strides), self.strides, strict=False))
        reason = "a whole number of at least 1, or several in increasing order"
        require(bool(self.strides) and increasing, "stride", reason)
        for name in ("max_padding", "relabel_ratio", "val_fraction"):
            require(0 <= getattr(self, name) <= 1, name, "a share between 0 and 1")
        require(0 <= self.stitch < 1, "stitch", "a share of at least 0 and below 1")
        require(0 < self.top_fraction <= 1, "top_fraction", "more than 0 and at most 1, which is all of them")
        require(0 < self.discount <= 1, "discount", "more than 0 and at most 1")
        require(self.return_power > 0, "return_power", "a positive exponent; 1 leaves returns as they are")
        require(self.goal_radius is None or self.goal_radius > 0, "goal_radius", "a positive distance")
        finite = all(-math.inf < low < high < math.inf for low, high in self.bounds.values())
        require(finite, "bounds", "{name: [low, high]} with finite numbers, low below high")
        goals, radius = self.goals != "none", self.goal_radius is not None
        require(not goals or self.goal_key is not None, "goal_key", f"a key, since data.goals is {self.goals}")
        reason = "a key, for hindsight goals and for rewards within a goal radius"
        require(self.achieved_key is not None or not (self.goals == "hindsight" or radius), "achieved_key", reason)
        require(goals or not radius, "goals", "dataset or hindsight, since there is a goal_radius")
        require(radius or not self.terminate_at_goal, "goal_radius", "a distance, since terminate_at_goal is true")
        located = goals and bool(self.goal_state)
        require(located or not self.relative_goals, "goal_state", "indices of the state, and goals, for relative_goals")
