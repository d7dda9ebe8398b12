"""How long a decision takes, by each backend and batch size, and beside a Decision Transformer of the same size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from trajgen.bench.timing import Timing, timed
from trajgen.core.errors import ConfigError
from trajgen.core.planning import PlanFn
from trajgen.core.types import Cond, Space
from trajgen.export.backends import Backend, plan_fn

CONTEXT = 20
"""Steps that the Decision Transformer looks back on, as in its paper."""


@dataclass(frozen=True)
class Line:
    """One measurement."""

    name: str
    batch: int
    timing: Timing
    note: str = ""


def decisions(planner: Any, space: Space, batches: list[int], backends: list[Backend], repeats: int) -> Iterator[Line]:
    """Times plans: the return that is asked for, all scales, the latent, and the action head.

    Args:
        planner: in evaluation mode, on its device.
        space: of the world it is for.
        batches: how many plans at once.
        backends: of `trajgen.export.backends.plan_fn`.
        repeats: of each.
    """
    device = next(planner.parameters()).device
    for batch in batches:
        cond = random_conditions(space, batch, device)
        for backend in backends:
            decide = partial(_decide, planner, plan_fn(backend, planner), torch.Generator(device), cond)
            yield Line(backend, batch, timed(decide, device, repeats))


@torch.inference_mode()
def _decide(planner: Any, plan: PlanFn, rng: torch.Generator, cond: Cond) -> None:
    _, plans = plan(cond, rng)
    planner.action(plans, cond.state.unsqueeze(1), torch.zeros_like(cond.returns, dtype=torch.long).unsqueeze(1))


def random_conditions(space: Space, batch: int, device: torch.device) -> Cond:
    """Conditions of an episode's first plan, in normalized units."""
    goal = torch.randn(batch, space.goal_dim, device=device) if space.goal_dim else None
    state, unknown = torch.randn(batch, space.state_dim, device=device), torch.full((batch,), torch.nan, device=device)
    time = torch.zeros(batch, dtype=torch.long, device=device)
    return Cond(state, unknown, goal, time=time)


def decision_transformer(
    space: Space, width: int, depth: int, heads: int, device: torch.device, batches: list[int], repeats: int
) -> Iterator[Line]:
    """Times transformers' DecisionTransformerModel, eager, with random weights.

    Raises:
        ConfigError: if the package is missing.
    """
    try:
        from transformers import DecisionTransformerConfig, DecisionTransformerModel
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigError(
            "The Decision Transformer that is measured is that of the package transformers.",
            expected="transformers",
            got="it is not installed",
            fix="pip install transformers, or leave out --against",
        ) from error
    logging.set_verbosity_error()
    config = DecisionTransformerConfig(
        state_dim=space.state_dim,
        act_dim=space.action_dim,
        hidden_size=width,
        n_layer=depth,
        n_head=heads,
        max_ep_len=1000,
    )
    model = DecisionTransformerModel(config).eval().to(device)
    for batch in batches:
        inputs = {
            "states": torch.randn(batch, CONTEXT, space.state_dim, device=device),
            "actions": torch.randn(batch, CONTEXT, space.action_dim, device=device),
            "rewards": torch.zeros(batch, CONTEXT, 1, device=device),
            "returns_to_go": torch.randn(batch, CONTEXT, 1, device=device),
            "timesteps": torch.arange(CONTEXT, device=device).expand(batch, -1),
            "attention_mask": torch.ones(batch, CONTEXT, device=device),
        }

        decide = torch.inference_mode()(partial(model, **inputs))
        yield Line("DT (transformers)", batch, timed(decide, device, repeats), f"context {CONTEXT}")
