"""The fixture of contract checks: a component in a small composition of shipped parts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trajgen.assemble import all_stages, assemble, build_encoder
from trajgen.config import merged
from trajgen.core.errors import ConfigError
from trajgen.core.planning import subgoal_of
from trajgen.core.types import Batch, Cond, Plan, Space, Transitions
from trajgen.testing.compositions import IMAGE_SHAPE, MAX_REMOVALS, SPACE, Composition, candidates, composition_of


@dataclass
class Example:
    """A batch, and what the parts of a planner make of it."""

    batch: Batch
    cond: Cond
    x: Tensor  # (B, T, D)
    codes: Tensor  # (B, L) or (B, L, C)
    vectors: Tensor  # (B, L, C)
    inputs: Tensor  # (B, L - l_1, C)
    latent: Tensor  # (B, N, C)
    plan: Plan


class Fixture:
    """A component in a small composition.

    Args:
        kind, name: of the component.
        composition: has it among its nodes, and accepts it.
    """

    def __init__(self, kind: str, name: str, composition: Composition) -> None:
        self.kind, self.name, self.composition = kind, name, composition
        self._ready: dict[tuple[int, bool], dict[str, Tensor]] = {}

    @property
    def space(self) -> Space:
        """Of the data; with images if an encoder is checked."""
        space = replace(SPACE, goal_dim=len(self.composition.window.goal_state) or SPACE.goal_dim)
        return replace(space, image_shape=IMAGE_SHAPE) if self.kind == "encoder" else space

    @cached_property
    def state_dim(self) -> int:
        """S, the features of images among them."""
        if self.kind != "encoder":
            return SPACE.state_dim
        return SPACE.state_dim + int(build_encoder(self.composition.nodes["encoder"], self.space).features)

    def build(self, seed: int = 0, *, perturbed: bool = True, goals: bool = True, fitted: bool = True) -> Any:
        """A planner with fresh weights, perturbed so that nothing holds only because weights start at zero."""
        torch.manual_seed(seed)
        window = replace(self.composition.window, goals=goals and self.composition.window.goals)
        planner = assemble(self.composition.nodes, self.space, window)
        if fitted and (subgoal := subgoal_of(planner)) is not None:
            subgoal.fit(*walks(self.space.goal_dim))
        return perturb(planner) if perturbed else planner

    def build_ready(self, seed: int = 0, *, goals: bool = True) -> Any:
        """A planner in evaluation mode, each stage of which has had one batch, so that its codes are in use."""
        planner = self.build(seed, goals=goals)
        with contextlib.suppress(Exception):  # a stage that fails is reported by the contracts about training
            if (seed, goals) in self._ready:
                planner.load_state_dict(self._ready[seed, goals])
            else:
                for stage in all_stages(planner):
                    if stage.parameters:
                        stage.begin(planner)
                        stage.loss(self.batch(32, goals=goals))
                        if stage.after_step is not None:
                            stage.after_step()
                self._ready[seed, goals] = deepcopy(planner.state_dict())
        return planner.requires_grad_(True).eval()

    @cached_property
    def planner(self) -> Any:
        """A shared planner from `build_ready`; a check that changes weights builds its own."""
        return self.build_ready()

    @cached_property
    def other(self) -> Any:
        """A second shared planner, with weights of its own."""
        return self.build_ready(seed=5)

    @cached_property
    def component(self) -> Any:
        """The component in `planner`."""
        return self.part(self.planner)

    def part(self, planner: Any, kind: str | None = None) -> Any:
        """A part of a planner, by default the checked component; None if the planner has none of this kind."""
        kind = kind or self.kind
        if kind == "planner":
            return planner
        if kind not in self.composition.nodes:
            return None
        if kind == "schedule":
            return self.part(planner, "tokenizer").schedule
        parts = (getattr(module, kind, None) for module in planner.modules())
        return next((part for part in parts if part is not None), None)

    def batch(self, size: int = 6, *, seed: int = 1, goals: bool = True, padded: bool = True) -> Batch:
        """Random windows, half of which end in padding; a window's goal is the position of its last point, at rest."""
        generator, window = torch.Generator().manual_seed(seed), self.composition.window
        goals = goals and window.goals

        def randn(*shape: int) -> Tensor:
            return torch.randn(size, *shape, generator=generator)

        strides = torch.tensor(window.strides)
        stride = None if len(strides) == 1 else strides[torch.arange(size) % len(strides)]
        mask = torch.ones(size, window.horizon, dtype=torch.bool)
        chunk_mask = torch.ones(size, window.chunk, dtype=torch.bool)
        if padded:
            mask[size // 2 :, -(-window.horizon // 2) :] = False
            chunk_mask[-1, 1:] = False
        states = randn(window.horizon, self.state_dim)
        position = list(window.goal_state) or list(range(self.space.goal_dim))
        velocity = [i for i in range(self.state_dim) if i not in position]
        states[:, -1, velocity] = 0  # at rest, where normalizers are not fitted
        end_positions = states[:, -1, position]
        batch = Batch(
            states=states,
            actions=randn(window.horizon, window.strides[0] if stride is None else 0, SPACE.action_dim),
            rewards=randn(window.horizon),
            returns=randn(window.horizon),
            mask=mask,
            chunk_states=randn(window.chunk, self.state_dim),
            chunk_actions=randn(window.chunk, SPACE.action_dim),
            chunk_mask=chunk_mask,
            goals=end_positions if goals else None,
            time=torch.arange(size),
            stride=stride,
        )
        further = torch.stack([end_positions, randn(self.space.goal_dim)], dim=1)
        transitions = Transitions(
            actions=torch.where(chunk_mask.unsqueeze(-1), batch.chunk_actions, randn(window.chunk, SPACE.action_dim)),
            next_states=randn(window.chunk, self.state_dim),
            rewards=randn(len(further[0]), window.chunk),
            terminals=randn(len(further[0]), window.chunk) > 1,
            mask=chunk_mask,
            goals=further,
        )
        if not goals:
            rewards, terminals = transitions.rewards[:, :1], transitions.terminals[:, :1]
            transitions = replace(transitions, rewards=rewards, terminals=terminals, goals=None)
        if self.kind == "encoder":
            batch = replace(batch, images=self.images(size, seed=seed))
        return replace(batch, transitions=transitions, terminals=batch.returns > 1)

    def images(self, size: int = 6, *, seed: int = 1) -> Tensor:
        """Random pairs of images (B, 2, height, width, channels)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(256, (size, 2, *IMAGE_SHAPE), generator=generator, dtype=torch.uint8)

    def cond(self, size: int = 6) -> Cond:
        """Random conditions."""
        return self.batch(size).condition()

    def example(self, planner: Any = None, batch: Batch | None = None) -> Example:
        """A batch with what the parts of a planner make of it; by default of the shared planner and `batch()`."""
        planner, batch = planner or self.planner, batch or self.batch()
        cond = batch.condition()
        view, tokenizer = self.part(planner, "view"), self.part(planner, "tokenizer")
        x = batch.states if view is None else view(batch)
        if tokenizer is None:
            plan = replace(planner.plan(cond, torch.Generator().manual_seed(0)), noise=None)
            return Example(batch, cond, x, plan.codes, plan.latent, plan.latent[:, :0], plan.latent, plan)
        with torch.no_grad():
            encoding = tokenizer.encode(x)
            vectors = tokenizer.vectors(encoding.codes)
        plan = Plan(encoding.codes, encoding.latent, x, stride=cond.stride)
        return Example(batch, cond, x, encoding.codes, vectors, encoding.inputs, encoding.latent, plan)

    def windows(self) -> Tensor:
        """The features (B, T, D) of `batch()`."""
        x: Tensor = self.part(self.planner, "view")(self.batch())
        return x


def walks(goal_dim: int = SPACE.goal_dim, *, episodes: int = 20, steps: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Positions (M, G) of random walks from the origin, and the first row of each."""
    moves = np.random.default_rng(0).normal(0, 0.3, (episodes, steps, goal_dim))
    return moves.cumsum(1).reshape(-1, goal_dim), np.arange(episodes) * steps


def perturb(module: nn.Module, amount: float = 0.2) -> nn.Module:
    """Adds noise to all weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)
    return module


def select(batch: Batch, rows: slice | list[int]) -> Batch:
    """Some windows of a batch."""
    return batch.map(lambda values: values[rows])


def input_spans(lengths: tuple[int, ...]) -> Iterator[tuple[int, slice, slice]]:
    """For each scale: its index, its slice of the tokens, and its slice of the teacher-forcing inputs."""
    start, first = 0, lengths[0]
    for k, n in enumerate(lengths):
        yield k, slice(start, start + n), slice(start - first, start + n - first) if k else slice(0, 0)
        start += n


def find_fixture(kind: str, name: str, recipe: str | None = None, changes: Mapping[str, Any] | None = None) -> Fixture:
    """The component in the first composition that accepts it.

    Args:
        kind, name: of the component.
        recipe: a recipe's name, or a path to one; None tries the shipped ones.
        changes: plain values that override the recipe's, as ``{"schedule": {"name": "unit"}}``.

    Raises:
        ConfigError: if no composition accepts it: the first refusal.
        Exception: whatever the component raises when it is built.
    """
    refusals: list[ConfigError] = []
    recipes = [(recipe, {})] if recipe else candidates(kind)
    for removals in (0, MAX_REMOVALS):  # kinds are left out only where no recipe accepts the component as a whole
        for each, preset in recipes:
            for shrunk in (True, False):
                composition = composition_of(each, kind, name, merged(preset, changes or {}), shrunk)
                result = _try(Fixture(kind, name, composition), removals)
                if isinstance(result, Fixture):
                    return result
                refusals.append(result)
    raise min(refusals, key=lambda refusal: "~" in (refusal.fix or ""))  # rather than one about unused kinds


def _try(fixture: Fixture, removals: int) -> Fixture | ConfigError:
    """The fixture if it can be built, if need be without unused kinds; otherwise the refusal."""
    try:
        fixture.build()
    except ConfigError as refusal:
        composition = fixture.composition
        unused = [kind for kind in re.findall(r"'~(\w+)'", refusal.fix or "") if kind in composition.nodes]
        if not removals or not unused or fixture.kind in unused:
            return refusal
        return _try(Fixture(fixture.kind, fixture.name, composition.without(unused)), removals - 1)
    return fixture
