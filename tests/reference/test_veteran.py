"""Diffusion Veteran (arXiv 2503.00535): the critic of whole plans, and the choice among denoised ones by its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from trajgen.assemble import assemble
from trajgen.config import compose
from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Batch, Cond, Space
from trajgen.critics.plans import HorizonCritic
from trajgen.data.episodes import Episode, Episodes
from trajgen.data.options import DataOptions
from trajgen.data.windows import Windows
from trajgen.samplers.diffusion import DiffusionSampler

STATE, GOAL, POINTS, WIDTH, HEADS, STRIDES = 2, 1, 4, 8, 2, (2, 5)
Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = Mapping[str, Array]


def features(x: Array) -> Array:
    """Values, their sines and their cosines at a quarter of a cycle per unit: one frequency."""
    return np.concatenate([x, np.sin(np.pi / 2 * x), np.cos(np.pi / 2 * x)], axis=-1)


def linear(x: Array, weights: Weights, name: str) -> Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(x: Array, weights: Weights, name: str) -> Array:
    deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return (x - x.mean(-1, keepdims=True)) / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(x: Array, weights: Weights, name: str) -> Array:
    """Each point attends to all points of the plan, those before it and those after it."""
    q, k, v = np.split(x @ weights[f"{name}.in_proj_weight"].T + weights[f"{name}.in_proj_bias"], 3, axis=-1)
    heads = []
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        shares = np.exp(q[:, part] @ k[:, part].T / np.sqrt(WIDTH / HEADS))
        heads.append(shares / shares.sum(-1, keepdims=True) @ v[:, part])
    return linear(np.concatenate(heads, axis=-1), weights, f"{name}.out_proj")


def score(weights: Weights, states: Array, goal: Array, stride: int) -> float:
    """The normalized return of a plan of states (T, S)."""
    x = linear(features(states), weights, "state_proj") + weights["pos_embed"][: len(states)]
    hidden = linear(features(goal), weights, "goal_proj.0")
    x = x + linear(hidden / (1 + np.exp(-hidden)), weights, "goal_proj.2")
    x = x + weights["stride_embed.weight"][STRIDES.index(stride)]
    layer = "layers.layers.0"
    x = x + attention(norm(x, weights, f"{layer}.norm1"), weights, f"{layer}.self_attn")
    hidden = np.maximum(linear(norm(x, weights, f"{layer}.norm2"), weights, f"{layer}.linear1"), 0)
    x = x + linear(hidden, weights, f"{layer}.linear2")
    return float(linear(norm(x, weights, "layers.norm").mean(0), weights, "out")[0])


@pytest.mark.parametrize("points", [POINTS, 2])
@torch.no_grad()
def test_the_score_of_a_plan_in_numpy(points: int) -> None:
    """Of whole plans, and of plans with fewer points, which come after a history."""
    critic: Any = HorizonCritic(STATE, GOAL, POINTS, STRIDES, width=WIDTH, depth=1, heads=HEADS, fourier_frequencies=1)
    tiny.shake(critic, 0.5).eval()
    weights = {name: values.double().numpy() for name, values in critic.state_dict().items()}
    states, goals, strides = torch.randn(3, points, STATE), torch.randn(3, GOAL), [5, 2, 5]
    cond = Cond(states[:, 0], torch.zeros(3), goals, stride=torch.tensor(strides))
    plans = zip(states.double().numpy(), goals.double().numpy(), strides, strict=True)
    expected = [score(weights, *plan) for plan in plans]
    assert np.std(expected) > 0.01
    assert critic({"state": states}, cond).tolist() == pytest.approx(expected, abs=1e-5)


REWARDS = ([1.0, 0.0, 4.0, -2.0, 8.0], [3.0, 5.0])
ENDS = (False, True)
"""The first episode ends by a timeout, the second because its task is over."""
DISCOUNT, STRIDE, MEAN, SCALE = 0.5, 2, 1.5, 4.0


def windows() -> Batch:
    """Many windows of two episodes, whose states are (episode, step), past the ends as well."""
    raw = []
    for number, rewards in enumerate(REWARDS):
        count = len(rewards)
        states = np.stack([np.full(count + 1, number), np.arange(count + 1)], 1)
        raw.append(Episode(states, np.zeros((count, 1)), np.array(rewards), ENDS[number]))
    episodes = Episodes.collect(raw, name="two", space=Space(STATE, 1, 0, "s"))
    options = DataOptions(id="two-v0", horizon=3, stride=STRIDE, chunk=1, discount=DISCOUNT, max_padding=0.5)
    normalizer = Normalizer(STATE, 1)
    normalizer.returns.mean.fill_(MEAN)
    normalizer.returns.scale.fill_(SCALE)
    return Windows(episodes, options, normalizer).batch(0, 40)


@torch.no_grad()
def test_the_loss_is_that_of_the_discounted_rewards_from_the_first_point_to_the_end_of_the_episode() -> None:
    """Not of the window's alone. Points past an end are the last state, and no error is left out for them."""
    batch = windows()
    assert batch.time is not None
    starts = [(int(number), int(step)) for number, step in zip(batch.states[:, 0, 0], batch.time, strict=True)]
    assert {*starts} == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)}
    assert batch.mask.all(1).any() and not batch.mask.all()
    critic = tiny.shake(HorizonCritic(STATE, 0, 3, (STRIDE,), width=WIDTH, depth=1, heads=HEADS)).eval()
    errors = []
    for number, step in starts:
        rewards = REWARDS[number]
        steps = [min(step + ahead, len(rewards)) for ahead in (0, STRIDE, 2 * STRIDE)]
        states = torch.tensor([[[float(number), float(each)] for each in steps]])
        total = sum(DISCOUNT**ahead * reward for ahead, reward in enumerate(rewards[step:]))
        predicted = float(critic({"state": states}, Cond(states[:, 0], torch.full((1,), torch.nan))))
        errors.append((predicted - (total - MEAN) / SCALE) ** 2)
    losses = critic.loss(batch)
    assert [*losses] == ["horizon"] and float(losses["horizon"]) == pytest.approx(np.mean(errors), rel=1e-5)


