"""One episode with everything that a film of it shows: states, rewards, plans, and rendered frames."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.core.observations import Key, entry
from trajgen.envs.eval_env import EvalEnv
from trajgen.evaluation.rollout import rollout
from trajgen.policies.receding_horizon import RecedingHorizonPolicy
from trajgen.viz.overheard import overheard
from trajgen.viz.plans import planned_states

Frame = NDArray[np.uint8]  # (height, width, 3)


@dataclass(frozen=True)
class MadePlan:
    """A plan as it was made at a step of the episode: the states (T, S) after each scale, coarse to fine."""

    step: int
    scales: list[NDArray[np.float32]]


@dataclass(frozen=True)
class Played:
    """An episode of m steps."""

    seed: int
    states: NDArray[np.float32]  # (m + 1, S)
    rewards: NDArray[np.float64]  # (m,)
    goal: NDArray[np.float32] | None  # (G,)
    plans: list[MadePlan]
    frames: list[Frame] = field(repr=False)  # of steps 0, every, 2 every, …; none where nothing was rendered

    def plan_at(self, step: int) -> MadePlan | None:
        """The plan that is followed at a step."""
        return next((plan for plan in reversed(self.plans) if plan.step <= step), None)


class Watched(gymnasium.Wrapper):
    """Keeps states, rewards and, every so many steps, a frame of an environment."""

    def __init__(self, env: gymnasium.Env, state_key: Key, every: int, rendered: bool) -> None:
        super().__init__(env)
        self.state_key, self.every, self.rendered = state_key, every, rendered
        self.states: list[NDArray[np.float32]] = []
        self.rewards: list[float] = []
        self.frames: list[Frame] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins to keep anew."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.states, self.rewards, self.frames = [], [], []
        self._keep(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step, and keeps what came of it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.rewards.append(float(reward))
        self._keep(observation)
        return observation, reward, terminated, truncated, info

    def _keep(self, observation: Any) -> None:
        self.states.append(np.array(entry(observation, self.state_key), dtype=np.float32))
        if self.rendered and (len(self.states) - 1) % self.every == 0:
            frame: Any = self.env.render()
            self.frames.append(np.asarray(frame, dtype=np.uint8)[..., :3])


def play(
    policy: RecedingHorizonPolicy, eval_env: EvalEnv, seed: int, *, steps: int | None = None, every: int = 4
) -> Played:
    """Plays one episode, and keeps what a film of it needs.

    Args:
        policy: that plays.
        world: frames are rendered where it has no map.
        seed: of the episode.
        steps: the most that are played; None for the whole episode.
        every: steps between rendered frames.

    Raises:
        ConfigError: if the world cannot be rendered on this machine; before anything is played.
        TrajgenError: if the episode fails.
    """
    rendered = eval_env.walls is None
    environment = Watched(
        _rendering(eval_env) if rendered else eval_env.make_env(), policy.space.state_key, every, rendered
    )
    shorter = replace(eval_env, max_steps=min(steps or eval_env.max_steps, eval_env.max_steps))
    planner = policy.planner
    try:
        with overheard(planner, decoded=True) as heard:
            rollouts = rollout(policy, shorter, [seed], batch=1, opened=[environment])
    finally:
        environment.close()
    if rollouts.errors:
        failed = rollouts.errors[0]
        raise TrajgenError(
            "A film is made of an episode that comes to its end.",
            expected=f"an episode of {eval_env.name}",
            got=f"seed {seed} failed at step {failed['step']}: {failed['error']}",
            fix=f"another episode, or its beginning alone: steps={max(1, failed['step'])}",
        )
    plans = []
    for number, (cond, plan) in enumerate(heard):
        states = planned_states(policy, eval_env, planner.refinements(plan, cond))
        plans.append(MadePlan(number * policy.options.replan_interval, [x[0] for x in states.values()]))
    return Played(
        seed=seed,
        states=np.stack(environment.states),
        rewards=np.array(environment.rewards),
        goal=rollouts.goals[0],
        plans=[plan for plan in plans if plan.scales],
        frames=environment.frames,
    )


def _rendering(eval_env: EvalEnv) -> gymnasium.Env:
    """An environment of the world that renders pictures, tried once."""
    made: Any = None
    try:
        made = eval_env.make_env()
        if made.spec is not None and made.render_mode != "rgb_array":
            spec = made.spec
            made.close()
            made = gymnasium.make(spec, render_mode="rgb_array")
        made.reset(seed=0)
        frame: Any = made.render()
        if np.ndim(frame) != 3:
            raise ValueError(f"render() gave {type(frame).__name__}, not a picture")
    except Exception as error:  # drivers of graphics fail in every way there is
        if made is not None:
            with suppress(Exception):
                made.close()
        raise ConfigError(
            "A world without a map is filmed by its own renderer, which needs OpenGL for MuJoCo.",
            expected=f"pictures of {eval_env.name} by render_mode='rgb_array'",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            fix="MUJOCO_GL=egl before the command, with the system's libegl1 and libgl1-mesa-dri; or MUJOCO_GL=osmesa; "
            "'trajgen plot what=plans' needs neither",
        ) from error
    found: gymnasium.Env = made
    return found
