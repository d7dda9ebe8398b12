"""IQL's extraction of a policy (arXiv 2110.06169, equation 7), computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trajgen.actions.inverse_dynamics import LatentInverseDynamics
from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Batch, Cond, Transitions
from trajgen.critics.values import ExpectileValue
from trajgen.planners.advantage import AdvantagePlanner

VALUE = [0.5, -1.0, 0.0, 2.0]
Q_FIRST, Q_SECOND = [1.0, 9.0, 1.5, 2.5], [3.0, -1.5, 9.0, 2.0]
"""Outputs of the networks in the four states 0, 1, 2 and 3, in deviations of the returns."""
MEAN, SCALE = 7.0, 2.0
"""Of the data's returns: an output o stands for MEAN + SCALE · o."""
BETA, MAX_WEIGHT = 0.5, 3.0
WEIGHT, BIAS = [[0.5], [-1.0], [0.25], [2.0]], [1.0, 0.0, -0.5, 0.1]
"""Of the policy, which is linear: two actions of two numbers."""
ACTIONS = [[[0.0, 1.0], [2.0, 0.0]], [[1.0, 1.0], [-1.0, 3.0]], [[2.0, -2.0], [5.0, 5.0]], [[0.5, -3.0], [1.0, 6.0]]]
REAL = [[True, True], [True, True], [True, False], [True, True]]


class Table(nn.Module):
    """Outputs by the state, the first of the features."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x: Tensor) -> Tensor:
        return self.values[x[..., :1].long()]


class StateAlone(nn.Module):
    """Embeds a condition as its state."""

    width = 1

    def forward(self, cond: Cond) -> Tensor:
        return cond.state.unsqueeze(1)


def planner(**options: float) -> AdvantagePlanner:
    normalizer = Normalizer(1, 2)
    normalizer.returns.mean.fill_(MEAN)
    normalizer.returns.scale.fill_(SCALE)
    critic: Any = ExpectileValue(
        1, 0, 2, 2, (1,), 0.9, None, normalizer, actions=True, expectile=0.9, fourier_frequencies=0
    )
    critic.network = Table(VALUE)
    critic.q_networks = nn.ModuleList([Table([0.0] * 4), Table([0.0] * 4)])  # learnt ones, which are not read
    critic.target = nn.ModuleList([Table(Q_FIRST), Table(Q_SECOND)])
    head = LatentInverseDynamics(1, 1, 2, 2, depth=1)
    with torch.no_grad():
        head.network[0].weight.copy_(torch.tensor(WEIGHT))
        head.network[0].bias.copy_(torch.tensor(BIAS))
    return AdvantagePlanner(StateAlone(), head, critic, nn.Identity(), 1, 1, **options)


def batch() -> Batch:
    states, real = torch.arange(4.0).view(4, 1, 1), torch.tensor(REAL)
    flat = torch.zeros(4, 1)
    actions = torch.tensor(ACTIONS)
    steps = states.expand(4, 2, 1), torch.ones(4, 1, 2), torch.zeros(4, 1, 2).bool(), real, None
    transitions = Transitions(actions, *steps)
    return Batch(
        states=states, actions=torch.zeros(4, 1, 1, 2), rewards=flat, returns=flat, mask=flat == 0,
        chunk_states=states.expand(4, 2, 1), chunk_actions=actions, chunk_mask=real,
        transitions=transitions,
    )  # fmt: skip


def mean_squares() -> Any:
    """Of the errors of the two numbers of each action (4, 2)."""
    predicted = np.array([np.array(WEIGHT)[:, 0] * state + BIAS for state in range(4)]).reshape(4, 2, 2)
    return ((np.array(ACTIONS) - predicted) ** 2).mean(-1)


def test_the_loss_of_the_policy_by_hand() -> None:
    """The mean of - exp(β A) log π(a given s) over real steps, A = min Q'(s, a) - V(s); the third weight is cut at 3.

    Of a π with the variance 1, half of the number of an action's features, log π is minus the mean square but for a
    constant: - Σ error² / (2 · 1).
    """
    advantage = SCALE * (np.minimum(Q_FIRST, Q_SECOND) - np.array(VALUE))
    assert advantage.tolist() == [1.0, -1.0, 3.0, 0.0]
    weights = np.array([np.exp(0.5), np.exp(-0.5), MAX_WEIGHT, 1.0])  # exp(0.5 · 3) is 4.5
    expected = (weights[:, None] * mean_squares())[np.array(REAL)].mean()
    losses = planner(beta=BETA, max_weight=MAX_WEIGHT).policy_loss(batch())
    assert losses["total"].item() == pytest.approx(expected, rel=1e-6)
    assert losses["action"].item() == pytest.approx(expected, rel=1e-6)
    assert losses["weight"].item() == pytest.approx(weights.mean(), rel=1e-6)


def test_without_beta_it_is_behaviour_cloning() -> None:
    expected = mean_squares()[np.array(REAL)].mean()
    assert planner(beta=0.0).policy_loss(batch())["total"].item() == pytest.approx(expected, rel=1e-6)


def test_the_policy_is_trained_and_the_critic_is_not() -> None:
    model = planner(beta=BETA, max_weight=MAX_WEIGHT)
    model.policy_loss(batch())["total"].backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.action.parameters())
    assert all(weight.grad is None for weight in model.critic.parameters())
