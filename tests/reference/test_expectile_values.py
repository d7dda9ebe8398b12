"""Values and distances against cases computed by hand, and on chains whose optimal values are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Batch, Transitions
from trajgen.critics.distance import TemporalDistance
from trajgen.critics.values import ExpectileValue, chunk_target, expectile_weight
from trajgen.nn.target import follow, target_of

CHAIN, DISCOUNT = 6, 0.8


def test_the_expectile_loss_by_hand() -> None:
    """τ = 0.9: errors 2 and -3 cost 0.9 · 4 and 0.1 · 9 (IQL, section 4.1)."""
    errors = torch.tensor([2.0, -3.0])
    assert (expectile_weight(errors, 0.9) * errors.square()).tolist() == pytest.approx([3.6, 0.9])


def test_the_minimizer_of_the_expectile_loss_is_the_expectile() -> None:
    """Of 0 and 1, the τ-expectile is τ: τ (1 - e) = (1 - τ) e."""
    value, samples = torch.zeros((), requires_grad=True), torch.tensor([0.0, 1.0])
    optimizer = torch.optim.SGD([value], 0.5)
    for _ in range(200):
        optimizer.zero_grad()
        errors = samples - value
        (expectile_weight(errors, 0.8) * errors.square()).mean().backward()
        optimizer.step()
    assert float(value.detach()) == pytest.approx(0.8, abs=1e-3)


def steps(rewards: list[float], terminals: list[bool], real: int) -> Transitions:
    count = len(rewards)
    return Transitions(
        actions=torch.zeros(1, count, 1),
        next_states=torch.zeros(1, count, 1),
        rewards=torch.tensor([[rewards]]),
        terminals=torch.tensor([[terminals]]),
        mask=(torch.arange(count) < real).unsqueeze(0),
        goals=None,
    )


@pytest.mark.parametrize(
    ("terminals", "real", "expected"),
    [
        ([False, False, False], 3, 1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 8),
        ([False, False, False], 2, 1 + 0.5 * 2 + 0.25 * 8),  # a timeout: two steps, and the value after them
        ([False, True, False], 3, 1 + 0.5 * 2),  # the task is over after the second
        ([False, True, False], 1, 1 + 0.5 * 8),  # what lies beyond the timeout is not real
    ],
)
def test_the_target_of_a_chunk_by_hand(terminals: list[bool], real: int, expected: float) -> None:
    transitions = steps([1.0, 2.0, 4.0], terminals, real)
    assert float(chunk_target(transitions, torch.tensor([[8.0]]), 0.5)) == pytest.approx(expected)


def test_a_target_network_follows_and_is_not_trained() -> None:
    network = nn.Linear(1, 1, bias=False)
    target = target_of(network)
    before, moved = float(network.weight.detach()), float(network.weight.detach()) + 1
    with torch.no_grad():
        network.weight.fill_(moved)
    follow(target, network, 0.25)
    assert float(target.weight) == pytest.approx(0.75 * before + 0.25 * moved)
    assert not list(target.parameters()) and [*target.state_dict()] == ["weight"]


class Table(nn.Module):
    """Outputs looked up by the state, which is one-hot, and for Q by the action: -1 or 1."""

    def __init__(self, with_actions: bool) -> None:
        super().__init__()
        self.with_actions = with_actions
        self.values = nn.Parameter(torch.zeros(CHAIN, 2 if with_actions else 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = x[..., :CHAIN] @ self.values
        if not self.with_actions:
            return rows
        return torch.where(x[..., -1:] > 0, rows[..., 1:], rows[..., :1])


def chain_batch() -> Batch:
    """Every step of a chain: left or right by one state; arrival at the last state earns 1, and ends the task."""
    states, actions = (v.flatten() for v in torch.meshgrid(torch.arange(CHAIN - 1), torch.arange(2), indexing="ij"))
    following = (states + 2 * actions - 1).clamp(min=0)
    arrives = following == CHAIN - 1
    one_hot = torch.eye(CHAIN)
    moves = (2.0 * actions - 1)[:, None, None]
    transitions = Transitions(
        actions=moves,
        next_states=one_hot[following].unsqueeze(1),
        rewards=arrives.float()[:, None, None],
        terminals=arrives[:, None, None],
        mask=torch.ones(len(states), 1, dtype=torch.bool),
        goals=None,
    )
    flat = torch.zeros(len(states), 1)
    return Batch(
        states=one_hot[states].unsqueeze(1),
        actions=flat[:, None, None],
        rewards=flat,
        returns=flat,
        mask=flat == 0,
        chunk_states=one_hot[states].unsqueeze(1),
        chunk_actions=moves,
        chunk_mask=flat == 0,
        transitions=transitions,
    )


def trained(actions: bool) -> Any:
    torch.manual_seed(0)
    critic: Any = ExpectileValue(
        CHAIN, 0, 1, 1, (1,), DISCOUNT, None, Normalizer(CHAIN, 1), actions=actions, expectile=0.98, target_rate=0.5,
        fourier_frequencies=0,
    )  # fmt: skip
    critic.network = Table(False)
    if actions:
        critic.q_networks = nn.ModuleList([Table(True), Table(True)])
    critic.target = target_of(critic.q_networks or critic.network)
    optimizer = torch.optim.SGD(critic.parameters(), 2.0)
    batch = chain_batch()
    for _ in range(400):
        optimizer.zero_grad()
        sum(critic.loss(batch).values()).backward()
        optimizer.step()
        critic.after_step()
    return critic


@pytest.mark.parametrize("actions", [False, True])
def test_the_value_of_a_chain_is_the_discount_to_the_power_of_the_distance(actions: bool) -> None:
    """V* of a state d steps before the last is γ^(d - 1): the best of both ways, not their mean."""
    critic = trained(actions)
    values = critic.value(torch.eye(CHAIN)[:-1], None)
    distance = torch.arange(CHAIN - 1, 0, -1)
    torch.testing.assert_close(values.detach(), DISCOUNT ** (distance - 1.0), atol=0.03, rtol=0)
    gained = critic.advantage(chain_batch()).view(-1, 2)  # left, right
    assert (gained[:, 1] > gained[:, 0]).all() and gained[:, 1].abs().max() < 0.03
    lost = (1 - DISCOUNT**2) * DISCOUNT ** (distance[1:] - 1.0)  # a step to the left costs two
    torch.testing.assert_close(-gained[1:, 0], lost, atol=0.05, rtol=0)


def walk(count: int, seed: int) -> Batch:
    """Windows of a walk to the right along a line: states, and goals that a geometric number of steps reaches."""
    draw = torch.Generator().manual_seed(seed)
    states = torch.rand(count, 1, generator=draw) * 4 - 2
    later = torch.empty(count, 1).geometric_(0.1, generator=draw) * 0.1
    flat = torch.zeros(count, 1)
    goals = torch.stack([flat, states + later], dim=1)
    line = flat[:, None]
    transitions = Transitions(line, states.unsqueeze(1), line, line > 0, flat == 0, goals)
    return Batch(
        states=states.unsqueeze(1), actions=flat[:, None, None], rewards=flat, returns=flat, mask=flat == 0,
        chunk_states=states.unsqueeze(1), chunk_actions=flat[:, None], chunk_mask=flat == 0, transitions=transitions,
    )  # fmt: skip


def test_the_contrast_by_hand_and_what_it_learns() -> None:
    """InfoNCE over both axes; a goal is nearer to the states that it follows sooner, and far behind them."""
    torch.manual_seed(0)
    critic = TemporalDistance(1, 1, 0.5, (1,), embed_dim=4, width=32, fourier_frequencies=1)
    batch = walk(5, 0)
    transitions = batch.transitions
    assert transitions is not None and transitions.goals is not None
    states, goals = batch.states[:, 0], transitions.goals[:, 1]
    energy = torch.tensor([[-float(critic.distance(s, g).detach()) for g in goals] for s in states])
    rows = [energy[i, i] - energy[i].logsumexp(0) for i in range(5)]
    columns = [energy[i, i] - energy[:, i].logsumexp(0) for i in range(5)]
    expected = -(sum(rows) + sum(columns)) / 10
    torch.testing.assert_close(critic.loss(batch)["contrast"].detach(), torch.as_tensor(expected))
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for step in range(200):
        optimizer.zero_grad()
        critic.loss(walk(64, step))["contrast"].backward()
        optimizer.step()
    with torch.no_grad():
        distances = critic.distance(torch.tensor([[0.5], [-0.5], [-1.5], [1.9]]), torch.ones(4, 1))
    assert distances[0] < distances[1] < distances[2] and distances[3] > distances[1]  # the walk never goes back


def test_padding_weighs_nothing() -> None:
    critic = ExpectileValue(CHAIN, 0, 1, 1, (1,), DISCOUNT, None, Normalizer(CHAIN, 1))
    batch = chain_batch()
    transitions = batch.transitions
    assert transitions is not None
    real = torch.arange(len(batch)) < 6
    padded = replace(batch, transitions=replace(transitions, mask=real.unsqueeze(1)))
    expected = critic.loss(batch.head(6))["value"]
    torch.testing.assert_close(critic.loss(padded)["value"], expected)
