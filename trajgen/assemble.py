"""Wires components into a planner: derives every dimension, and refuses what cannot work before any data is read.

Components are built on demand: the planner takes its parts by name, they take theirs, and so on. A recipe has no part
that the planner does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.pairing import check_pair
from trajgen.core.protocols import DropsCondition, TellsAgentsApart, Values
from trajgen.core.registry import KINDS, build, names, spec
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.stages import Stage, with_total
from trajgen.core.types import AgentAxis, Space
from trajgen.nn.agents import AgentsAction, AgentsDecoder

Node = Mapping[str, Any]

FROM_TOKENIZER = ("schedule", "code_dim", "latent_length", "vocabulary", "period")
"""Wiring that follows from the tokenizer, where there is one."""
USUAL = {
    "encoder": "conv",
    "view": "fields",
    "schedule": "geometric",
    "tokenizer": "multiscale",
    "conditioner": "fields",
    "prior": "transformer",
    "decoder": "adapter",
    "action": "latent_state",
    "critic": "return",
    "sampler": "temperature",
    "return_target": "quantile",
    "subgoal": "graph",
    "planner": "latent",
}
"""What is advised where a kind is missing: MAGE's choice."""
LEVELS = {"level": "latent", "direct_level": "direct"}
"""Wiring that builds planners of levels, and the planner that a level is."""
TOLD_STRIDES = ("conditioner", "action")
"""Kinds that have to tell plans of several strides apart."""
PER_AGENT: dict[str, Callable[..., nn.Module]] = {"decoder": AgentsDecoder, "action": AgentsAction}
"""Kinds of which a component of an agent's dimensions serves all agents, and what makes it one of the team."""
TRAINS_ENCODER = "trains_encoder"
"""The attribute of a planner that says whether the data have images, and no features of them yet."""
UNNAMED = ("critic", "encoder")
"""Kinds of which the usual component is taken where a recipe names none."""


@dataclass(frozen=True, kw_only=True)
class WindowShape:
    """What components need to know of a recipe's windows."""

    horizon: int = 32
    """T, points in a window."""
    stride: int | tuple[int, ...] = 8
    """M, environment steps between points, one or several."""
    chunk: int = 8
    """H, environment steps at full rate."""
    discount: float = 0.99
    """Per environment step."""
    return_power: float = 0.25
    """Of the returns' transform."""
    goals: bool = True
    """Whether plans are made for goals."""
    goal_state: tuple[int, ...] = ()
    """The features of the state that a goal specifies."""
    goal_radius: float | None = None
    """Distance to the goal within which a step is rewarded; None where rewards are the data's own."""
    terminate_at_goal: bool = False
    """Whether the task is over on arrival."""
    relative_goals: bool = False
    """Whether goals are also seen from the position in the state."""

    @property
    def strides(self) -> tuple[int, ...]:
        """M, as a tuple."""
        return self.stride if isinstance(self.stride, tuple) else (self.stride,)


def assemble(nodes: Mapping[str, Node], space: Space, window: WindowShape) -> nn.Module:
    """Builds the planner that the nodes of a recipe describe.

    Args:
        nodes: for each kind of component in the recipe, its name and options.
        space: the dimensions of the data.
        window: the shape of its windows.

    Returns:
        A module that satisfies `trajgen.core.planning.Planner`, with the ``normalizer`` of the data in it.

    Raises:
        ConfigError: for a composition that cannot work.
    """
    _check_kinds(nodes, space)
    nodes = {**{kind: {"name": USUAL[kind]} for kind in UNNAMED}, **nodes}
    encoder = build_encoder(nodes["encoder"], space) if space.image_shape else None
    state_dim = space.vector_dim + (encoder.features if encoder else 0)
    goal_dim = space.goal_dim if window.goals else 0
    _check_goal_state(window.goal_state if goal_dim else (), goal_dim, state_dim)
    normalizer = Normalizer(state_dim, space.action_dim, goal_dim, window.return_power)
    dimensions = {
        "state_dim": state_dim,
        "action_dim": space.action_dim,
        "action_size": space.action_size,
        "image_shape": space.image_shape,
        "goal_dim": goal_dim,
        "goal_state": window.goal_state if goal_dim else (),
        "goal_radius": window.goal_radius if goal_dim else None,
        "terminate_at_goal": window.terminate_at_goal,
        "relative_goals": window.relative_goals,
        "horizon": window.horizon,
        "strides": window.strides,
        "chunk": window.chunk,
        "discount": window.discount,
        "normalizer": normalizer,
        "scale_lengths": space.scale_lengths,
        "return_range": space.return_range,
        "agents": space.agents,
    }
    if len(window.strides) == 1:
        dimensions["stride"] = window.strides[0]
    _check_strides(nodes, window.strides)
    _check_subgoal(nodes)
    composition = _Composition(nodes, dimensions)
    composition.check_agents()
    planner = composition.get("planner")
    if not isinstance(planner, nn.Module):
        raise TypeError(f"planner '{nodes['planner']['name']}' is not a torch module")
    planner.add_module("normalizer", normalizer)
    if encoder is not None:
        planner.add_module("encoder", encoder)
    if "subgoal" in nodes:
        subgoal = composition.get("subgoal")
        if not isinstance(subgoal, nn.Module):
            raise TypeError(f"subgoal '{nodes['subgoal']['name']}' is not a torch module")
        planner.add_module("subgoal", subgoal)
    planner.__dict__[TRAINS_ENCODER] = encoder is not None and not space.encoded
    return planner


