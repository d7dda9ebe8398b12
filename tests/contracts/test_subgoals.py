"""Every registered component for subgoals, and cases of the graph that are computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from accepts import cells, check_cell
from rich.console import Console
from torch import Tensor

from trajgen.config import compose
from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.planning import plan_step, revision_step
from trajgen.core.registry import build
from trajgen.core.types import Cond, FollowedPlan, Space
from trajgen.data.episodes import Episode, Episodes
from trajgen.data.starts import val_episodes
from trajgen.experiments.outlook import stage_steps, steps_text
from trajgen.experiments.preparation import build_planner, dry_run, ready
from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy
from trajgen.subgoals import farthest_points

U = [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (3.0, 1.0), (3.0, 2.0), (2.0, 2.0), (1.0, 2.0), (0.0, 2.0)]
"""Places along a U, of which the first and the last are 2 apart in a straight line and 8 steps by the way."""


@cells("subgoal")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("subgoal", name, words, advice)


def graph(*, goal_dim: int = 2, goal_state: tuple[int, ...] = (0, 1), stride: int = 1, **options: Any) -> Any:
    """A graph for states of a position and two more numbers, not fitted, in units of twice the data's."""
    normalizer = Normalizer(4, 2, goal_dim)
    normalizer.state.scale.fill_(2.0)
    normalizer.goal.mean.fill_(1.0)
    wiring = {"goal_dim": goal_dim, "goal_state": goal_state, "strides": (stride,), "normalizer": normalizer}
    return build("subgoal", tiny.node("subgoal", "graph", **options), **wiring)


def fitted(*episodes: list[tuple[float, float]], **options: Any) -> Any:
    """A graph of episodes, as often as there have to be rows for a landmark at each place."""
    component = graph(**options)
    rows = [place for _ in range(40) for episode in episodes for place in episode]
    lengths = [len(episode) for _ in range(40) for episode in episodes]
    component.fit(np.array(rows), np.cumsum([0, *lengths[:-1]]))
    return component


def subgoal(component: Any, place: tuple[float, float], goal: tuple[float, float]) -> tuple[float, float]:
    """The subgoal in units of the goal."""
    state = torch.tensor([[place[0] / 2, place[1] / 2, 9.0, -9.0]])
    x, y = (component(state, torch.tensor([goal]) - 1.0) + 1.0)[0].tolist()
    return (x, y)


BACK = U[::-1]


@pytest.mark.parametrize(
    ("place", "goal", "expected"),
    [
        ((0.0, 0.0), (0.1, 2.1), (3.0, 0.0)),  # along the U, not straight to the goal
        ((3.0, 1.0), (0.1, 2.1), (1.0, 2.0)),
        ((2.0, 2.0), (0.1, 2.1), (0.1, 2.1)),  # within reach: the goal itself
        ((0.1, 1.9), (0.0, 0.0), (3.0, 2.0)),  # and back
    ],
)
def test_a_subgoal_is_the_farthest_landmark_within_reach_on_the_way(
    place: tuple[float, float], goal: tuple[float, float], expected: tuple[float, float]
) -> None:
    assert subgoal(fitted(U, BACK, reach=3), place, goal) == pytest.approx(expected)


def test_ways_lead_as_episodes_do() -> None:
    one_way = fitted(U, reach=2)
    assert subgoal(one_way, (0.0, 0.0), (0.0, 2.0)) == pytest.approx((2.0, 0.0))
    # Nothing leads back: the goal is taken to be the nearest place that can be reached, within reach here.
    assert subgoal(one_way, (2.0, 2.0), (1.0, 0.0)) == pytest.approx((1.0, 0.0))


def test_ways_are_joined_of_pieces_of_several_episodes() -> None:
    joined = fitted(U[:4], U[3:6], U[5:], reach=4)
    assert subgoal(joined, U[0], U[-1]) == pytest.approx(U[4])
    assert subgoal(joined, U[3], U[-1]) == pytest.approx(U[7])


def test_an_edge_takes_the_time_between_two_points_of_a_plan() -> None:
    every_second = fitted(U, BACK, reach=2, stride=2)
    assert subgoal(every_second, U[0], U[-1]) == pytest.approx(U[4])
    # By edges of two steps that begin and end at the same parity: the way to places between them is not known.
    assert every_second.hops[:9, :9].max() == 32767


