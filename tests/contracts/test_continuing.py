"""Histories that plans continue: Decision Diffuser and its guidance (arXiv 2211.15657), Trajectory Transformer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.sources import source_of
from trajgen.core.types import Batch
from trajgen.nn.diffusion import noise_levels
from trajgen.policies.history import History
from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy
from trajgen.samplers.autoregressive import guided

PAST = 3


@pytest.fixture(scope="module")
def planner() -> Any:
    return tiny.shake(
        tiny.planner(
            view={"fields": ("state",)},
            tokenizer="identity",
            schedule="single",
            prior="diffusion",
            decoder="identity",
            action="state",
            sampler={"name": "diffusion", "guidance": 0.2},
            conditioner={"fields": ("return", "goal")},
            planner={"name": "continuing", "past": PAST},
        )
    ).eval()


def test_a_window_is_known_up_to_the_current_point_from_where_the_episode_began(planner: Any) -> None:
    batch = tiny.batch(200)
    cond = planner.condition(batch)
    assert torch.equal(cond.state, batch.states[:, PAST - 1]) and torch.equal(cond.returns, batch.returns[:, PAST - 1])
    assert batch.time is not None and torch.equal(cond.time, batch.time + (PAST - 1) * tiny.STRIDE)
    known_codes = planner.tokenizer.known_codes(cond)
    assert torch.equal(known_codes.codes[:, :PAST], batch.states[:, :PAST])
    is_known = known_codes.mask.all(-1)
    assert not is_known[:, PAST:].any() and is_known[:, PAST - 1].all()
    lengths = is_known.sum(1)
    assert lengths.unique().tolist() == [1, 2, 3]
    assert torch.equal(is_known[:, :PAST], torch.arange(PAST) >= PAST - lengths.unsqueeze(1))


def test_the_prior_learns_ways_to_goals_ahead_of_the_current_point(planner: Any) -> None:
    class Source(tiny.RandomSource):
        past = 0

        def with_past(self, steps: int) -> Source:
            source = Source()
            source.past = steps
            return source

    past_steps = {stage.name: getattr(source_of(stage, Source()), "past", 0) for stage in planner.stages()}
    assert past_steps.pop("prior") == (PAST - 1) * tiny.STRIDE
    assert not any(past_steps.values())  # a return target is asked at the first point of an episode too


@torch.no_grad()
def test_a_plan_continues_what_the_policy_recorded(planner: Any) -> None:
    """A point of the history is a stride from the next; before the episode's first one nothing is known."""
    history = History(2, planner.history, 4, 2)
    states = torch.randn(5, 2, 4)  # the fifth is the current one, the second a stride before it
    for step, state in enumerate(states):
        history.push(state, torch.tensor([step, step]))
    cond = replace(tiny.cond(2), state=states[-1], past=history.past())
    known_codes = planner.tokenizer.known_codes(replace(cond, past=planner._past(cond)))
    assert known_codes.mask.all(-1)[0].tolist() == [False, True, True] + [False] * (tiny.HORIZON - PAST)
    plan = planner.plan(cond, torch.Generator().manual_seed(0))
    assert torch.equal(plan.codes[:, 1], states[4 - tiny.STRIDE]) and torch.equal(plan.codes[:, 2], states[-1])
    assert torch.equal(plan.trajectory[:, : 1 - PAST], plan.codes[:, PAST - 1 :])
    assert torch.equal(plan.trajectory[:, -PAST:], plan.codes[:, -1:].expand(-1, PAST, -1))
    assert torch.equal(plan.trajectory[:, 0], cond.state)  # a plan goes on from here
    residuals = planner.condition_residuals(plan.trajectory, cond)
    assert float(residuals["state"].abs().max()) == 0
    action = planner.action(plan, cond.state.unsqueeze(1), torch.zeros(2, 1, dtype=torch.long))
    changed = replace(plan, trajectory=plan.trajectory.clone())
    changed.trajectory[:, 1] += 1
    assert not torch.equal(action, planner.action(changed, cond.state.unsqueeze(1), torch.zeros(2, 1).long()))


