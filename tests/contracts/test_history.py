"""Planners that act without planning ahead: from a history (Decision Transformer), or straight from the condition."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from trajgen.assemble import WindowShape, assemble
from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Batch, Cond
from trajgen.policies.history import History
from trajgen.priors.gpt import GPTPrior

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


def composed(recipe: dict[str, dict[str, Any]], window: WindowShape = WINDOW, **swaps: dict[str, Any]) -> Any:
    """A small planner with fresh weights; each swap names another component, or changes options."""
    parts = {k: swaps[k] if "name" in swaps.get(k, {}) else {**node, **swaps.get(k, {})} for k, node in recipe.items()}
    torch.manual_seed(0)
    return assemble({k: tiny.node(k, **node) for k, node in parts.items()}, tiny.SPACE, window)


def history(**swaps: dict[str, Any]) -> Any:
    """A history planner whose weights are moved."""
    return tiny.shake(composed(HISTORY, **swaps)).eval()


def direct(**swaps: dict[str, Any]) -> Any:
    """A direct planner whose weights are moved."""
    return tiny.shake(composed(DIRECT, **swaps)).eval()


def windows(size: int = 4, points: int = HORIZON) -> Batch:
    """Random windows of stride 1, all of their points real."""
    known = tiny.batch(size, stride=1)
    cut = {name: getattr(known, name)[:, :points] for name in ("states", "actions", "rewards", "returns")}
    chunk = {name: getattr(known, name)[:, :CHUNK] for name in ("chunk_states", "chunk_actions", "chunk_mask")}
    return replace(known, mask=torch.ones(size, points, dtype=torch.bool), **cut, **chunk)


def now(past: Batch) -> Cond:
    """The condition at the last of the points of a history."""
    return Cond(past.states[:, -1], past.returns[:, -1], past.goals, past=past)


def only(past: Batch, row: int, points: int) -> Batch:
    """One row of histories, and of it the last points alone."""
    missing = past.mask.shape[1] - points
    kept = {f.name: getattr(past, f.name)[row : row + 1] for f in fields(past) if f.name != "full_batch"}
    late = {name: kept[name][:, missing:] for name in ("states", "actions", "rewards", "returns", "mask")}
    return replace(past, **{**kept, **late, "time": kept["time"] + missing})


def changed(past: Batch, name: str, point: int, value: float | Tensor) -> Batch:
    """The histories with one of their fields changed at one point."""
    values = getattr(past, name).clone()
    values[:, point] += value
    return replace(past, **{name: values})


@pytest.mark.parametrize("make", [history, direct])
def test_a_stage_trains_its_own_parameters_alone(make: Any) -> None:
    made = make(return_target={"name": "quantile"})
    stages = made.stages()
    assert len({stage.name for stage in stages}) == len(stages)
    for stage in stages:
        made.zero_grad(set_to_none=True)
        stage.begin(made)
        losses = stage.loss(windows())
        assert all(v.ndim == 0 and torch.isfinite(v) for v in losses.values())
        if stage.parameters:
            losses["total"].backward()
            own = {id(p) for p in stage.parameters}
            reached = {id(p) for p in made.parameters() if p.grad is not None}
            silent = {name for name, p in made.named_parameters() if id(p) in own - reached}
            assert reached and reached <= own
            assert all(".missing." in name for name in silent)  # what stands for a field that is withheld
        assert all(isinstance(v, float) for v in stage.report().values())
    trained = {id(p) for stage in stages for p in stage.parameters}
    assert trained == {id(p) for p in made.parameters()}


@pytest.mark.parametrize("make", [history, direct])
def test_plans_repeat_and_hold_no_trajectory(make: Any) -> None:
    made, cond = make(), windows().condition()
    first, second = (made.plan(cond, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(first.latent, second.latent) and first.trajectory is None
    assert made.refinements(first, cond) == {}
    offsets = torch.arange(CHUNK).expand(4, -1)
    assert made.action(first, torch.randn(4, CHUNK, 4), offsets).shape == (4, CHUNK, 2)
    first.put(torch.tensor([1]), made.plan(cond.map(lambda v: v[2:3])))
    torch.testing.assert_close(first.latent, second.latent[[0, 2, 2, 3]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prior", ["gpt", "transformer"])
@pytest.mark.parametrize("points", range(1, HORIZON + 1))
def test_acting_repeats_what_was_trained(points: int, prior: str) -> None:
    made, known = history(prior={"name": prior}), windows()
    taught = made.actions(made.view(known), known.condition())
    shown = windows(points=points)
    plan = made.plan(now(shown))
    torch.testing.assert_close(plan.latent[:, 0], taught[:, points - 1], atol=1e-5, rtol=1e-5)
    assert plan.latent.std() > 0.01


def test_the_action_depends_on_all_that_is_known() -> None:
    made, past = history(), windows()
    before = made.plan(now(past)).latent
    for name in ("states", "returns", "actions"):
        for point in range(HORIZON - (name == "actions")):
            after = made.plan(now(changed(past, name, point, 1.0))).latent
            assert ((after - before).abs().amax((1, 2)) > 1e-5).all(), (name, point)
    assert not torch.allclose(made.plan(now(replace(past, goals=past.goals + 1))).latent, before)
    assert not torch.allclose(made.plan(now(replace(past, time=past.time + 1))).latent, before)


def test_the_current_action_and_masked_points_are_not_looked_at() -> None:
    made, past = history(), windows()
    mask = past.mask.clone()
    mask[1, :2] = mask[2, :4] = False
    past = replace(past, mask=mask)
    before = made.plan(now(past)).latent
    hidden = {"states": ~mask, "returns": ~mask, "actions": ~mask, "rewards": torch.ones_like(mask)}
    hidden["actions"][:, -1] = True
    spoilt = {}
    for name, where in hidden.items():
        spoilt[name] = getattr(past, name).clone()
        spoilt[name][where] = torch.nan
    torch.testing.assert_close(made.plan(now(replace(past, **spoilt))).latent, before, atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("seen", [True, False])
def test_past_actions_count_if_they_are_seen(seen: bool) -> None:
    made, past = history(planner={"past_actions": seen}), windows()
    other = replace(past, actions=past.actions + 1.0)
    same = torch.equal(made.plan(now(past)).latent, made.plan(now(other)).latent)
    assert same is not seen
    x = made.view(past)
    before = x.clone()
    made.actions(x, past.condition())
    assert torch.equal(x, before)  # what training compares with stays as it was


@torch.no_grad()
def test_rows_of_different_length_are_as_they_are_alone() -> None:
    made, past = history(), windows()
    lengths = [HORIZON, 3, 1, 2]
    for row, length in enumerate(lengths):
        past.mask[row, : HORIZON - length] = False
    together = made.plan(now(past)).latent
    for row, length in enumerate(lengths):
        alone = made.plan(now(only(past, row, length))).latent
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_of_a_longer_past_the_last_points_count() -> None:
    made, past = history(), windows()
    first = {"states": torch.randn(4, 2, 4), "actions": torch.randn(4, 2, 1, 2), "returns": torch.randn(4, 2)}
    longer = {name: torch.cat([before, getattr(past, name)], dim=1) for name, before in first.items()}
    mask, rewards = torch.ones(4, HORIZON + 2, dtype=torch.bool), torch.zeros(4, HORIZON + 2)
    whole = replace(past, **longer, mask=mask, rewards=rewards, time=past.time - 2)
    torch.testing.assert_close(made.plan(now(whole)).latent, made.plan(now(past)).latent, atol=0, rtol=0)


def test_without_a_past_an_episode_begins() -> None:
    made, start = history(), windows(points=1)
    start = replace(start, time=torch.zeros_like(start.time))
    bare = replace(now(start), past=None, time=torch.full((4,), 3))
    torch.testing.assert_close(made.plan(bare).latent, made.plan(now(start)).latent, atol=0, rtol=0)


def from_history_of(made: Any, record: History, known: Batch, steps: Tensor) -> list[Tensor]:
    """The actions (N, A) of episodes that meet the points of windows, restarting where ``steps`` (n, N) says 0."""
    acted = []
    for point, step in enumerate(steps):
        state, asked = known.states[:, point], known.returns[:, point]
        record.push(state, step)
        acted.append(made.plan(Cond(state, asked, known.goals, past=record.past())).latent[:, 0])
        record.record_return(asked)
        record.record_action(acted[-1])
    return acted


def test_a_restarted_episode_is_as_a_fresh_one() -> None:
    made, known = history(), tiny.batch(3, stride=1)
    steps = torch.arange(9).unsqueeze(1).repeat(1, 3)
    steps[4:, 1] = torch.arange(5)  # the second episode starts anew at the fifth point
    mixed = from_history_of(made, History(3, HORIZON, 4, 2), known, steps)
    whole = from_history_of(made, History(3, HORIZON, 4, 2), known, torch.arange(9).unsqueeze(1).repeat(1, 3))
    later = replace(known, states=known.states[:, 4:], returns=known.returns[:, 4:])
    fresh = from_history_of(made, History(3, HORIZON, 4, 2), later, torch.arange(5).unsqueeze(1).repeat(1, 3))
    for point in range(9):
        torch.testing.assert_close(mixed[point][[0, 2]], whole[point][[0, 2]], atol=1e-5, rtol=1e-5)
        expected = whole[point][1] if point < 4 else fresh[point - 4][1]
        torch.testing.assert_close(mixed[point][1], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mixed[4][1], whole[4][1])


def test_a_history_slides_by_hand() -> None:
    record = History(2, 3, 1, 1)
    assert not record.past().mask.any()
    for step in range(4):
        number = torch.full((2,), float(step))
        record.push(number.unsqueeze(1), torch.tensor([step, step % 3]))
        record.record_return(number + 10)
        before = record.past()
        record.record_action(number.unsqueeze(1) + 20)
        record.record_reward(number + 30)
        assert not before.actions[:, -1].any() and not before.rewards[:, -1].any()
    past = record.past()
    assert past.states[0, :, 0].tolist() == [1, 2, 3] and past.returns[0].tolist() == [11, 12, 13]
    assert past.actions[0, :, 0, 0].tolist() == [21, 22, 23] and past.rewards[0].tolist() == [31, 32, 33]
    assert past.mask.tolist() == [[True, True, True], [False, False, True]]
    assert past.time is not None and past.time.tolist() == [1, -2]


def test_the_loss_by_hand(batch: Batch) -> None:
    made, known = history(), windows()
    known.mask[1, 3:] = False
    stage = made.stages()[-1]
    stage.begin(made)
    predicted = made.actions(made.view(known), known.condition()).detach()
    error = (predicted - known.actions[:, :, 0]).square().mean(-1)
    counted = known.mask.clone()
    counted[1, 2] = False  # the episode's final observation, at which nothing was done
    losses = stage.loss(known)
    torch.testing.assert_close(losses["total"].detach(), error[counted].mean())
    known.actions[1, 2:] += 100
    torch.testing.assert_close(stage.loss(known)["total"], losses["total"])


def test_a_view_without_returns_does_not_ask_for_any() -> None:
    made, past = history(view={"fields": ("state", "action")}), windows()
    before = made.plan(now(past)).latent
    assert torch.equal(made.plan(now(replace(past, returns=past.returns + 1))).latent, before)
    assert not torch.equal(made.plan(now(changed(past, "states", 0, 1.0))).latent, before)


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
    ],
)
def test_parts_that_cannot_continue_a_history(swaps: dict[str, dict[str, Any]], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix) as refusal:
        composed(HISTORY, **swaps)
    tiny.check_cure(refusal.value)


def test_a_history_holds_every_step() -> None:
    with pytest.raises(ConfigError, match=r"data\.stride=1") as refusal:
        composed(HISTORY, replace(WINDOW, stride=2))
    tiny.check_cure(refusal.value)


@pytest.mark.parametrize("name", ["plan", "state"])
def test_no_trajectory_to_read_actions_off(name: str) -> None:
    view = {"view": {"name": "fields", "fields": ("state", "action")}}
    with pytest.raises(ConfigError, match="action=latent_state") as refusal:
        composed({**DIRECT, **view}, action={"name": name})
    tiny.check_cure(refusal.value)


@torch.no_grad()
def test_which_fields_behaviour_cloning_and_rvs_look_at() -> None:
    cond, states, offsets = windows().condition(), torch.zeros(4, 1, 4), torch.zeros(4, 1, dtype=torch.long)
    asked = tiny.moved(cond, returns=1.0)
    for known, looks in ((("state", "goal"), False), (("state", "goal", "return"), True)):
        made = direct(conditioner={"fields": known})
        before, after = (made.action(made.plan(each), states, offsets) for each in (cond, asked))
        assert torch.equal(before, after) is not looks


def test_the_loss_of_a_policy_by_hand() -> None:
    made, known = direct(), windows()
    stage = made.stages()[-1]
    stage.begin(made)
    offsets = torch.arange(CHUNK).expand(4, -1)
    predicted = made.action(made.plan(known.condition()), known.chunk_states, offsets)
    error = (predicted - known.chunk_actions).square().mean(-1)
    losses = stage.loss(known)
    assert not known.chunk_mask.all()
    torch.testing.assert_close(losses["total"].detach(), error[known.chunk_mask].mean().detach())


def taught(made: Any, lesson: Any, *, steps: int, lr: float) -> float:
    """The loss, on windows not seen, of a planner whose last stage was trained on what ``lesson`` makes of windows."""
    stage = made.stages()[-1]
    stage.begin(made)
    optimizer = torch.optim.Adam(stage.parameters, lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        stage.loss(lesson(step))["total"].backward()
        optimizer.step()
    with torch.no_grad():
        return float(stage.loss(lesson(steps))["total"])


def lesson_of_history(step: int) -> Batch:
    """What is done is told from the state before and the return asked for now."""
    known = replace(tiny.batch(64, seed=step, stride=1), mask=torch.ones(64, HORIZON, dtype=torch.bool))
    states, returns = known.states[:, :HORIZON], known.returns[:, :HORIZON]
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
    actions = 0.5 * (before[..., :2] + returns.unsqueeze(-1)).unsqueeze(2)
    return replace(known, states=states, returns=returns, actions=actions)


def lesson_of_policy(step: int) -> Batch:
    """What is done is told from the current state and the goal."""
    known = tiny.batch(64, seed=step, stride=1)
    assert known.goals is not None
    chunk = known.chunk_states[:, :CHUNK]
    actions = 0.5 * (known.goals.unsqueeze(1) - chunk[..., :2])
    states = torch.cat([chunk[:, :1], known.states[:, 1:]], dim=1)
    return replace(
        known, states=states, chunk_states=chunk, chunk_actions=actions, chunk_mask=known.chunk_mask[:, :CHUNK]
    )


def test_actions_are_learnt_from_histories() -> None:
    made = composed(HISTORY, prior={"width": 32, "depth": 2})
    assert taught(made, lesson_of_history, steps=400, lr=3e-3) < 0.03  # of a variance of about 0.5


def test_actions_are_learnt_from_conditions() -> None:
    assert taught(composed(DIRECT), lesson_of_policy, steps=400, lr=5e-3) < 0.03  # of a variance of 0.5


def gpt(**options: Any) -> GPTPrior:
    """A small GPT over points of three codes, with moved weights."""

    class Embedding(nn.Module):
        width = 4

        def forward(self, cond: Cond) -> Tensor:
            return cond.state.unsqueeze(1)

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}
    made = GPTPrior(ScaleSchedule((1,) * 12), 6, None, Embedding(), 3, 2, **{**sizes, **options})
    return tiny.shake(made).eval()


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("timesteps", [0, 9])
@torch.no_grad()
def test_codes_of_several_types_step_by_step(prefix: bool, timesteps: int) -> None:
    made, cond, codes = gpt(prefix=prefix, timesteps=timesteps), tiny.cond(), torch.randn(6, 12, 6)
    forced = made.logits(codes[:, :-1], cond)
    state = made.start(cond)
    drawn = [made.step(codes[:, k - 1 : k] if k else None, k, state) for k in range(5)]
    order = torch.tensor([2, 2, 0])
    chosen = state.rows(order)
    torch.testing.assert_close(torch.cat(drawn, dim=1), forced[:, :5], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.step(codes[order, 4:5], 5, chosen), forced[order, 5:6], atol=1e-5, rtol=1e-5)
    assert forced[:, 0].any() == prefix
    given, predicted = made(codes, codes[:, :-1], cond)
    torch.testing.assert_close(predicted, forced)
    torch.testing.assert_close(given, (forced - codes)[:, 0 if prefix else 1 :].square().mean())


@torch.no_grad()
def test_steps_beyond_the_table_share_its_last_entry() -> None:
    made, cond, inputs = gpt(timesteps=9), tiny.cond(), torch.randn(6, 11, 6)

    def at(step: int) -> Tensor:
        return made.logits(inputs, replace(cond, time=torch.full((6,), step)))

    assert torch.equal(at(9), at(100)) and torch.equal(at(0), made.logits(inputs, replace(cond, time=None)))
    # Points are two steps apart: from step 7 on only the first is not at the table's end.
    assert not torch.allclose(at(7), at(8)) and not torch.allclose(at(0), at(1))
    steps = made.time_embed.weight.clone() if made.time_embed is not None else torch.empty(0)
    made.time_embed.weight[1::2] += 1
    moved = at(0)
    made.time_embed.weight.copy_(steps)
    assert torch.equal(moved, at(0))  # points at even steps read even entries