N, PLANS, STEPS, SEED = 4, 6, 5, 7


def planner() -> Any:
    """The recipe at a small size, with N candidates."""
    nodes = tiny.shrunk(compose(["recipe=dv"]).components)
    nodes["sampler"] |= {"n": N, "steps": STEPS}
    torch.manual_seed(0)
    return tiny.shake(assemble(nodes, tiny.SPACE, tiny.WINDOW)).eval()


@torch.no_grad()
def test_of_n_denoised_plans_the_one_with_the_highest_score_is_returned_as_it_was_drawn() -> None:
    model, cond = planner(), tiny.cond(PLANS)
    plan = model.plan(cond, torch.Generator().manual_seed(SEED))
    rows = [row for row in range(PLANS) for _ in range(N)]
    repeated = cond.map(lambda values: values[rows])
    sampler = DiffusionSampler(model.prior, None, steps=STEPS, temperature=0.5)
    first_states = model.tokenizer.known_codes(repeated)
    drawn = sampler(model.prior, model.tokenizer, repeated, torch.Generator().manual_seed(SEED), first_states)
    candidates = drawn.codes.unflatten(0, (PLANS, N))  # of continuous codes that are the states themselves
    assert torch.equal(candidates[:, :, 0], cond.state.unsqueeze(1).expand(-1, N, -1))
    chosen = []
    for row in range(PLANS):
        one = cond.map(lambda values, row=row: values[row : row + 1])
        scores = [float(model.critic({"state": states.unsqueeze(0)}, one)) for states in candidates[row]]
        *_, second, best = sorted(scores)
        assert best - second > 1e-4  # beyond rounding errors
        chosen.append(scores.index(best))
        assert float(plan.worth[row]) == pytest.approx(best, abs=1e-5)
    assert len({*chosen}) > 1  # not the first of all
    expected = candidates[range(PLANS), chosen]
    assert torch.equal(plan.codes, expected) and torch.equal(plan.latent, expected)
    assert torch.equal(plan.trajectory, expected)