@torch.no_grad()
def test_another_plan_is_compared_from_the_present_on(planner: Any) -> None:
    """The control of the condition error: where the window of another plan has the present state, not its past."""
    acting = RecedingHorizonPolicy(planner, planner.normalizer, tiny.SPACE, PolicyOptions(), discount=1.0, chunk=4)
    cond = tiny.cond(6)
    other = planner.plan(replace(cond, state=cond.state.roll(1, 0)))
    errors = acting.condition_error(cond, planner.plan(cond), other)
    assert errors["state"] == 0
    expected = (cond.state.roll(1, 0) - cond.state).square().mean().sqrt()
    assert errors["state_other_latent"] == pytest.approx(float(expected), abs=1e-5)


@torch.no_grad()
def test_without_a_history_the_current_state_alone_is_known(planner: Any) -> None:
    cond = tiny.cond(4)
    assert cond.past is None
    known_codes = planner.tokenizer.known_codes(replace(cond, past=planner._past(cond)))
    assert known_codes.mask.all(-1)[0].tolist() == [False, False, True] + [False] * (tiny.HORIZON - PAST)
    assert torch.equal(planner.plan(cond).trajectory[:, 0], cond.state)


def test_guidance_is_that_of_the_paper_in_noise(planner: Any) -> None:
    """ε̂ = ε(x, ∅) + ω (ε(x, y) - ε(x, ∅)) (section 3.2), where ω is 1 + sampler.guidance: x̂_0 is affine in ε."""
    x, conditional, unconditional = torch.randn(3, 5, tiny.HORIZON, 4).unbind(0)
    t = 4
    signal = noise_levels(planner.prior.timesteps, planner.prior.beta_schedule).alphas_cumprod[t]

    def noise(clean: Tensor) -> Tensor:
        return (x - signal.sqrt() * clean) / (1 - signal).sqrt()

    mask = tiny.cond(5).cfg_batch().cond_mask
    assert mask is not None and mask.tolist() == [True] * 5 + [False] * 5
    prediction = guided(torch.cat([conditional, unconditional]), planner.sampler.guidance)
    expected = noise(unconditional) + 1.2 * (noise(conditional) - noise(unconditional))
    torch.testing.assert_close(noise(prediction), expected)


def test_a_history_learns(planner: Any) -> None:
    batch: Batch = tiny.batch(8)
    losses = planner.prior_loss(batch)
    assert all(loss.isfinite() for loss in losses.values())
    losses["total"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in planner.action.parameters())


def test_a_target_return_is_not_set_at_a_past_point() -> None:
    with pytest.raises(ConfigError, match="states alone are inpainted"):
        tiny.planner(
            view={"fields": ("return", "state")},
            tokenizer={"name": "identity", "inpaint": ("state", "return")},
            schedule="single",
            prior="diffusion",
            decoder="identity",
            action="state",
            sampler="diffusion",
            planner={"name": "continuing", "past": PAST},
        )


@pytest.fixture(scope="module")
def transformer() -> Any:
    """Trajectory Transformer: the past as token ids (arXiv 2106.02039)."""
    fields = ("state", "action", "reward", "return")
    return tiny.shake(
        tiny.planner(
            view={"fields": fields},
            tokenizer={"name": "bins", "inpaint": ("state",)},
            schedule="unit",
            prior="transformer",
            decoder="identity",
            action="plan",
            sampler={"name": "beam", "branch_fields": ("action",)},
            conditioner={"fields": ("state", "goal")},
            planner={"name": "continuing", "past": PAST},
        )
    ).eval()


def decoded(planner: Any, codes: Tensor) -> dict[str, Tensor]:
    """The fields (B, T, n) that token ids stand for."""
    x = planner.tokenizer.points(planner.tokenizer.vectors(codes))
    return {name: planner.view.read(x, name) for name in planner.view.slices}


def in_bins(planner: Any, **values: Tensor) -> dict[str, Tensor]:
    """Fields (B, T, n) as they are after tokenization; those that are not given are zeros."""
    shapes = {name: field.stop - field.start for name, field in planner.view.slices.items()}
    size = next(iter(values.values())).shape[:2]
    x = torch.cat([values.get(name, torch.zeros(*size, n)) for name, n in shapes.items()], dim=-1)
    padded = torch.cat([x, x[:, -1:].expand(-1, tiny.HORIZON - x.shape[1], -1)], dim=1)
    return {name: v[:, : size[1]] for name, v in decoded(planner, planner.tokenizer.codes(padded)).items()}