def test_an_end_of_one_episode_leads_nowhere_else() -> None:
    apart = fitted(U[:3], U[6:], reach=1)
    assert subgoal(apart, U[0], U[2]) == pytest.approx(U[1])
    assert subgoal(apart, U[0], U[-1]) == pytest.approx(U[-1])  # no place that is reached is nearer than this one


def test_without_data_the_goal_stays() -> None:
    component = graph()
    state, goal = torch.randn(5, 4), torch.randn(5, 2)
    assert torch.equal(component(state, goal), goal)


def test_more_landmarks_than_places_are_left_out() -> None:
    component = fitted(U, BACK, landmarks=64)
    assert (component.hops.diagonal() == 0).sum() == len(U)
    assert {tuple(row) for row in component.positions[: len(U)].tolist()} == set(U)


def test_small_data_have_fewer_landmarks() -> None:
    component = graph(landmarks=64)
    component.fit(np.random.default_rng(0).normal(0, 1, (320, 2)).cumsum(0), np.array([0]))
    assert (component.hops.diagonal() == 0).sum() == 320 // 32


def test_farthest_points_cover_positions_within_twice_the_least_radius() -> None:
    line = np.linspace(0, 1, 101)[:, None]
    chosen = farthest_points(line, 5)
    assert sorted(chosen[:, 0].tolist()) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert len(farthest_points(np.zeros((10, 2)), 5)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal_dim": 0}, "positions on the way to a goal"),
        ({"goal_state": ()}, "positions on the way to a goal"),
        ({"reach": 0}, "subgoal.reach"),
        ({"landmarks": 1}, "subgoal.landmarks"),
    ],
)
def test_what_cannot_have_subgoals_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        graph(**options)


def test_data_that_stand_still_are_refused() -> None:
    with pytest.raises(ConfigError, match="No episode leads from one landmark to another"):
        graph().fit(np.zeros((100, 2)), np.array([0, 50]))


def walks(count: int, *, has_achieved: bool = True) -> Episodes:
    """Random walks in a plane, with velocities in the state."""
    random = np.random.default_rng(0)
    raw = []
    for _ in range(count):
        states = random.normal(0, 1, (41, 4)).cumsum(0).astype(np.float32)
        goals = np.repeat(states[-1:, :2], 41, 0)
        achieved = states[:, :2] if has_achieved else None
        raw.append(Episode(states, random.uniform(-1, 1, (40, 2)), np.zeros(40), False, goals, achieved))
    return Episodes.collect(raw, name="walks", space=Space(4, 2, 2, "observation", "desired_goal"))


class Shift(torch.nn.Module):
    """Subgoals one unit beyond the goal."""

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        return goal + 1

    def fit(self, positions: np.ndarray, starts: np.ndarray) -> None:
        self.fitted_on = positions, starts


@torch.no_grad()
def test_target_and_plan_are_those_of_the_subgoal() -> None:
    planner: Any = tiny.planner(return_target="quantile").eval()
    cond = replace(tiny.batch().condition(), returns=torch.full((len(tiny.batch()),), torch.nan))
    moved = replace(cond, goal=cond.goal + 1)
    expected = plan_step(planner, moved, torch.Generator().manual_seed(0))
    followed = FollowedPlan(expected[1].codes, cond.state, torch.ones(len(cond), dtype=torch.long))
    revised = revision_step(planner, 1, "likelihood", moved, followed, torch.Generator().manual_seed(0))
    assert not torch.equal(expected[0], plan_step(planner, cond, torch.Generator().manual_seed(0))[0])
    planner.add_module("subgoal", Shift())
    returns, plan = plan_step(planner, cond, torch.Generator().manual_seed(0))
    assert torch.equal(returns, expected[0]) and torch.equal(plan.codes, expected[1].codes)
    assert torch.equal(plan.goal, moved.goal)  # which the action head reads
    again = revision_step(planner, 1, "likelihood", cond, followed, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], revised[0]) and torch.equal(again[1].codes, revised[1].codes)


