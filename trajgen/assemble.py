"""Wires components into a planner: derives every dimension, and refuses what cannot work before any data is read.

Components are built on demand: the planner asks for its parts by name, they ask for theirs, and so on. What a planner
does not ask for has no place in its recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import KINDS, build, names, spec
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Space

Node = Mapping[str, Any]

OF_TOKENIZER = ("schedule", "code_dim", "latent_length", "vocabulary", "period")
"""What components ask for by name that follows from the tokenizer, where there is one."""
USUAL = {
    "view": "fields",
    "schedule": "geometric",
    "tokenizer": "multiscale",
    "conditioner": "fields",
    "prior": "transformer",
    "decoder": "adapter",
    "action": "latent_state",
    "sampler": "temperature",
    "return_target": "quantile",
    "planner": "latent",
}
"""What is advised where a kind is missing: MAGE's choice."""


@dataclass(frozen=True, kw_only=True)
class WindowShape:
    """What a recipe says about its windows that components need to know."""

    horizon: int = 32
    """T, points in a window."""
    stride: int = 8
    """M, environment steps between points."""
    chunk: int = 8
    """H, environment steps at full rate."""
    discount: float = 0.99
    """Per environment step."""
    return_power: float = 0.25
    """Of the returns' transform."""
    goals: bool = True
    """Whether plans are made for goals."""
    goal_state: tuple[int, ...] = ()
    """Which numbers of the state a goal speaks of."""


def assemble(nodes: Mapping[str, Node], space: Space, window: WindowShape) -> nn.Module:
    """Builds the planner that the nodes of a recipe describe.

    Args:
        nodes: for each kind of component in the recipe, its name and options.
        space: the dimensions of the data.
        window: the shape of its windows.

    Returns:
        A module that satisfies `trajgen.core.protocols.Planner`, with the ``normalizer`` of the data in it.

    Raises:
        ConfigError: for a composition that cannot work.
    """
    goal_dim = space.goal_dim if window.goals else 0
    normalizer = Normalizer(space.state_dim, space.action_dim, goal_dim, window.return_power)
    composition = _Composition(
        nodes,
        {
            "state_dim": space.state_dim,
            "action_dim": space.action_dim,
            "goal_dim": goal_dim,
            "goal_state": window.goal_state if goal_dim else (),
            "horizon": window.horizon,
            "stride": window.stride,
            "chunk": window.chunk,
            "discount": window.discount,
            "normalizer": normalizer,
        },
    )
    _check_kinds(nodes)
    planner = composition.get("planner")
    if not isinstance(planner, nn.Module):
        raise TypeError(f"planner '{nodes['planner']['name']}' is not a torch module")
    planner.add_module("normalizer", normalizer)
    return planner


def _check_kinds(nodes: Mapping[str, Node]) -> None:
    """Refuses a recipe that lacks a kind which its parts ask for, or has one for which none of them asks."""
    asked = _asked("planner", nodes)
    missing = [kind for kind in KINDS if kind in asked and kind not in nodes]
    if missing:
        raise ConfigError(
            f"Planner '{nodes['planner']['name']}' and its parts ask for what this recipe does not have."
            if "planner" in nodes
            else "A recipe has a planner.",
            expected="; ".join(f"{kind}: one of {', '.join(names(kind))}" for kind in missing),
            got=", ".join(f"{kind}={node['name']}" for kind, node in nodes.items()),
            fix=" ".join(f"{kind}={USUAL[kind]}" for kind in missing) + ", or recipe=mage, which has every kind",
        )
    unused = [kind for kind in nodes if kind not in asked]
    if unused:
        raise ConfigError(
            f"Nothing in this composition asks for {' or '.join(unused)}, and what is not used is not set.",
            expected=f"planner '{nodes['planner']['name']}' with {', '.join(kind for kind in nodes if kind in asked)}",
            got=", ".join(f"{kind}={nodes[kind]['name']}" for kind in unused),
            fix=" ".join(f"'~{kind}'" for kind in unused) + " to leave out what is not used, or recipe=mage",
        )