def build_encoder(node: Node, space: Space) -> Any:
    """The encoder of the images of a space: the one that made the features of the data, or else that of the node.

    Raises:
        ConfigError: if it cannot be built, or makes another number of features than the data hold.
    """
    encoder = build("encoder", space.encoder or node, image_shape=space.image_shape, action_dim=space.action_dim)
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder '{(space.encoder or node)['name']}' is not a torch module")
    if space.feature_dim not in (0, encoder.features):
        raise ConfigError(
            "The encoder makes other features than those of the data.",
            expected=f"{space.feature_dim} features",
            got=f"{encoder.features} by {dict(space.encoder or node)}",
            fix="the options with which the data were encoded",
        )
    return encoder


def all_stages(planner: Any) -> list[Stage]:
    """The stages of a planner, after that of its encoder, if it has one.

    The encoder's is separate, since what others reconstruct of its features would be met at best by features that are
    all alike, and since features of fixed weights are computed once for the whole data set.

    Args:
        planner: satisfies `trajgen.core.planning.Planner`.
    """
    has_stage = getattr(planner, TRAINS_ENCODER, False)
    if not has_stage:
        return list(planner.stages())
    encoder = planner.encoder
    return [Stage("encoder", with_total(encoder.loss), encoder.trained_parameters(), images=True), *planner.stages()]


def _check_strides(nodes: Mapping[str, Node], strides: tuple[int, ...]) -> None:
    """Refuses several strides where plans are not chosen among them, or a part knows one stride alone."""
    if len(strides) == 1:
        return
    got, one = f"data.stride={list(strides)}".replace(" ", ""), f"data.stride={strides[0]}"
    wiring = {kind: spec(kind, node["name"]).wiring for kind, node in nodes.items()}
    if "strides" not in wiring.get("sampler", ()):
        raise ConfigError(
            "Several strides need a sampler that chooses among plans by a critic.",
            got=f"{got} with " + (f"sampler={nodes['sampler']['name']}" if "sampler" in nodes else "no sampler"),
            fix=f"recipe=mage_critic, sampler=best_of_n, or {one}",
        )
    for kind, arguments in wiring.items():
        if "stride" in arguments or (kind in TOLD_STRIDES and "strides" not in arguments):
            raise ConfigError(f"{kind}={nodes[kind]['name']} is made for one stride.", got=got, fix=one)


def _check_goal_state(goal_state: tuple[int, ...], goal_dim: int, state_dim: int) -> None:
    """Refuses positions of other widths than goals: they would be compared all the same, each number with all."""
    if goal_state and not (len(goal_state) == goal_dim and {*goal_state} <= {*range(state_dim)}):
        raise ConfigError(
            "data.goal_state has, for each number of a goal, the index of the state that it sets.",
            expected=f"{goal_dim} indices from 0 to {state_dim - 1}",
            got=f"data.goal_state={list(goal_state)}",
            fix="data.goal_state=[] where goals set no features of the state",
        )


def _check_subgoal(nodes: Mapping[str, Node]) -> None:
    """Refuses subgoals where the target return is what remains of the first one, if that was of another goal."""
    target = nodes.get("return_target", {})
    if not ("subgoal" in nodes and target.get("subtract_rewards")):
        return
    if "goal_dim" in spec("return_target", target["name"]).wiring:
        raise ConfigError(
            "Each subgoal has a return of its own, from which no earlier rewards are subtracted.",
            got=f"subgoal={nodes['subgoal']['name']} with return_target.subtract_rewards=true",
            fix="return_target.subtract_rewards=false",
        )


