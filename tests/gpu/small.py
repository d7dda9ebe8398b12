"""Recipes at a small size with a small data set, for training and acting on a device within a second."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import tiny
import torch

from trajgen.assemble import WindowShape, assemble
from trajgen.config import compose, recipe_files
from trajgen.core.types import Space
from trajgen.data.episodes import Episode, Episodes
from trajgen.data.windows import Windows, fit_normalizer
from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy

RECIPES = tuple(recipe_files())
composed = cache(lambda recipe: compose([f"recipe={recipe}"]))


@cache
def episodes() -> Episodes:
    """Twelve random walks with hindsight goals."""
    random = np.random.default_rng(0)

    def walk(steps: int) -> Episode:
        states = np.cumsum(random.normal(0, 0.3, (steps + 1, 4)), 0)
        goals = np.repeat(random.normal(0, 1, (1, 2)), steps + 1, 0)
        return Episode(states, random.uniform(-1, 1, (steps, 2)), random.random(steps), False, goals, states[:, :2])

    return Episodes.collect([walk(80) for _ in range(12)], name="walks", space=tiny.SPACE)


class Setup:
    """A recipe's planner with fresh weights and its windows, on a device.

    Args:
        recipe: of `RECIPES`.
        device: of both.
        changes: of the data's options.
    """

    def __init__(self, recipe: str, device: str, **changes: Any) -> None:
        config = composed(recipe)
        stride, chunk, horizon = min(config.data.stride, tiny.STRIDE), min(config.data.chunk, tiny.CHUNK), tiny.HORIZON
        if config.components.get("tokenizer", {}).get("name") == "bins":  # a token for each number of a point
            stride, chunk, horizon = 1, 2, 2
        shape: dict[str, Any] = {"horizon": horizon, "stride": stride, "chunk": chunk}
        shape |= {name: changes.pop(name) for name in shape if name in changes}
        self.options = replace(config.data, **shape, **changes)
        radius = config.data.goal_radius
        self.window = WindowShape(**shape, return_power=config.data.return_power, goal_state=(0, 1), goal_radius=radius)
        self.policy_options = config.policy
        if isinstance(config.policy.replan_interval, int):
            self.policy_options = replace(config.policy, replan_interval=min(config.policy.replan_interval, chunk))
        torch.manual_seed(0)
        components = tiny.shrunk(config.components)
        if "scales" in components.get("schedule", {}):
            components["schedule"]["scales"] = 2
        self.planner: Any = assemble(components, tiny.SPACE, self.window)
        data = episodes()
        fit_normalizer(data, self.options, self.planner.normalizer)
        self.planner.to(device)
        self.source = Windows(data, self.options, self.planner.normalizer, device)

    def policy(self, **changes: Any) -> RecedingHorizonPolicy:
        options: PolicyOptions = replace(self.policy_options, **changes)
        norm, chunk = self.planner.normalizer, self.options.chunk
        return RecedingHorizonPolicy(self.planner, norm, tiny.SPACE, options, discount=0.99, chunk=chunk)


def observation(space: Space, batch: int, seed: int) -> dict[str, np.ndarray]:
    """An observation whose state alone depends on the seed: a new goal would be planned for at once."""
    state = np.random.default_rng(seed).normal(size=(batch, space.state_dim)).astype(np.float32)
    goal = np.random.default_rng(0).normal(size=(batch, space.goal_dim)).astype(np.float32)
    return {"observation": state, "desired_goal": goal, "achieved_goal": state[:, :2]}


def actions(policy: RecedingHorizonPolicy, steps: int = 5, batch: int = 3) -> np.ndarray:
    """The actions (steps, B, A) of a policy in made-up environments, of which one begins a new episode."""
    policy.reset(batch=batch)
    taken = []
    for step in range(steps):
        taken.append(policy.act(observation(policy.space, batch, step)))
        policy.observe(np.ones(batch), np.arange(batch) == (1 if step == 2 else -1))
    return np.stack(taken)
