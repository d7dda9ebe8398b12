"""A plan that is captured as a CUDA graph copies nothing from or to the host; here that is watched on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trajgen import experiments
from trajgen.bench.decision import random_conditions
from trajgen.config import compose
from trajgen.core.planning import plan_step
from trajgen.core.types import Plan, Space
from trajgen.policies.history import History

SPACE = Space(
    4, 2, 2, state_key="observation", goal_key="desired_goal", action_low=(-1.0, -1.0), action_high=(1.0, 1.0)
)
READS = (Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__)
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


class NoHost(TorchFunctionMode):
    """Refuses what copies between host and device: reading values, lists as an index, numbers written by indices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        index = args[1] if func in INDEXING else ()
        index = index if isinstance(index, tuple) else (index,)
        lists = any(isinstance(part, list) for part in index)
        writes_number = func is Tensor.__setitem__ and not isinstance(args[2], Tensor)
        if func in READS or lists or (writes_number and any(isinstance(part, Tensor) for part in index)):
            raise RuntimeError("a copy between host and device")
        return func(*args, **(kwargs or {}))


def plan(recipe: str) -> Plan:
    planner: Any = experiments.build_planner(compose([f"recipe={recipe}"]), SPACE).eval()
    cond = random_conditions(SPACE, 2, torch.device("cpu"))
    if planner.history:
        history = History(2, planner.history, SPACE.state_dim, SPACE.action_dim)
        history.push(cond.state, torch.zeros(2, dtype=torch.long))
        cond = replace(cond, past=history.past())
    with torch.inference_mode(), NoHost():
        return plan_step(planner, cond)[1]


RECIPES = ["mage", "mage_paper", "flat", "flat_ar", "two_level", "tap", "carp", "bc", "hierarchy", "dt", "diffuser"]
RECIPES += ["hd", "tt", "flow", "dd"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_plan_copies_nothing_from_or_to_the_host(recipe: str) -> None:
    assert all(len(part) == 2 and part.isfinite().all() for part in vars(plan(recipe)).values() if part is not None)
