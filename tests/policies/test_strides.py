"""Plans at several strides: what is trained and drawn at each, and how one is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.assemble import assemble
from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Batch, Cond, Plan
from trajgen.critics.plans import PlannedReturn
from trajgen.nn.layers import PlanStrides
from trajgen.testing import check

STRIDES = (2, 4, 8)
WINDOW = replace(tiny.WINDOW, stride=STRIDES)


def planner(**swaps: Any) -> Any:
    torch.manual_seed(0)
    built = assemble(tiny.nodes(**{"sampler": "best_of_n", **swaps}), tiny.SPACE, WINDOW)
    return tiny.shake(built).eval()


def batch(size: int = 12) -> Batch:
    strides = torch.tensor(STRIDES)[torch.arange(size) % 3]
    return replace(tiny.batch(size), stride=strides, actions=tiny.batch(size).actions[:, :, :0])


CRITICS = ("return", "value", "temporal_distance", "horizon", "length")
PARTS = [*(("latent_state", critic) for critic in CRITICS), ("latent", "value"), ("state", "value")]


@pytest.mark.parametrize(("head", "critic"), PARTS)
def test_all_stages_train_and_plans_name_their_stride(head: str, critic: str) -> None:
    built = planner(action=head, critic=critic)
    for stage in built.stages():
        if stage.parameters:
            stage.begin(built)
            total: Tensor = stage.loss(batch(32))["total"]
            total.backward()
            assert total.isfinite()
    plan = built.eval().plan(tiny.cond(9), torch.Generator().manual_seed(0))
    assert plan.stride is not None and set(plan.stride.tolist()) <= set(STRIDES)
    assert built.action(plan, tiny.cond(9).state.unsqueeze(1), torch.zeros(9, 1, dtype=torch.long)).isfinite().all()


def test_candidates_take_turns_at_the_strides_and_the_critic_chooses() -> None:
    built = planner(sampler={"name": "best_of_n", "n": 7})
    drawn: list[Cond] = []
    preferred = 4

    def score(trajectory: Tensor, cond: Cond, points: int | None = None) -> Tensor:
        drawn.append(cond)
        assert cond.stride is not None
        return (cond.stride == preferred).float()

    built.sampler.score = score
    plan = built.plan(tiny.cond(2))
    assert drawn[0].stride is not None and drawn[0].stride.tolist() == 2 * [2, 4, 8, 2, 4, 8, 2]
    assert plan.stride.tolist() == [4, 4]


def test_the_condition_and_the_actions_tell_strides_apart() -> None:
    built, cond = planner(), tiny.cond(1)
    at = {stride: replace(cond, stride=torch.tensor([stride])) for stride in STRIDES}
    embedded = torch.cat([built.prior.conditioner(at[stride]) for stride in STRIDES])
    assert (embedded[0] - embedded[1]).abs().max() > 1e-3 < (embedded[1] - embedded[2]).abs().max()
    for head in ("latent", "latent_state", "state"):
        built = planner(action=head)
        latent = built.tokenizer.layout.latent(built.tokenizer.vectors(torch.zeros(1, 8, dtype=torch.long)))
        plans = [Plan(torch.zeros(1, 8), latent, torch.zeros(1, 16, 5), stride=at[s].stride) for s in STRIDES]
        first = torch.zeros(1, 1, dtype=torch.long)
        actions = torch.cat([built.action(plan, cond.state.unsqueeze(1), first) for plan in plans])
        assert (actions[0] - actions[1]).abs().max() > 1e-4 < (actions[1] - actions[2]).abs().max()


def test_the_next_point_of_a_plan_is_a_stride_away() -> None:
    head = planner(action="state").action
    points = torch.arange(16.0).view(1, 16, 1).expand(1, 16, 5)
    next_points: list[Tensor] = []
    head.next_proj.register_forward_hook(lambda _, inputs, out: next_points.append(inputs[0][0, :, 0]))
    states = torch.zeros(1, 4, 4)
    for stride in STRIDES:
        plan = Plan(torch.zeros(1, 8), torch.zeros(1, 4, 6), points, stride=torch.tensor([stride]))
        head(plan, states, torch.tensor([[0, 3, 4, 9]]))
    assert [row.tolist() for row in next_points] == [[1, 2, 3, 5], [1, 1, 2, 3], [1, 1, 1, 2]]


def test_values_are_compared_over_the_time_that_all_strides_cover() -> None:
    values = torch.tensor([[0.0, 1, 2, 3, 4]]).expand(3, -1)  # of five points: 8 steps at the smallest stride
    means = PlanStrides(STRIDES).mean(values, torch.tensor(STRIDES))
    assert means.tolist() == [2.0, 1.0, 0.5]
    assert PlanStrides((4,)).mean(values, None).tolist() == [2.0, 2.0, 2.0]


def test_gains_beyond_what_a_stride_can_bring_count_against_a_plan() -> None:
    critic = planner(critic="value").critic
    critic.jump_weight, critic.discount = 1.0, 0.5**0.25
    critic.value = lambda states, goals: states[..., 0]
    states = torch.tensor([1.0, 4.0]).view(1, 2, 1).expand(3, -1, 4)  # fourfold: what 8 steps bring, and no fewer
    cond = replace(tiny.cond(3), stride=torch.tensor(STRIDES))
    # Of two points, the smallest stride alone covers both; its gain is 4 · 0.5^(2 / 4) - 1.
    torch.testing.assert_close(critic({"state": states}, cond), torch.tensor([2.5 - (4 * 0.5**0.5 - 1), 1.0, 1.0]))
    states = torch.tensor([[1.0, 1, 1, 4, 1], [1, 1, 4, 1, 1], [1, 4, 1, 1, 1]]).unsqueeze(-1).expand(-1, -1, 4)
    # Within 8 steps the second plan gains 4 · 0.5^(4 / 4) - 1 in the last of two parts, the third nothing in its one.
    expected = [8 / 5 - (4 * 0.5**0.5 - 1) / 4, 2.0 - 1.0 / 2, 5 / 2 - 0.0]
    torch.testing.assert_close(critic({"state": states}, cond), torch.tensor(expected))


@pytest.mark.parametrize("fields", [("reward",), ("reward", "return")])
def test_rewards_count_alike_at_every_stride(fields: tuple[str, ...]) -> None:
    """A reward of 1 a step is worth 1 / (1 - γ), or what the 16 steps bring that all plans cover."""
    discount, strides = 0.9, torch.tensor(STRIDES)
    critic = PlannedReturn(Normalizer(4, 2, 2), discount, STRIDES)
    rewards = strides.float().view(3, 1, 1).expand(3, 8, 1)
    points = {"reward": rewards, "return": torch.full((3, 8, 1), 1 / (1 - discount))}
    scores = critic({name: points[name] for name in fields}, replace(tiny.cond(3), stride=strides))
    expected = 1 / (1 - discount) if "return" in fields else (1 - discount**16) / (1 - discount)
    torch.testing.assert_close(scores, torch.full((3,), expected))


@pytest.mark.parametrize(("kind", "name"), [("action", "latent_state"), ("action", "state"), ("critic", "value")])
def test_contracts_hold_at_several_strides(kind: str, name: str) -> None:
    report = check(kind, name, "mage_critic", {"data": {"stride": [2, 4]}})
    assert not report.failed, report


REFUSED = [
    ({"sampler": "temperature"}, "sampler=best_of_n"),
    ({"sampler": "beam"}, "sampler=best_of_n"),
    ({"sampler": {"name": "best_of_n", "n": 2}}, r"sampler\.n=3"),
    ({"view": {"fields": ("return", "state", "action")}}, r"data\.stride=2"),
    ({"planner": "hierarchy"}, r"data\.stride=2"),
]


@pytest.mark.parametrize(("swaps", "advice"), REFUSED)
def test_what_cannot_tell_strides_apart_is_refused(swaps: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigError, match=advice) as caught:
        planner(**swaps)
    tiny.check_cure(caught.value)
