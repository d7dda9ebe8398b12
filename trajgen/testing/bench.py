"""A component in a small composition of shipped parts, on which its contracts are tried."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from trajgen.assemble import WindowShape, assemble
from trajgen.config import merged, read_yaml, recipe_files
from trajgen.core.errors import ConfigError, nearest
from trajgen.core.registry import KINDS, complete, spec
from trajgen.core.types import Batch, Cond, Plan, Space

SPACE = Space(state_dim=4, action_dim=2, goal_dim=2, action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
GOAL_STATE = (0, 1)
HORIZON, STRIDE, CHUNK = 16, 3, 4
"""The largest windows that components are tried on."""

SMALL: dict[str, Any] = {
    "latent_length": 4, "code_dim": 6, "codebook_size": 12, "width": 16, "depth": 2, "heads": 2, "bottleneck": 8,
    "fourier_frequencies": 2, "k": 5, "n": 3, "scales": 3, "lengths": (1, 3, 4), "num_bins": 8,
    "timesteps": 10, "steps": 5, "expansions": 2,
}  # fmt: skip
"""Sizes for whatever component has an option of this name and is larger."""

FRIENDLY: dict[str, tuple[str, ...]] = {
    "view": ("mage", "tap"),
    "schedule": ("mage", "flat_ar"),
    "tokenizer": ("mage", "flat_ar", "flat", "diffuser", "tt"),
    "prior": ("mage", "flat_ar", "diffuser sampler.value_scale=0.0"),
    "decoder": ("mage", "tap", "diffuser"),
    "action": ("mage", "carp", "diffuser"),
    "sampler": ("mage", "tap", "diffuser"),
    "planner": ("mage", "bc", "dt", "hierarchy"),
}
"""For each kind, the compositions that are tried first, in this order: one of scales, one of tokens in a row, one that
denoises. The first that accepts the component is taken; a denoising prior, say, comes to diffuser that way."""

ROUNDS = 3


@dataclass(frozen=True)
class Composition:
    """The parts of a recipe at small sizes."""

    recipe: str
    nodes: dict[str, dict[str, Any]]
    window: WindowShape
    changes: tuple[str, ...] = field(default=())
    """What differs from the recipe, as words of a command line."""

    def swapped(self, kind: str, node: Mapping[str, Any]) -> Composition:
        """The same with another component."""
        return replace(self, nodes={**self.nodes, kind: dict(node)})

    def without(self, kinds: list[str]) -> Composition:
        """The same without some kinds."""
        nodes = {kind: node for kind, node in self.nodes.items() if kind not in kinds}
        return replace(self, nodes=nodes, changes=(*self.changes, *(f"'~{kind}'" for kind in kinds)))

    def __str__(self) -> str:
        return " ".join([f"recipe={self.recipe}", *self.changes])


@dataclass
class Known:
    """A batch as the parts of a planner see it, each field with one row per window."""

    batch: Batch
    cond: Cond
    x: Tensor  # (B, T, D)
    codes: Tensor  # (B, L) or (B, L, C)
    vectors: Tensor  # (B, L, C)
    inputs: Tensor  # (B, L - l_1, C)
    latent: Tensor  # (B, N, C)
    plan: Plan


class Bench:
    """A component in a small composition.

    Args:
        kind, name: of the component.
        composition: which has it among its nodes, and accepts it.
    """

    def __init__(self, kind: str, name: str, composition: Composition) -> None:
        self.kind, self.name, self.composition = kind, name, composition

    def build(self, seed: int = 0, *, shaken: bool = True, goals: bool = True) -> Any:
        """A planner with fresh weights, moved unless asked otherwise, so that nothing holds for starting at zero."""
        torch.manual_seed(seed)
        window = self.composition.window if goals else replace(self.composition.window, goals=False)
        made = assemble(self.composition.nodes, SPACE, window)
        return shake(made) if shaken else made

    def ready(self, seed: int = 0, *, goals: bool = True) -> Any:
        """A planner whose stages have each seen a batch, so that its codes are in use, in evaluation mode."""
        made = self.build(seed, goals=goals)
        with contextlib.suppress(Exception):  # what a stage cannot do is said where training is tried
            for stage in made.stages():
                if stage.parameters:
                    stage.begin(made)
                    stage.loss(self.batch(32, goals=goals))
                    if stage.after_step is not None:
                        stage.after_step()
        return made.requires_grad_(True).eval()

    @cached_property
    def planner(self) -> Any:
        """One that is ready; whoever changes it makes an own one."""
        return self.ready()

    @cached_property
    def component(self) -> Any:
        """The component itself, as built in `planner`."""
        return self.of(self.planner)

    def of(self, planner: Any, kind: str | None = None) -> Any:
        """A part of a planner, by default the component that is tried; None if the planner has none of this kind."""
        kind = kind or self.kind
        if kind == "planner":
            return planner
        if kind not in self.composition.nodes:
            return None
        if kind == "schedule":
            return self.of(planner, "tokenizer").schedule
        holders = [module for module in planner.modules() if getattr(module, kind, None) is not None]
        return getattr(holders[0], kind) if holders else None

    def batch(self, size: int = 6, *, seed: int = 1, goals: bool = True, padded: bool = True) -> Batch:
        """Random windows, half of which end in padding; a window's goal is where its last point is."""
        random, window = torch.Generator().manual_seed(seed), self.composition.window

        def draw(*shape: int) -> Tensor:
            return torch.randn(size, *shape, generator=random)

        mask = torch.ones(size, window.horizon, dtype=torch.bool)
        chunk_mask = torch.ones(size, window.chunk, dtype=torch.bool)
        if padded:
            mask[size // 2 :, -(-window.horizon // 2) :] = False
            chunk_mask[-1, 1:] = False
        states = draw(window.horizon, SPACE.state_dim)
        return Batch(
            states=states,
            actions=draw(window.horizon, window.stride, SPACE.action_dim),
            rewards=draw(window.horizon),
            returns=draw(window.horizon),
            mask=mask,
            chunk_states=draw(window.chunk, SPACE.state_dim),
            chunk_actions=draw(window.chunk, SPACE.action_dim),
            chunk_mask=chunk_mask,
            goals=states[:, -1, list(GOAL_STATE)] if goals else None,
            time=torch.arange(size),
        )

    def cond(self, size: int = 6, *, seed: int = 1, goals: bool = True) -> Cond:
        """Random conditions."""
        return self.batch(size, seed=seed, goals=goals).condition()

    def known(self, planner: Any, batch: Batch) -> Known:
        """What the parts of a planner make of a batch."""
        cond = batch.condition()
        view, tokenizer = self.of(planner, "view"), self.of(planner, "tokenizer")
        x = batch.states if view is None else view(batch)
        if tokenizer is None:
            plan = planner.plan(cond)
            return Known(batch, cond, x, plan.codes, plan.latent, plan.latent[:, :0], plan.latent, plan)
        with torch.no_grad():
            encoding = tokenizer.encode(x)
            vectors = tokenizer.vectors(encoding.codes)
        plan = Plan(encoding.codes, encoding.latent, x)
        return Known(batch, cond, x, encoding.codes, vectors, encoding.inputs, encoding.latent, plan)


def check_request(recipe: str | None, changes: Mapping[str, Any]) -> None:
    """Raises a `ConfigError` if there is no such recipe, component or option."""
    if recipe is not None:
        _read(recipe)
    for key, values in changes.items():
        if key not in KINDS or not isinstance(values, Mapping):
            raise ConfigError(
                f"Only components can be changed here, not '{key}'.",
                expected=", ".join(KINDS),
                got=f"{key}={values}",
                fix="for example prior.width=8, schedule=unit, or recipe=flat_ar",
            )
        if "name" in values:
            complete(key, values)


def find(kind: str, name: str, recipe: str | None = None, changes: Mapping[str, Any] | None = None) -> Bench:
    """The component in the first composition that accepts it.

    Args:
        kind, name: of the component.
        recipe: a recipe's name, or a path to one; None tries the shipped ones.
        changes: plain values that are laid over the recipe, as ``{"schedule": {"name": "unit"}}``.

    Raises:
        ConfigError: if no composition accepts it: the first refusal, which says why.
        Exception: whatever the component raises when it is built.
    """
    refusals: list[ConfigError] = []
    tried = [(recipe, {})] if recipe else _order(kind)
    for rounds in (1, ROUNDS):  # only where no recipe takes it as a whole, without the kinds that it does not ask for
        for each, usual in tried:
            for shrunk in (True, False):
                composed = _composition(each, kind, name, merged(usual, changes or {}), shrunk)
                found = _accepted(Bench(kind, name, composed), rounds)
                if isinstance(found, Bench):
                    return found
                refusals.append(found)
    raise min(refusals, key=lambda refusal: "~" in (refusal.fix or ""))  # what fits says more than what is not used


def _accepted(bench: Bench, rounds: int) -> Bench | ConfigError:
    """The bench, without kinds that nothing asks for if there are rounds to leave them out; or the refusal."""
    try:
        bench.build()
    except ConfigError as refusal:
        composed = bench.composition
        unused = [each for each in re.findall(r"'~(\w+)'", refusal.fix or "") if each in composed.nodes]
        if rounds == 1 or not unused or bench.kind in unused:
            return refusal
        return _accepted(Bench(bench.kind, bench.name, composed.without(unused)), rounds - 1)
    return bench


def shake(module: nn.Module, amount: float = 0.2) -> nn.Module:
    """Moves all weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)
    return module


def rows(record: Any, some: slice) -> Any:
    """Some windows of a batch, a condition or a plan."""
    cut = {k: v[some] for k, v in vars(record).items() if isinstance(v, Tensor)}
    return replace(record, **cut)


def spans(lengths: tuple[int, ...]) -> Iterator[tuple[int, slice, slice]]:
    """For scales 2 to K: its index, its slice of the tokens, and its slice of the teacher-forcing inputs."""
    start = lengths[0]
    for k, n in enumerate(lengths[1:], start=1):
        yield k, slice(start, start + n), slice(start - lengths[0], start + n - lengths[0])
        start += n


def _order(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The recipes to try, each with what is changed in it."""
    shipped, order = recipe_files(), []
    for words in (*FRIENDLY.get(kind, ("mage",)), *shipped):
        name, *options = words.split()
        changes: dict[str, Any] = {}
        for key, _, text in (option.partition("=") for option in options):
            other, _, option = key.partition(".")
            changes.setdefault(other, {})[option] = yaml.safe_load(text)
        order += [(name, changes)] if name in shipped else []
    return order


def _composition(recipe: str, kind: str, name: str, changes: Mapping[str, Any], shrunk: bool) -> Composition:
    plain = _read(recipe)
    nodes = {k: complete(k, plain[k]) for k in KINDS if plain.get(k)}
    if kind != "planner" and "level" in spec("planner", nodes["planner"]["name"]).wiring:
        nodes["planner"] = spec("planner", "latent").defaults()  # the parts of one level, which is a planner of its own
    if nodes.get(kind, {}).get("name") != name:
        nodes[kind] = spec(kind, name).defaults()
    words = []
    for key, values in changes.items():
        base = nodes if "name" not in values else {key: spec(key, values["name"]).defaults()}
        nodes[key] = merged(base, {key: values})[key]
        words += [f"{key}={v}" if option == "name" else f"{key}.{option}={v}" for option, v in values.items()]
    nodes = {k: _small(node) if shrunk or k != kind else node for k, node in nodes.items()}
    nodes = {k: complete(k, merged(node, _chosen(changes.get(k, {})))) for k, node in nodes.items()}
    data = plain.get("data", {})
    window = WindowShape(
        horizon=min(data.get("horizon", HORIZON), HORIZON),
        stride=min(data.get("stride", STRIDE), STRIDE),
        chunk=min(data.get("chunk", CHUNK), CHUNK),
        return_power=1.0,
        goal_state=GOAL_STATE,
    )
    return Composition(recipe, nodes, window, tuple(words))


def _read(recipe: str) -> dict[str, Any]:
    shipped = recipe_files()
    if recipe not in shipped and not recipe.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"There is no recipe '{recipe}'.",
            expected=", ".join(shipped),
            got=f"recipe={recipe}",
            fix=f"{nearest(recipe, shipped)} A path to a .yaml file of your own works too.",
        )
    plain = deepcopy(read_yaml(shipped[recipe] if recipe in shipped else Path(recipe)))
    if not plain.get("planner"):
        raise ConfigError(
            "A recipe names a planner.",
            expected="planner: {name: …}",
            got=recipe,
            fix="recipes/mage.yaml is an example",
        )
    return plain


def _small(node: Mapping[str, Any]) -> dict[str, Any]:
    """A component's node with the options that say sizes reduced."""
    small = dict(node)
    # A quantizer refuses the sizes of another one.
    unchanged = () if node.get("quantizer", "vq") == "vq" else ("code_dim", "codebook_size")
    for option, value in node.items():
        size = None if option in unchanged else SMALL.get(option)
        if type(value) is int and type(size) is int:
            small[option] = min(value, size)
        elif isinstance(value, (tuple, list)) and isinstance(size, tuple):
            small[option] = size
    return small


def _chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen for a component, beside which one it is."""
    return {k: v for k, v in values.items() if k != "name"}