@torch.no_grad()
def test_a_plan_of_tokens_begins_with_what_was_lived_and_done(transformer: Any) -> None:
    """Between two points lie three steps, with their actions and the sum of their rewards; before the first nothing."""
    planner, reward = transformer, transformer.normalizer.reward
    reward.mean.fill_(0.1)
    reward.scale.fill_(0.7)
    steps, now = planner.history, planner.past - 1
    history = History(2, steps, 4, 2)
    states, actions, rewards = torch.randn(steps, 2, 4), torch.randn(steps, 2, 2), torch.randn(steps, 2) / 3
    for step in range(steps):  # the second episode begins in between, a stride before the present
        second = step - tiny.STRIDE if step >= tiny.STRIDE else step
        history.push(states[step], torch.tensor([step, second]))
        if step < steps - 1:
            history.record_action(actions[step])
            history.record_reward(reward(rewards[step]))
    cond = replace(tiny.cond(2), state=states[-1], past=history.past())
    plan = planner.plan(cond, torch.Generator().manual_seed(0))
    fields = decoded(planner, plan.codes)
    of_first = {
        "state": states[:: tiny.STRIDE, 0],
        "action": actions[:-1, 0].reshape(now, -1),
        "reward": reward(rewards[:-1, 0].reshape(now, tiny.STRIDE).sum(1, keepdim=True)),
    }
    of_second = {
        "state": torch.stack([states[tiny.STRIDE, 1], states[tiny.STRIDE, 1], states[-1, 1]]),
        "action": torch.cat([torch.zeros(1, 6), actions[tiny.STRIDE : -1, 1].reshape(1, -1)]),
        "reward": torch.cat([torch.zeros(1, 1), reward(rewards[tiny.STRIDE : -1, 1].sum().reshape(1, 1))]),
    }
    for row, values in enumerate((of_first, of_second)):
        for name in ("action", "reward", "return"):
            expected = in_bins(
                planner, **{name: values[name].unsqueeze(0)} if name in values else {"return": torch.zeros(1, now, 1)}
            )
            torch.testing.assert_close(fields[name][row, :now], expected[name][0])
        expected = in_bins(planner, state=values["state"].unsqueeze(0))
        torch.testing.assert_close(fields["state"][row, : planner.past], expected["state"][0])
    assert torch.equal(plan.trajectory[:, : 1 - PAST], torch.cat(list(fields.values()), -1)[:, now:])
    other = replace(cond, past=replace(cond.past, actions=-cond.past.actions))
    assert not torch.equal(planner.plan(other, torch.Generator().manual_seed(0)).codes[:, -20:], plan.codes[:, -20:])


def test_every_code_of_the_past_is_known_and_none_of_the_plan(transformer: Any) -> None:
    cond = replace(tiny.cond(4), past=transformer._past(tiny.cond(4)))
    known_codes = transformer.tokenizer.known_codes(cond)
    period = transformer.tokenizer.period
    expected = [True] * ((PAST - 1) * period + 4) + [False] * ((tiny.HORIZON - PAST + 1) * period - 4)
    assert list(known_codes.tokens) == expected and known_codes.mask.tolist() == [expected] * 4


def test_training_sees_episodes_that_began_a_while_ago(transformer: Any) -> None:
    """A window's first points repeat the state in which its episode began; from the present on it is as it was."""
    batch, now = tiny.batch(200), PAST - 1
    shortened = transformer._with_late_start(batch)
    for name in ("actions", "rewards", "returns"):
        assert torch.equal(getattr(shortened, name)[:, now:], getattr(batch, name)[:, now:])
    assert torch.equal(shortened.states[:, now:], batch.states[:, now:]) and not shortened.returns[:, :now].any()
    missing = (shortened.states != batch.states).any(-1)[:, :now].sum(1)
    assert missing.unique().tolist() == [0, 1, 2]
    for row, count in enumerate(missing.tolist()):
        assert torch.equal(shortened.states[row, :count], batch.states[row, count].expand(count, -1))
        assert not shortened.actions[row, :count].any() and not shortened.rewards[row, :count].any()
        assert torch.equal(shortened.actions[row, count:], batch.actions[row, count:])
        assert torch.equal(shortened.rewards[row, count:], batch.rewards[row, count:])
    past_returns = torch.cat([batch.returns[:, :now] + 1, batch.returns[:, now:]], dim=1)
    losses = []
    for windows in (batch, replace(batch, returns=past_returns)):
        torch.manual_seed(0)
        losses.append(transformer.prior_loss(windows)["total"])
    assert torch.equal(*losses) and losses[0].requires_grad