def test_an_attribute_of_that_name_is_no_component() -> None:
    planner: Any = tiny.planner(return_target="quantile").eval()
    planner.subgoal = 3  # as of a planner of one's own
    cond = tiny.batch().condition()
    assert torch.equal(plan_step(planner, cond)[1].goal, cond.goal)


@pytest.mark.parametrize("words", [["recipe=mage_graph"], ["recipe=bc", "subgoal=graph"]])
@pytest.mark.parametrize("has_achieved", [True, False])
def test_the_graph_is_made_of_the_training_episodes(words: list[str], has_achieved: bool) -> None:
    options = ["data.horizon=8", "data.stride=1", "data.val_fraction=0.5", "subgoal.landmarks=16"]
    options += [] if has_achieved else ["data.goals=dataset", "data.goal_radius=null"]
    config = compose([*words, *options])
    episodes = walks(30, has_achieved=has_achieved)
    planner, _ = ready(config, episodes, torch.device("cpu"), Console(quiet=True))
    is_used = ~np.repeat(val_episodes(30, 0.5), episodes.lengths + 1)
    landmarks = {tuple(row) for row in planner.subgoal.positions.tolist()}
    assert len(landmarks) == 16 and landmarks < {tuple(row) for row in episodes.states[is_used, :2].tolist()}


def test_the_weights_are_those_of_mage() -> None:
    words, episodes = ["data.horizon=8", "data.stride=1"], walks(20)
    planners = [
        ready(compose([f"recipe={name}", *words]), episodes, torch.device("cpu"), Console(quiet=True))[0]
        for name in ("mage", "mage_graph")
    ]
    mage, with_graph = (planner.state_dict() for planner in planners)
    assert {name for name in with_graph if name not in mage} == {
        f"subgoal.{name}" for name in ("positions", "leads_on", "hops")
    }
    assert all(torch.equal(value, with_graph[name]) for name, value in mage.items())


def test_a_training_that_starts_from_a_run_makes_the_graph_anew(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe=mage_graph", f"init={run}", "data.horizon=8", "data.stride=1", "subgoal.landmarks=16"]
    planner, _ = ready(compose(words), walks(20), torch.device("cpu"), Console(width=300))
    assert (planner.subgoal.hops.diagonal() == 0).sum() == 16
    assert "subgoal" not in capsys.readouterr().out  # which is no weight that the run could have had


def test_train_only_subgoal_trains_nothing(run: Path) -> None:
    config = compose(["recipe=mage_graph", f"init={run}", "train_only=[subgoal]", "data.horizon=8", "data.stride=1"])
    assert stage_steps(config, build_planner(config, tiny.SPACE)) == {} and steps_text({}) == "nothing"
    without = compose(["recipe=mage", f"init={run}", "train_only=[subgoal]"])
    with pytest.raises(ConfigError, match="'subgoal' is none"):
        dry_run(without)


def test_rewards_that_are_subtracted_from_the_first_target_are_refused() -> None:
    with pytest.raises(ConfigError, match="Each subgoal has a return of its own"):
        dry_run(compose(["recipe=dt", "subgoal=graph", "return_target.subtract_rewards=true"]))
    dry_run(compose(["recipe=dt", "subgoal=graph"]))


def test_goals_that_are_no_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions on the way to a goal"):
        dry_run(compose(["recipe=mage_graph", "data=mujoco/hopper-medium-expert"]))


def test_the_condition_of_a_picture_has_the_subgoal() -> None:
    planner: Any = tiny.planner(return_target="quantile").eval()
    planner.add_module("subgoal", Shift())
    policy = RecedingHorizonPolicy(
        planner, planner.normalizer, tiny.SPACE, PolicyOptions(), discount=0.99, chunk=tiny.CHUNK
    )
    observation = {"observation": np.zeros(tiny.SPACE.state_dim), "desired_goal": np.zeros(tiny.SPACE.goal_dim)}
    cond: Cond = policy.condition(observation)
    assert cond.goal is not None and cond.goal.tolist() == [[1.0] * tiny.SPACE.goal_dim]
    assert torch.equal(cond.returns, planner.return_target(cond.state, cond.goal, torch.full((1,), torch.nan)))