def _asked(kind: str, nodes: Mapping[str, Node], found: frozenset[str] = frozenset()) -> frozenset[str]:
    """The kinds that a part asks for, itself among them, and what these ask for; the usual part where one lacks."""
    found |= {kind}
    for name in spec(kind, nodes[kind]["name"] if kind in nodes else USUAL[kind]).wiring:
        if name == "level":  # a planner of planners asks for what those ask for
            found = _asked("planner", {**nodes, "planner": {"name": "latent"}}, found)
        source = _source(kind, name, nodes)
        if source is not None and source not in found:
            found = _asked(source, nodes, found)
    return found


def _source(kind: str, name: str, nodes: Mapping[str, Node]) -> str | None:
    """The kind of component that gives what a component of ``kind`` asks for by ``name``; None for plain dimensions."""
    if name in KINDS and not (name == "schedule" and kind != "tokenizer"):
        return name
    if name in ("schedule", "code_dim", "latent_length") and "tokenizer" not in nodes:
        return "conditioner" if name == "code_dim" else None
    return "view" if name == "features" else "tokenizer" if name in OF_TOKENIZER else None


class _Composition:
    """The parts of one planner, each built when it is first asked for."""

    def __init__(self, nodes: Mapping[str, Node], known: Mapping[str, Any]) -> None:
        self.nodes, self.known = nodes, dict(known)
        self._asking: list[str] = []
        self._derived: dict[str, Callable[[], Any]] = {
            "features": lambda: self.get("view").features,
            "schedule": lambda: self.get("tokenizer").schedule if "tokenizer" in nodes else ScaleSchedule((1,)),
            "vocabulary": lambda: self.get("tokenizer").vocabulary,
            "period": lambda: getattr(self.get("tokenizer"), "period", 1),
            # Where nothing is tokenized, actions are read off the embedded condition.
            "code_dim": lambda: (
                self.get("tokenizer").code_dim if "tokenizer" in nodes else self.get("conditioner").width
            ),
            "latent_length": lambda: self.get("tokenizer").latent_length if "tokenizer" in nodes else 1,
            "level": lambda: self._level,
        }

    def get(self, name: str) -> Any:
        """The value or component of this name."""
        if name not in self.known:
            self.known[name] = self._derived[name]() if name in self._derived else self._build(name)
        return self.known[name]

    def _build(self, kind: str) -> Any:
        if kind in self._asking:
            raise ConfigError(
                "Components do not ask for each other in a circle.",
                expected="a part that can be built first",
                got=" → ".join([*self._asking, kind]),
                fix=f"take '{self._asking[-1]}' or '{kind}' out of the other's arguments",
            )
        self._asking.append(kind)
        node = self.nodes[kind]
        wiring = {}
        for name in spec(kind, node["name"]).wiring:
            if name == "schedule" and kind == "tokenizer":  # it knows the latent's length, from which scales follow
                wiring[name] = self._schedule
            elif name in self.known or name in self._derived or name in KINDS:
                wiring[name] = self.get(name)
        self._asking.pop()
        return build(kind, node, **wiring)

    def _schedule(self, length: int) -> ScaleSchedule:
        made: ScaleSchedule = build("schedule", self.nodes["schedule"], length=length)
        return made

    def _level(self, planner: Node, **known: Any) -> nn.Module:
        """One level of a hierarchy: a planner of the same parts with weights of its own, over other windows.

        Args:
            planner: the node of the level's planner.
            known: what differs at this level, by the names that components ask for.
        """
        own = {name: value for name, value in self.known.items() if name not in KINDS and name not in self._derived}
        level = _Composition({**self.nodes, "planner": planner}, {**own, **known})
        made: nn.Module = level.get("planner")
        return made