def _check_kinds(nodes: Mapping[str, Node], space: Space) -> None:
    """Refuses a recipe that lacks a kind which its parts take, or has one that none of them takes."""
    used = _used_kinds("planner", nodes if _tokenizes(nodes) else {k: v for k, v in nodes.items() if k != "tokenizer"})
    used |= {"encoder"} if space.image_shape else set()
    used |= {"subgoal"} & {*nodes}  # which any recipe can have
    missing = [kind for kind in KINDS if kind in used and kind not in nodes and kind not in UNNAMED]
    unused = [kind for kind in nodes if kind not in used]
    leave_out = " ".join(f"'~{kind}'" for kind in unused)
    if missing:
        raise ConfigError(
            f"Planner '{nodes['planner']['name']}' and its parts take what this recipe does not have."
            if "planner" in nodes
            else "A recipe has a planner.",
            expected="; ".join(f"{kind}: one of {', '.join(names(kind))}" for kind in missing),
            got=", ".join(f"{kind}={node['name']}" for kind, node in nodes.items()),
            fix=" ".join([*(f"{kind}={USUAL[kind]}" for kind in missing), *filter(None, [leave_out])])
            + ", or recipe=mage, which has every kind",
        )
    if unused:
        raise ConfigError(
            f"Nothing in this composition uses {' or '.join(unused)}.",
            expected=f"planner '{nodes['planner']['name']}' with {', '.join(kind for kind in nodes if kind in used)}",
            got=", ".join(f"{kind}={nodes[kind]['name']}" for kind in unused),
            fix=f"{leave_out} to leave out what is not used, or recipe=mage",
        )


def _tokenizes(nodes: Mapping[str, Node]) -> bool:
    """Whether the planner, or a level of it, plans by tokens; else its action head reads the embedded condition."""
    wiring = spec("planner", nodes["planner"]["name"] if "planner" in nodes else USUAL["planner"]).wiring
    levels = [spec("planner", LEVELS[name]).wiring for name in wiring if name in LEVELS]
    return any({"tokenizer", "prior"} & {*each} for each in (wiring, *levels))


def _used_kinds(kind: str, nodes: Mapping[str, Node], used: frozenset[str] = frozenset()) -> frozenset[str]:
    """``used``, a kind, and the kinds that its component takes, and so on; the usual component where one lacks."""
    used |= {kind}
    for name in spec(kind, nodes[kind]["name"] if kind in nodes else USUAL[kind]).wiring:
        if name in LEVELS:  # a planner of planners uses what those use
            used = _used_kinds("planner", {**nodes, "planner": {"name": LEVELS[name]}}, used)
        provider = _provider(kind, name, nodes)
        if provider is not None and provider not in used:
            used = _used_kinds(provider, nodes, used)
    return used


def _provider(kind: str, name: str, nodes: Mapping[str, Node]) -> str | None:
    """The kind of component that provides the wiring ``name`` of a component of ``kind``; None for plain dimensions."""
    if name in KINDS and not (name == "schedule" and kind != "tokenizer"):
        return name
    if name in ("schedule", "code_dim", "latent_length") and "tokenizer" not in nodes:
        return "conditioner" if name == "code_dim" else None
    return "view" if name == "features" else "tokenizer" if name in FROM_TOKENIZER else None


