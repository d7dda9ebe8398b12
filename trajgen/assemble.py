"""Wires components into a planner: derives every dimension, and refuses what cannot work before any data is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from trajgen.core.normalise import Normaliser
from trajgen.core.registry import build
from trajgen.core.types import Space

Node = Mapping[str, Any]


def assemble(
    nodes: Mapping[str, Node],
    space: Space,
    *,
    horizon: int,
    chunk: int,
    power: float,
    goals: bool,
) -> nn.Module:
    """Builds the planner that the nodes of a recipe describe.

    Args:
        nodes: for each kind of component, its name and options.
        space: the dimensions of the data.
        horizon: T.
        chunk: H.
        power: of the returns' transform.
        goals: whether plans are conditioned on goals.

    Returns:
        A module that satisfies `trajgen.core.protocols.Planner`.

    Raises:
        ConfigError: for a composition that cannot work.
    """
    wiring: dict[str, Any] = {
        "state_dim": space.state_dim,
        "action_dim": space.action_dim,
        "goal_dim": space.goal_dim if goals else 0,
        "horizon": horizon,
        "chunk": chunk,
    }

    def make(kind: str) -> Any:
        return build(kind, nodes[kind], **wiring)

    wiring["normaliser"] = Normaliser(space.state_dim, space.action_dim, wiring["goal_dim"], power)
    wiring["view"] = make("view")
    wiring["features"] = wiring["view"].features
    wiring["schedule"] = partial(_schedule, nodes["schedule"])
    tokenizer = wiring["tokenizer"] = make("tokenizer")
    # From here on the schedule is the one that the tokenizer settled on.
    wiring |= {
        "schedule": tokenizer.schedule,
        "code_dim": tokenizer.code_dim,
        "latent_length": tokenizer.latent_length,
        "vocabulary": tokenizer.vocabulary,
    }
    for kind in ("conditioner", "prior", "decoder", "action", "sampler", "target"):
        wiring[kind] = make(kind)
    planner = make("planner")
    if not isinstance(planner, nn.Module):
        raise TypeError(f"planner '{nodes['planner']['name']}' is not a torch module")
    return planner


def _schedule(node: Node, length: int) -> Any:
    return build("schedule", node, length=length)
