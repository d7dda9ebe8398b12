"""What is computed in the environment's units does not change with the normalization of the data."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from trajgen.core.normalizer import Affine, Normalizer
from trajgen.core.registry import spec
from trajgen.core.types import Cond
from trajgen.testing.common import points_of
from trajgen.testing.contract import NotApplicableError, contract, require
from trajgen.testing.fixture import Fixture

PROMISE = "the same in any normalization of the data"
FIELDS = {"state": (0.5, 2.0), "goal": (-1.0, 0.5), "reward": (0.2, 3.0), "returns": (0.3, 1.5)}
"""Mean and deviation of each field in the other normalization; that of goals alone where a component is not given any:
what it reads of other fields may be normalized, but it cannot compare goals with states.
"""


@contract(PROMISE, "critic")
@torch.no_grad()
def scores(fixture: Fixture) -> None:
    planner, critic = _planner_of(fixture)
    example = fixture.example(planner)
    points = points_of(fixture, planner, example)
    expected = critic(points, example.cond)
    before = _renormalize(fixture, planner.normalizer)
    position = fixture.composition.window.goal_state
    for name, x in points.items():
        points[name] = _part(name, planner.normalizer, position)(_part(name, before, position).inverse(x))
    others = critic(points, _renormalized(example.cond, before, planner.normalizer))
    require(
        torch.allclose(others, expected, rtol=1e-3, atol=1e-4),
        "The same plans have other scores where the data are normalized otherwise.",
        expected="states and goals, each of which has its own normalization, compared in units of the environment",
        look="normalizer.state.inverse(…), normalizer.goal.inverse(…)",
    )


@contract(PROMISE, "subgoal")
@torch.no_grad()
def subgoals(fixture: Fixture) -> None:
    planner, subgoal = _planner_of(fixture)
    cond = fixture.cond()
    expected = planner.normalizer.goal.inverse(subgoal(cond.state, cond.goal))
    before = _renormalize(fixture, planner.normalizer)
    cond = _renormalized(cond, before, planner.normalizer)
    require(
        torch.allclose(planner.normalizer.goal.inverse(subgoal(cond.state, cond.goal)), expected, atol=1e-3),
        "The subgoals are others where the data are normalized otherwise.",
        expected="states and goals, each of which has its own normalization, compared in units of the environment",
        look="normalizer.state.inverse(…), normalizer.goal.inverse(…), and normalizer.goal(…) of the result",
    )


def _planner_of(fixture: Fixture) -> tuple[Any, Any]:
    """A planner of its own, and its component, unless that has weights."""
    planner = fixture.build_ready()
    component = fixture.part(planner)
    if isinstance(component, nn.Module) and list(component.parameters()):
        raise NotApplicableError("it has weights, which are trained for one normalization")
    return planner, component


def _renormalize(fixture: Fixture, normalizer: Normalizer) -> Normalizer:
    """Changes a normalizer in place; returns it as it was."""
    before = deepcopy(normalizer)
    is_given = "normalizer" in spec(fixture.kind, fixture.name).wiring
    for name, (mean, scale) in FIELDS.items() if is_given else [("goal", FIELDS["goal"])]:
        affine: Affine = getattr(normalizer, name)
        affine.mean.fill_(mean)
        affine.scale.fill_(scale)
    return before


def _renormalized(cond: Cond, before: Normalizer, after: Normalizer) -> Cond:
    return replace(
        cond,
        state=after.state(before.state.inverse(cond.state)),
        returns=after.returns(before.returns.inverse(cond.returns)),
        goal=None if cond.goal is None else after.goal(before.goal.inverse(cond.goal)),
    )


def _part(field: str, normalizer: Normalizer, position: tuple[int, ...]) -> Affine:
    """The map of a field of a view."""
    if field == "position":
        return normalizer.state.part(position)
    affine: Affine = getattr(normalizer, {"return": "returns"}.get(field, field))
    return affine
