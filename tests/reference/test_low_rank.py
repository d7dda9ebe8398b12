"""Low-rank adapters against numbers by hand: they start as nothing, they alone learn, and merged they are the same."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import nn

from trajgen.core.types import Plan
from trajgen.experiments.starting import stages_of
from trajgen.nn.low_rank import LowRank, adapter_parameters, add_adapters, merge_adapters, merged_weights
from trajgen.nn.target import follow, target_of
from trajgen.testing.fixture import perturb


def plan(planner: Any) -> Plan:
    plan: Plan = planner.eval().plan(tiny.cond(), torch.Generator().manual_seed(0))
    return plan


def adapted(**swaps: Any) -> Any:
    planner = tiny.ready_planner(**swaps)
    add_adapters(planner.prior, 2)
    add_adapters(planner.action, 2)
    return planner


def test_two_by_two_by_hand() -> None:
    layer = nn.Linear(2, 2, bias=False)
    model = nn.Sequential(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert add_adapters(model, 1) == 1
    up, down = adapter_parameters(model)
    assert up.shape == (2, 1) and down.shape == (1, 2)
    with torch.no_grad():
        up.copy_(torch.tensor([[1.0], [2.0]]))
        down.copy_(torch.tensor([[10.0, 20.0]]))
    assert layer(torch.tensor([1.0, 0.0])).tolist() == [11.0, 23.0]
    assert layer(torch.tensor([0.0, 1.0])).tolist() == [22.0, 44.0]
    assert merged_weights(model.state_dict())["0.weight"].tolist() == [[11.0, 22.0], [23.0, 44.0]]
    merge_adapters(model)
    assert {*model.state_dict()} == {"0.weight"} and layer.weight.tolist() == [[11.0, 22.0], [23.0, 44.0]]


@pytest.mark.parametrize(("width", "inputs", "rank"), [(3, 5, 2), (3, 5, 4), (1, 5, 4)])
def test_the_rank_is_at_most_the_smaller_side(width: int, inputs: int, rank: int) -> None:
    adapter = LowRank(torch.zeros(width, inputs), rank)
    assert adapter.up.shape == (width, min(rank, width)) and adapter.down.shape == (min(rank, width), inputs)


@pytest.mark.parametrize("prior", ["transformer", "gpt", "flow"])
def test_adapters_start_as_nothing(prior: str) -> None:
    swaps: dict[str, Any] = {
        "transformer": {},
        "gpt": {"prior": "gpt", "schedule": "unit"},
        "flow": {"prior": "flow", "schedule": "single", "tokenizer": "identity", "sampler": "euler"},
    }[prior]
    before, after = plan(tiny.ready_planner(**swaps)), plan(adapted(**swaps))
    assert torch.equal(before.latent, after.latent) and torch.equal(before.codes, after.codes)


def test_they_alone_learn_and_merged_they_are_the_same() -> None:
    planner = adapted()
    before = {name: p.clone() for name, p in planner.named_parameters()}
    for stage in stages_of(planner, ["lora"]):
        if stage.parameters:
            stage.begin(planner)
            optimizer = torch.optim.SGD(stage.trained, 0.1)
            for _ in range(2):  # in the first step nothing reaches ``down``, since ``up`` is 0
                optimizer.zero_grad()
                stage.loss(tiny.batch(8))["total"].backward()
                optimizer.step()
    adapters = {id(p) for p in adapter_parameters(planner)}
    moved = {name for name, p in planner.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in planner.named_parameters() if id(p) in adapters} and moved
    perturb(planner)
    unmerged, state = plan(planner), merged_weights(planner.state_dict())
    merge_adapters(planner)
    assert {*planner.state_dict()} == {*tiny.planner().state_dict()} == {*state}
    torch.testing.assert_close(planner.state_dict(), state)
    torch.testing.assert_close(plan(planner).latent, unmerged.latent)


def test_a_target_network_follows_the_adapted_weights() -> None:
    network = nn.Linear(2, 2, bias=False)
    target = target_of(network)
    both = nn.ModuleList([network, target])
    assert add_adapters(both, 1) == 1
    up, down = adapter_parameters(both)
    with torch.no_grad():
        up.fill_(1.0)
        down.fill_(2.0)
    before = target.weight.clone()
    follow(target, network, 0.5)
    torch.testing.assert_close(target.weight, before + 1.0)  # half of the way to W + 1 · 2