def test_an_action_head_learns_from_the_windows_as_they_are() -> None:
    parts: dict[str, Any] = {"schedule": "unit", "prior": "transformer", "decoder": "identity", "action": "state"}
    bins, continuing = {"name": "bins", "inpaint": ("state",)}, {"name": "continuing", "past": PAST}
    planner = tiny.planner(view={"fields": ("state",)}, tokenizer=bins, sampler="greedy", planner=continuing, **parts)
    batch = tiny.batch()
    torch.testing.assert_close(planner.prior_loss(batch)["inverse"], planner.action_loss(batch)["inverse"])


def test_a_plan_is_followed_to_its_end_and_no_further(planner: Any) -> None:
    ahead = (tiny.HORIZON - PAST) * tiny.STRIDE
    assert PolicyOptions(replan_interval="plan").steps(planner, tiny.CHUNK) == ahead
    parts: dict[str, Any] = {"schedule": "unit", "tokenizer": "identity", "prior": "transformer", "decoder": "identity"}
    parts |= {"view": {"fields": ("state", "action")}, "action": "plan", "sampler": "greedy"}
    tiny.planner(planner={"name": "continuing", "past": tiny.HORIZON - 1}, **parts)  # two points of three steps
    with pytest.raises(ConfigError, match="The chunk is longer than a plan") as refusal:
        tiny.planner(planner={"name": "continuing", "past": tiny.HORIZON}, **parts)
    assert refusal.value.fix == f"data.horizon={tiny.HORIZON + 1}"


@torch.no_grad()
def test_plans_are_worth_nothing_yet_before_their_first_point_is_drawn(
    transformer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, cond = transformer.sampler, replace(tiny.cond(4), past=transformer._past(tiny.cond(4)))
    points, score = [], search.score
    monkeypatch.setattr(search, "score", lambda x, cond, count: points.append(count) or score(x, cond, count))
    monkeypatch.setattr(search, "select_every", 5)  # a point has 12 tokens
    search(transformer.prior, transformer.tokenizer, cond, None, transformer.tokenizer.known_codes(cond))
    assert min(points) == PAST and max(points) == tiny.HORIZON


def test_with_the_present_alone_a_plan_is_that_of_the_latent_planner() -> None:
    parts: dict[str, Any] = {
        "view": {"fields": ("state", "action", "return")},
        "tokenizer": {"name": "bins", "inpaint": ("state",)},
        "conditioner": {"fields": ("state", "goal")},
        "sampler": {"name": "beam", "branch_fields": ("action",), "beam_width": 2},
    }
    parts |= {"schedule": "unit", "prior": "transformer", "decoder": "identity", "action": "plan"}
    weights = {"condition_weight": 0.0, "end_to_end": False}
    continuing = tiny.shake(tiny.planner(planner={"name": "continuing", "past": 1}, **parts)).eval()
    latent = tiny.shake(tiny.planner(planner={"name": "latent", **weights}, **parts)).eval()
    history = History(4, continuing.history, 4, 2)
    cond = tiny.cond(4)
    history.push(cond.state, torch.zeros(4, dtype=torch.long))
    plans = [
        planner.plan(cond, torch.Generator().manual_seed(0)).codes
        for planner, cond in ((latent, cond), (continuing, cond), (continuing, replace(cond, past=history.past())))
    ]
    assert torch.equal(plans[0], plans[1]) and torch.equal(plans[0], plans[2])
    losses = [planner.prior_loss(tiny.batch(8))["total"] for planner in (latent, continuing)]
    assert torch.equal(*losses)
