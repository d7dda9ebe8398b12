"""What plans are worth, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Batch, Cond, Losses
from trajgen.critics.plans import PlannedReturn
from trajgen.samplers.scoring import PlanScore
from trajgen.views import FieldView


def value_of(fields: tuple[str, ...], x: Tensor, points: int | None) -> list[float]:
    normalizer = Normalizer(1, 1, power=0.5)
    normalizer.reward.mean.fill_(1.0)
    normalizer.reward.scale.fill_(2.0)
    normalizer.returns.scale.fill_(3.0)
    score = PlanScore(PlannedReturn(normalizer, 0.9, (2,)), FieldView(1, 1, (2,), fields=fields))
    values: list[float] = score(x, Cond(x[:, 0], x[:, 0, 0]), points).tolist()
    return values


def test_the_value_of_plans_by_hand() -> None:
    rewards, returns = [1.0, 2.0, -1.0], [1.0, 4.0, 2.0]  # normalized: r = 2 x + 1, and R = (3 x)²
    r, big = [3.0, 5.0, -1.0], [9.0, 144.0, 36.0]
    discount = 0.9**2  # two environment steps between points
    x = torch.tensor([rewards, returns]).T.unsqueeze(0)  # (1, 3, 2)
    value = r[0] + discount * r[1] + discount**2 * big[2]  # the last point's return counts its own reward
    assert value_of(("reward", "return"), x, None) == pytest.approx([value])
    assert value_of(("reward", "return"), x, 2) == pytest.approx([r[0] + discount * big[1]])
    assert value_of(("reward", "return"), x, 1) == pytest.approx([big[0]])
    assert value_of(("reward",), x[..., :1], None) == pytest.approx([r[0] + discount * r[1] + discount**2 * r[2]])
    assert value_of(("reward",), x[..., :1], 2) == pytest.approx([r[0] + discount * r[1]])
    assert value_of(("return",), x[..., 1:], 3) == pytest.approx([big[0]])


def test_beyond_the_end_of_the_task_nothing_counts() -> None:
    """By hand, with rewards of 3, 5 and -1, and a return of 36 from the last point on; over is what exceeds 0.5."""
    rewards, returns, discount = [1.0, 2.0, -1.0], [1.0, 4.0, 2.0], 0.9**2
    worth = {
        (0.1, 0.5, 0.4): 3.0 + discount * 5.0 + discount**2 * 36.0,
        (0.1, 0.4, 0.6): 3.0 + discount * 5.0,
        (0.1, 0.9, 0.2): 3.0,
        (0.7, 0.0, 0.0): 0.0,
    }
    for terminals, expected in worth.items():
        x = torch.tensor([rewards, returns, terminals]).T.unsqueeze(0)
        assert value_of(("reward", "return", "terminal"), x, None) == pytest.approx([expected])


def test_the_values_of_a_batch_are_those_of_each_plan_alone() -> None:
    x = torch.randn(5, 4, 2)
    alone = [value_of(("reward", "return"), one.unsqueeze(0), 3)[0] for one in x]
    assert value_of(("reward", "return"), x, 3) == pytest.approx(alone, abs=1e-5)


def test_a_plan_that_continues_a_history_is_judged_from_the_present_on() -> None:
    score = PlanScore(PlannedPath(), FieldView(4, 2, (3,), fields=("state",)))
    cond, trajectory = tiny.cond(5), torch.randn(5, 6, 4)
    past = Batch.from_history(trajectory[:, :3], *[torch.zeros(5, 3, n) for n in (0, 1, 1)], torch.zeros(5, 3).long())
    continued = score(trajectory, replace(cond, past=past))
    torch.testing.assert_close(continued, score(trajectory[:, 2:], cond))


class PlannedPath:
    """A critic that tells points apart."""

    reads, transitions = ("state",), None

    def __call__(self, points: Mapping[str, Tensor], cond: Cond) -> Tensor:
        states = points["state"]
        return (states.sum(-1) * torch.arange(1, states.shape[1] + 1)).sum(1)

    def loss(self, batch: Batch) -> Losses:
        return {}

    def after_step(self) -> None:
        pass


def test_a_plan_begins_in_the_present_state_whatever_is_decoded() -> None:
    arguments: list[Tensor] = []

    class Critic:
        reads = ("state", "position")

        def __call__(self, points: dict[str, Tensor], cond: Cond) -> Tensor:
            arguments.extend([points["state"], points["position"]])
            return points["state"].sum((1, 2))

    critic: Any = Critic()
    score = PlanScore(critic, FieldView(4, 2, (3,), (2, 0), fields=("state", "position")))
    cond, trajectory = tiny.cond(5), torch.randn(5, 6, 6)
    moved = trajectory.clone()
    moved[:, 0] += 1
    torch.testing.assert_close(score(trajectory, cond), score(moved, cond))
    assert torch.equal(arguments[0][:, 0], cond.state) and torch.equal(arguments[0][:, 1:], trajectory[:, 1:, :4])
    assert torch.equal(arguments[1][:, 0], cond.state[:, [2, 0]]) and torch.equal(
        arguments[1][:, 1:], trajectory[:, 1:, 4:]
    )
