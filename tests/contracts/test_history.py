"""Planners that act without planning ahead: from a history (Decision Transformer), or from the condition alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.assemble import WindowShape, assemble
from trajgen.core.errors import ConfigError
from trajgen.core.types import Batch, Cond, Plan, Space
from trajgen.policies.history import History
from trajgen.policies.options import PolicyOptions

HORIZON, CHUNK = 5, 3
WINDOW = WindowShape(horizon=HORIZON, stride=1, chunk=CHUNK, return_power=1.0)
HISTORY: dict[str, dict[str, Any]] = {
    "view": {"name": "fields", "fields": ("return", "state", "action")},
    "schedule": {"name": "unit"},
    "tokenizer": {"name": "identity", "tokens": "field"},
    "conditioner": {"name": "fields", "fields": ("goal",), "dropout": 0.0},
    "prior": {"name": "gpt", "dropout": 0.0},
    "return_target": {"name": "constant"},
    "planner": {"name": "history"},
}
DIRECT: dict[str, dict[str, Any]] = {
    "conditioner": {"name": "fields", "fields": ("state", "goal"), "dropout": 0.0},
    "action": {"name": "latent_state"},
    "return_target": {"name": "constant"},
    "planner": {"name": "direct"},
}
PYRAMID: dict[str, dict[str, Any]] = {
    "schedule": {"name": "geometric"},
    "tokenizer": {"name": "multiscale", "latent_length": HORIZON},
}


def build(
    nodes: dict[str, dict[str, Any]],
    window: WindowShape = WINDOW,
    space: Space = tiny.SPACE,
    **swaps: dict[str, Any],
) -> Any:
    """A small planner with fresh weights; each swap names another component, or changes options."""
    nodes = {k: swaps[k] if "name" in swaps.get(k, {}) else {**node, **swaps.get(k, {})} for k, node in nodes.items()}
    torch.manual_seed(0)
    return assemble({k: tiny.node(k, **node) for k, node in nodes.items()}, space, window)


def perturbed(nodes: dict[str, dict[str, Any]] = HISTORY, space: Space = tiny.SPACE, **swaps: dict[str, Any]) -> Any:
    return tiny.shake(build(nodes, space=space, **swaps)).eval()


def test_an_action_is_predicted_at_every_step() -> None:
    planner = build(HISTORY)
    assert PolicyOptions(replan_interval=1).steps(planner, 1) == 1
    with pytest.raises(ConfigError, match="one action at a time") as caught:
        PolicyOptions(replan_interval=2).steps(planner, 4)
    tiny.check_cure(caught.value)


def windows(points: int = HORIZON) -> Batch:
    """Four random windows of stride 1, all of their points real."""
    batch = tiny.batch(4, stride=1)
    points_of = {name: getattr(batch, name)[:, :points] for name in ("states", "actions", "rewards", "returns")}
    chunks = {name: getattr(batch, name)[:, :CHUNK] for name in ("chunk_states", "chunk_actions", "chunk_mask")}
    return replace(batch, mask=torch.ones(4, points, dtype=torch.bool), terminals=None, **points_of, **chunks)


def latent(planner: Any, past: Batch) -> Tensor:
    """The latent of plans made at the last points of histories."""
    plan: Plan = planner.plan(Cond(past.states[:, -1], past.returns[:, -1], past.goals, past=past))
    return plan.latent


def assert_same(first: Tensor, second: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(first, second, atol=tolerance, rtol=tolerance)


def last_points(past: Batch, row: int, points: int) -> Batch:
    """One row of histories, and of it the last points alone."""
    missing = past.mask.shape[1] - points
    values = {
        f.name: values[row : row + 1] for f in fields(past) if isinstance(values := getattr(past, f.name), torch.Tensor)
    }
    values |= {name: values[name][:, missing:] for name in ("states", "actions", "rewards", "returns", "mask")}
    return replace(past, **{**values, "time": values["time"] + missing})


def changed(past: Batch, name: str, point: int, value: float) -> Batch:
    """The histories with one of their fields changed at one point."""
    values = getattr(past, name).clone()
    values[:, point] += value
    return replace(past, **{name: values})


@pytest.mark.parametrize("nodes", [HISTORY, DIRECT], ids=["history", "direct"])
def test_plans_repeat_and_rows_are_replaced(nodes: dict[str, dict[str, Any]]) -> None:
    planner, cond = perturbed(nodes), windows().condition()
    first, second = (planner.plan(cond, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(first.latent, second.latent) and first.trajectory is None
    assert planner.refinements(first, cond) == {}
    replaced = first.with_rows(torch.tensor([1]), planner.plan(cond.map(lambda values: values[2:3])))
    assert_same(replaced.latent, second.latent[[0, 2, 2, 3]])


@pytest.mark.parametrize("prior", ["gpt", "transformer"])
@pytest.mark.parametrize("points", range(1, HORIZON + 1))
def test_acting_repeats_what_was_trained(points: int, prior: str) -> None:
    planner, batch = perturbed(prior={"name": prior}), windows()
    trained = planner.actions(planner.view(batch), batch.condition())
    acted = latent(planner, windows(points))
    assert_same(acted[:, 0], trained[:, points - 1])
    assert acted.std() > 0.01


def test_the_action_depends_on_the_whole_history() -> None:
    planner, past = perturbed(), windows()
    before = latent(planner, past)
    for name in ("states", "returns", "actions"):
        for point in range(HORIZON - (name == "actions")):
            after = latent(planner, changed(past, name, point, 1.0))
            assert ((after - before).abs().amax((1, 2)) > 1e-5).all(), (name, point)
    assert not torch.allclose(latent(planner, replace(past, goals=past.goals + 1)), before)
    assert not torch.allclose(latent(planner, replace(past, time=past.time + 1)), before)


def test_the_current_action_and_masked_points_are_not_looked_at() -> None:
    planner, past = perturbed(), windows()
    mask = past.mask.clone()
    mask[1, :2] = mask[2, :4] = False
    past = replace(past, mask=mask)
    hidden = {"states": ~mask, "returns": ~mask, "actions": ~mask, "rewards": torch.ones_like(mask)}
    hidden["actions"][:, -1] = True
    invalid = {}
    for name, where in hidden.items():
        invalid[name] = getattr(past, name).clone()
        invalid[name][where] = torch.nan
    assert_same(latent(planner, replace(past, **invalid)), latent(planner, past), tolerance=0)


@torch.no_grad()
@pytest.mark.parametrize("past_actions", [True, False])
def test_past_actions_count_if_the_option_says_so(past_actions: bool) -> None:
    planner, past = perturbed(planner={"past_actions": past_actions}), windows()
    other = latent(planner, replace(past, actions=past.actions + 1.0))
    assert torch.equal(latent(planner, past), other) is not past_actions
    x = planner.view(past)
    before = x.clone()
    planner.actions(x, past.condition())
    assert torch.equal(x, before)  # the targets of training stay as they were


@torch.no_grad()
def test_actions_are_hyperbolic_tangents_in_the_units_of_the_data_if_the_option_says_so() -> None:
    plain, bounded = (perturbed(planner={"action_tanh": tanh}) for tanh in (False, True))
    bounded.load_state_dict(plain.state_dict())
    for planner in (plain, bounded):
        planner.normalizer.action.mean.fill_(0.3)
        planner.normalizer.action.scale.fill_(0.5)
    past = windows()
    expected = (torch.tanh(latent(plain, past)) - 0.3) / 0.5
    torch.testing.assert_close(latent(bounded, past), expected)


@torch.no_grad()
def test_actions_that_are_tangents_reach_the_bounds_of_the_data() -> None:
    space = replace(tiny.SPACE, action_low=(-2.0, -0.5), action_high=(1.0, 0.5))
    plain, bounded = (perturbed(space=space, planner={"action_tanh": tanh}) for tanh in (False, True))
    bounded.load_state_dict(plain.state_dict())
    past = windows()
    expected = torch.tanh(latent(plain, past)) * torch.tensor([2.0, 1.0])
    torch.testing.assert_close(latent(bounded, past), expected)
    with pytest.raises(ConfigError, match=r"planner\.action_tanh=false"):
        build(HISTORY, space=replace(space, action_low=(-torch.inf, -0.5)), planner={"action_tanh": True})


@torch.no_grad()
def test_rows_of_different_length_are_as_they_are_alone() -> None:
    planner, past, lengths = perturbed(), windows(), [HORIZON, 3, 1, 2]
    for row, length in enumerate(lengths):
        past.mask[row, : HORIZON - length] = False
    batched = latent(planner, past)
    for row, length in enumerate(lengths):
        assert_same(batched[row : row + 1], latent(planner, last_points(past, row, length)))


def test_of_a_longer_past_the_last_points_count() -> None:
    planner, past = perturbed(), windows()
    earlier = {"states": torch.randn(4, 2, 4), "actions": torch.randn(4, 2, 1, 2), "returns": torch.randn(4, 2)}
    longer = {name: torch.cat([values, getattr(past, name)], dim=1) for name, values in earlier.items()}
    mask, rewards = torch.ones(4, HORIZON + 2, dtype=torch.bool), torch.zeros(4, HORIZON + 2)
    longer_past = replace(past, **longer, mask=mask, rewards=rewards, time=past.time - 2)
    assert_same(latent(planner, longer_past), latent(planner, past), tolerance=0)


def test_without_a_past_an_episode_begins() -> None:
    planner, start = perturbed(), replace(windows(1), time=torch.zeros(4, dtype=torch.long))
    bare = Cond(start.states[:, -1], start.returns[:, -1], start.goals, time=torch.full((4,), 3))
    assert_same(planner.plan(bare).latent, latent(planner, start), tolerance=0)


def act(planner: Any, batch: Batch, steps: Tensor) -> list[Tensor]:
    """The actions (N, A) of episodes that meet the points of windows, restarting where ``steps`` (n, N) says 0."""
    record, actions = History(3, HORIZON, 4, 2), []
    for point, step in enumerate(steps):
        record.push(batch.states[:, point], step)
        cond = Cond(batch.states[:, point], batch.returns[:, point], batch.goals, past=record.past())
        actions.append(planner.plan(cond).latent[:, 0])
        record.record_return(batch.returns[:, point], torch.arange(len(batch)))
        record.record_action(actions[-1])
    return actions


def test_a_restarted_episode_is_as_a_fresh_one() -> None:
    planner, batch = perturbed(), tiny.batch(3, stride=1)
    steps = torch.arange(9).unsqueeze(1).repeat(1, 3)
    restarting = steps.clone()
    restarting[4:, 1] = torch.arange(5)  # the second episode starts anew at the fifth point
    mixed, uninterrupted = act(planner, batch, restarting), act(planner, batch, steps)
    fresh = act(planner, replace(batch, states=batch.states[:, 4:], returns=batch.returns[:, 4:]), steps[:5])
    for point in range(9):
        assert_same(mixed[point][[0, 2]], uninterrupted[point][[0, 2]])
        assert_same(mixed[point][1], uninterrupted[point][1] if point < 4 else fresh[point - 4][1])
    assert not torch.allclose(mixed[4][1], uninterrupted[4][1])


def test_a_history_slides_by_hand() -> None:
    record = History(2, 3, 1, 1)
    assert not record.past().mask.any()
    for step in range(4):
        number = torch.full((2,), float(step))
        record.push(number.unsqueeze(1), torch.tensor([step, step % 3]))
        record.record_return(number + 10, torch.arange(len(number)))
        before = record.past()
        record.record_action(number.unsqueeze(1) + 20)
        record.record_reward(number + 30)
        assert not before.actions[:, -1].any() and not before.rewards[:, -1].any()
    past = record.past()
    assert past.states[0, :, 0].tolist() == [1, 2, 3] and past.returns[0].tolist() == [11, 12, 13]
    assert past.actions[0, :, 0, 0].tolist() == [21, 22, 23] and past.rewards[0].tolist() == [31, 32, 33]
    assert past.mask.tolist() == [[True, True, True], [False, False, True]]
    assert past.time is not None and past.time.tolist() == [1, -2]


def test_the_losses_by_hand() -> None:
    planner, batch = perturbed(), windows()
    batch.mask[1, 3:] = False
    stage = planner.stages()[-1]
    stage.begin(planner)
    error = (planner.actions(planner.view(batch), batch.condition()) - batch.actions[:, :, 0]).square().mean(-1)
    counted = batch.mask.clone()
    counted[1, 2] = False  # the episode's final observation, without an action
    loss = stage.loss(batch)["total"]
    torch.testing.assert_close(loss, error[counted].mean())
    batch.actions[1, 2:] += 100
    torch.testing.assert_close(stage.loss(batch)["total"], loss)
    terminals = torch.zeros_like(batch.mask)
    terminals[0, -1] = True  # the last point of a window is that observation
    counted[0, -1] = False
    torch.testing.assert_close(stage.loss(replace(batch, terminals=terminals))["total"], error[counted].mean())
    terminals[0, 2:] = True  # from here on the state is absorbing
    counted[0, 2:] = False
    torch.testing.assert_close(stage.loss(replace(batch, terminals=terminals))["total"], error[counted].mean())

    planner, batch = perturbed(DIRECT), windows()
    predicted = planner.action(planner.plan(batch.condition()), batch.chunk_states, torch.arange(CHUNK).expand(4, -1))
    error = (predicted - batch.chunk_actions).square().mean(-1)
    assert not batch.chunk_mask.all()
    torch.testing.assert_close(planner.stages()[-1].loss(batch)["total"], error[batch.chunk_mask].mean())


def test_a_view_without_returns_ignores_them() -> None:
    planner, past = perturbed(view={"fields": ("state", "action")}), windows()
    before = latent(planner, past)
    assert torch.equal(latent(planner, replace(past, returns=past.returns + 1)), before)
    assert not torch.equal(latent(planner, changed(past, "states", 0, 1.0)), before)


@pytest.mark.parametrize(
    ("swaps", "fix"),
    [
        ({"view": {"fields": ("return", "action", "state")}}, r"view\.fields=\[return,state,action\]"),
        ({"view": {"fields": ("state",)}}, r"view\.fields=\[state,action\]"),
        ({"view": {"fields": ("reward", "state", "action")}}, r"view\.fields=\[state,action\]"),
        ({"tokenizer": {"tokens": "point"}}, r"tokenizer\.tokens=field"),
        ({"tokenizer": {"name": "bins"}}, "tokenizer=identity"),
        ({"prior": {"name": "transformer"}, **PYRAMID}, "tokenizer=identity"),
        ({"schedule": {"name": "single"}, "prior": {"name": "transformer"}}, "schedule=unit"),
        ({"schedule": {"name": "single"}}, "schedule=unit"),
        ({"prior": {"heads": 3}}, r"prior\.heads=3"),
        ({"prior": {"timesteps": -1}}, r"prior\.timesteps=0"),
        ({"window": replace(WINDOW, stride=2)}, r"data\.stride=1"),
    ],
)
def test_parts_that_cannot_continue_a_history_are_refused(swaps: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix) as caught:
        build(HISTORY, **swaps)
    tiny.check_cure(caught.value)


@pytest.mark.parametrize("name", ["plan", "state"])
def test_without_a_trajectory_no_actions_are_read_off_it(name: str) -> None:
    view = {"view": {"name": "fields", "fields": ("state", "action")}}
    with pytest.raises(ConfigError, match="action=latent_state") as caught:
        build({**DIRECT, **view}, action={"name": name})
    tiny.check_cure(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("names", [("state", "goal"), ("state", "goal", "return")], ids=["bc", "rvs"])
def test_fields_that_behavior_cloning_and_rvs_look_at(names: tuple[str, ...]) -> None:
    planner, cond = perturbed(DIRECT, conditioner={"fields": names}), windows().condition()
    before, after = (planner.plan(each).latent for each in (cond, tiny.moved(cond, returns=1.0)))
    assert torch.equal(before, after) is ("return" not in names)


def history_task(step: int) -> Batch:
    """The action follows from the state before and the current return."""
    batch = tiny.batch(64, seed=step, stride=1)
    states, returns = batch.states[:, :HORIZON], batch.returns[:, :HORIZON]
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
    actions = 0.5 * (before[..., :2] + returns.unsqueeze(-1)).unsqueeze(2)
    mask = torch.ones_like(returns, dtype=torch.bool)
    return replace(batch, mask=mask, terminals=None, states=states, returns=returns, actions=actions)


def policy_task(step: int) -> Batch:
    """The action follows from the current state and the goal."""
    batch = tiny.batch(64, seed=step, stride=1)
    states = batch.chunk_states[:, :CHUNK]
    chunk = {"chunk_states": states, "chunk_actions": 0.5 * (batch.goals.unsqueeze(1) - states[..., :2])}
    first = torch.cat([states[:, :1], batch.states[:, 1:]], dim=1)
    return replace(batch, states=first, chunk_mask=batch.chunk_mask[:, :CHUNK], **chunk)


@pytest.mark.parametrize(
    ("nodes", "swaps", "task", "lr"),
    [(HISTORY, {"prior": {"width": 32, "depth": 2}}, history_task, 3e-3), (DIRECT, {}, policy_task, 5e-3)],
    ids=["history", "direct"],
)
def test_a_toy_task_is_learnt(
    nodes: dict[str, dict[str, Any]], swaps: dict[str, dict[str, Any]], task: Callable[[int], Batch], lr: float
) -> None:
    planner = build(nodes, **swaps)
    stage = planner.stages()[-1]
    stage.begin(planner)
    optimizer = torch.optim.Adam(stage.trained, lr=lr)
    for step in range(400):
        optimizer.zero_grad()
        total = stage.loss(task(step))["total"]
        total.backward()
        optimizer.step()
        if step > 100 and float(total) < 0.02:
            break
    assert stage.loss(task(400))["total"].item() < 0.03  # of a variance of about 0.5