class _Composition:
    """The parts of one planner, each built at its first use.

    Args:
        nodes: the component of each kind.
        dimensions: the wiring that follows from data and windows, and parts that a level replaces.
    """

    def __init__(self, nodes: Mapping[str, Node], dimensions: Mapping[str, Any]) -> None:
        self.nodes = nodes
        self.dimensions = {name: value for name, value in dimensions.items() if name not in KINDS}
        self._values: dict[str, Any] = dict(dimensions)
        self._building: list[str] = []
        self._derived: dict[str, Callable[[], Any]] = {
            "features": lambda: self.get("view").features,
            "schedule": lambda: self.get("tokenizer").schedule if "tokenizer" in nodes else ScaleSchedule((1,)),
            "vocabulary": lambda: self.get("tokenizer").vocabulary,
            "period": lambda: tokenizer.period if isinstance(tokenizer := self.get("tokenizer"), Values) else 1,
            "agent_axis": self._agent_axis,
            # Where nothing is tokenized, actions are read off the embedded condition.
            "code_dim": lambda: (
                self.get("tokenizer").code_dim if "tokenizer" in nodes else self.get("conditioner").width
            ),
            "latent_length": lambda: self.get("tokenizer").latent_length if "tokenizer" in nodes else 1,
            "level": lambda: self._build_level,
            "direct_level": lambda: partial(self._build_level, {"name": "direct"}),
        }

    def get(self, name: str) -> Any:
        """The value or component of this name."""
        if name not in self._values:
            self._values[name] = self._derived[name]() if name in self._derived else self._build(name)
        return self._values[name]

    def check_agents(self) -> None:
        """Refuses a view that tells agents apart where the other parts do not."""
        if self.get("agent_axis") is None:
            return
        is_one_planner = not set(LEVELS) & set(spec("planner", self.nodes["planner"]["name"]).wiring)
        if is_one_planner and "tokenizer" in self.nodes and max(self.get("schedule").agents) > 1:
            return
        raise ConfigError(
            "Agents are told apart by planners with one tokenizer whose latent is a grid of agents and time.",
            expected="planner=latent with tokenizer=multiscale",
            got=", ".join(f"{k}={self.nodes[k]['name']}" for k in ("planner", "tokenizer") if k in self.nodes),
            fix="view=fields",
        )

    def _agent_axis(self) -> AgentAxis | None:
        view = self.get("view") if "view" in self.nodes else None
        return view.agent_axis if isinstance(view, TellsAgentsApart) else None

    def _build_per_agent(self, kind: str, axis: AgentAxis) -> nn.Module:
        """A component of an agent's dimensions, which serves all agents."""
        n = axis.agents
        of_agent = {
            "state_dim": self.get("state_dim") // n,
            "action_dim": self.get("action_dim") // n,
            "latent_length": self.get("latent_length") // n,
            "code_dim": self.get("code_dim") + (n if axis.identify else 0),
            "agent_axis": None,
            "view": self.get("view").of_agent,
            "tokenizer": self.get("tokenizer"),
        }
        part = _Composition(self.nodes, {**self.dimensions, **of_agent}).get(kind)
        return PER_AGENT[kind](part, axis, self.get("features"))

    def _build(self, kind: str) -> Any:
        if kind in PER_AGENT and (axis := self.get("agent_axis")) is not None:
            return self._build_per_agent(kind, axis)
        if kind in self._building:
            raise ConfigError(
                "Components do not take each other in a circle.",
                got=" → ".join([*self._building, kind]),
                fix=f"take '{self._building[-1]}' or '{kind}' out of the other's arguments",
            )
        self._building.append(kind)
        node, wiring = self.nodes[kind], {}
        if kind == "sampler" and "prior" in self.nodes:
            discrete = "tokenizer" in self.nodes and self.get("vocabulary") is not None
            check_pair(node["name"], self.get("prior"), self.nodes["prior"]["name"], discrete=discrete)
            self._check_guidance(node)
        for name in spec(kind, node["name"]).wiring:
            if name == "schedule" and kind == "tokenizer":  # which knows the latent's length
                wiring[name] = self._build_schedule
            elif name in self._values or name in self._derived or name in KINDS:
                wiring[name] = self.get(name)
        self._building.pop()
        return build(kind, node, **wiring)

    def _check_guidance(self, sampler: Node) -> None:
        """Refuses classifier-free guidance where nothing was learnt of plans without the condition."""
        conditioner = self.get("conditioner") if sampler.get("guidance") else None
        if isinstance(conditioner, DropsCondition) and not conditioner.learns_unconditional:
            raise ConfigError(
                "Guidance compares with predictions without the condition, which a conditioner with dropout learns.",
                expected="conditioner.dropout above 0, with the return or the goal among conditioner.fields",
                got=f"sampler.guidance={sampler['guidance']}",
                fix="sampler.guidance=0, or train with conditioner.dropout=0.1",
            )

    def _build_schedule(self, length: int) -> ScaleSchedule:
        lengths = self.get("scale_lengths")
        schedule: ScaleSchedule = build("schedule", self.nodes["schedule"], length=length, scale_lengths=lengths)
        return schedule

    def _build_level(self, planner: Node, **dimensions: Any) -> nn.Module:
        """One level of a hierarchy: a planner of the same parts with weights of its own, over other windows.

        Args:
            planner: the node of the level's planner.
            dimensions: those that differ at this level, and parts that it replaces.
        """
        level = _Composition({**self.nodes, "planner": planner}, {**self.dimensions, **dimensions})
        built: nn.Module = level.get("planner")
        return built
