"""Parts are built when they are required, once; what is missing, left over or circular is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import tiny
from torch import nn

from trajgen.assemble import assemble
from trajgen.core import registry
from trajgen.core.errors import ConfigError


@pytest.fixture(autouse=True)
def forget_components() -> Iterator[None]:
    """What a test registers is forgotten afterwards."""
    yield
    for key in [key for key, (spec, _) in registry._registered.items() if spec.module == __name__]:
        del registry._registered[key]


def assembled(nodes: dict[str, Any]) -> Any:
    return assemble(nodes, tiny.SPACE, tiny.WINDOW)


def test_each_part_is_built_once() -> None:
    built = []

    @registry.register("planner", "curious")
    class Curious(nn.Module):
        """Requires the same parts twice over."""

        def __init__(self, prior: Any, conditioner: Any, tokenizer: Any, code_dim: int) -> None:
            super().__init__()
            assert prior.conditioner is conditioner and tokenizer.code_dim == code_dim
            built.append(prior)

    nodes = {k: v for k, v in tiny.nodes().items() if k in ("view", "schedule", "tokenizer", "conditioner", "prior")}
    assembled({**nodes, "planner": {"name": "curious"}})
    assert len(built) == 1


def test_the_normalizer_belongs_to_the_whole() -> None:
    planner = assembled(tiny.nodes())
    assert any(name.startswith("normalizer.state") for name in planner.state_dict())


@pytest.mark.parametrize("kind", ["tokenizer", "schedule", "conditioner", "prior", "view"])
def test_a_part_that_is_asked_for_and_missing_is_named(kind: str) -> None:
    nodes = tiny.nodes()
    del nodes[kind]
    with pytest.raises(ConfigError, match="does not have") as caught:
        assembled(nodes)
    tiny.check_cure(caught.value)
    assert f"{kind}=" in str(caught.value.fix)


def test_parts_that_nothing_asks_for_are_refused() -> None:
    nodes = {k: tiny.nodes()[k] for k in ("conditioner", "return_target", "sampler", "decoder")}
    nodes |= {"action": tiny.node("action", "latent"), "planner": {"name": "direct"}}
    with pytest.raises(ConfigError, match="uses sampler or decoder") as caught:
        assembled(nodes)
    assert "'~sampler' '~decoder'" in str(caught.value.fix)
    del nodes["sampler"], nodes["decoder"]
    assert assembled(nodes).stages()


def test_guidance_by_what_was_not_learnt_is_refused() -> None:
    for conditioner in ({"dropout": 0.0}, {"fields": ("state",)}):
        with pytest.raises(ConfigError, match=r"conditioner\.dropout=0\.1") as caught:
            tiny.planner(sampler={"name": "greedy", "guidance": 1.0}, conditioner=conditioner)
        tiny.check_cure(caught.value)
    tiny.planner(sampler={"name": "greedy", "guidance": 1.0}, conditioner={"dropout": 0.1})


def test_parts_that_ask_for_each_other_are_refused() -> None:
    @registry.register("conditioner", "of_the_prior")
    def circle(prior: Any) -> None:
        """Requires the prior, which requires it."""

    with pytest.raises(ConfigError, match="circle") as caught:
        assembled({**tiny.nodes(), "conditioner": {"name": "of_the_prior"}})
    assert "prior → conditioner → prior" in str(caught.value.got)


def test_without_a_tokenizer_the_latent_is_the_embedded_condition() -> None:
    nodes = {k: tiny.nodes()[k] for k in ("conditioner", "return_target")}
    nodes |= {"action": tiny.node("action", "latent"), "planner": {"name": "direct"}}
    planner = assembled(nodes)
    assert planner.plan(tiny.cond(2)).latent.shape == (2, 1, nodes["conditioner"]["width"])


@pytest.mark.parametrize("goal_state", [(0,), (0, 1, 2), (0, 4), (0, -1)])
def test_positions_of_other_widths_than_goals_are_refused(goal_state: tuple[int, ...]) -> None:
    """They would be compared with goals all the same, or not be there."""
    window = replace(tiny.WINDOW, goal_state=goal_state)
    with pytest.raises(ConfigError, match=r"data\.goal_state") as refusal:
        assemble(tiny.nodes(sampler="best_of_n", critic="length"), tiny.SPACE, window)
    tiny.check_cure(refusal.value)
    assemble(tiny.nodes(), replace(tiny.SPACE, goal_dim=0), window)  # without goals it is not looked at
