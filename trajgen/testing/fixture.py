"""The fixture of contract checks: a component in a small composition of shipped parts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trajgen.assemble import WindowShape, all_stages, assemble, build_encoder
from trajgen.config import merged, read_options, recipe_files
from trajgen.config.files import find_file, missing
from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import values_of
from trajgen.core.planning import subgoal_of
from trajgen.core.registry import KINDS, complete, spec
from trajgen.core.types import Batch, Cond, Plan, Space, Transitions

SPACE = Space(state_dim=4, action_dim=2, goal_dim=2, agents=2, action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
IMAGE_SHAPE = (16, 16, 3)
GOAL_STATE, GOAL_RADIUS = (0, 1), 0.5
WINDOW_OPTIONS = ("horizon", "stride", "chunk", "discount", "return_power")
"""Options of data that can be given to a check."""
HORIZON, STRIDE, CHUNK = 16, 3, 4
"""The largest windows that components are checked on."""

SMALL: dict[str, Any] = {
    "latent_length": 4, "code_dim": 6, "codebook_size": 12, "width": 16, "depth": 2, "heads": 2, "bottleneck": 8,
    "fourier_frequencies": 2, "k": 5, "n": 3, "scales": 3, "lengths": (1, 3, 4), "num_bins": 8,
    "timesteps": 10, "steps": 5, "expansions": 2, "backbone": "test_resnet",
}  # fmt: skip
"""Sizes of options of these names, in any component where they are larger."""

PREFERRED_RECIPES: dict[str, tuple[str, ...]] = {
    "encoder": ("bc", "mage"),
    "view": ("mage", "tap"),
    "schedule": ("mage", "flat_ar"),
    "tokenizer": ("mage", "flat_ar", "flat", "diffuser", "tt"),
    "prior": ("mage", "flat_ar", "diffuser", "flow"),
    "decoder": ("mage", "tap", "diffuser"),
    "action": ("mage", "carp", "diffuser"),
    "critic": ("mage sampler=best_of_n", "iql"),
    "sampler": ("mage", "tap", "diffuser", "flow"),
    "planner": ("mage", "bc", "dt", "hierarchy"),
}
"""For each kind, the compositions that are tried before the other recipes: one of scales, one of tokens in a row, one
that denoises. The first that accepts the component is taken."""

MAX_REMOVALS = 3
"""How often the advice to leave out unused kinds is followed."""


@dataclass(frozen=True)
class Composition:
    """The parts of a recipe at small sizes."""

    recipe: str
    nodes: dict[str, dict[str, Any]]
    window: WindowShape
    changes: tuple[str, ...] = ()
    """What differs from the recipe, as words of a command line."""
    reduced: tuple[str, ...] = ()
    """Sizes that are smaller than the recipe's, so that checks are quick, as words of a command line."""

    def without(self, kinds: list[str]) -> Composition:
        """The same composition without some kinds."""
        nodes = {kind: node for kind, node in self.nodes.items() if kind not in kinds}
        return replace(self, nodes=nodes, changes=(*self.changes, *(f"'~{kind}'" for kind in kinds)))

    def __str__(self) -> str:
        return " ".join([f"recipe={self.recipe}", *self.changes])


@dataclass
class Example:
    """A batch, and what the parts of a planner make of it."""

    batch: Batch
    cond: Cond
    x: Tensor  # (B, T, D)
    codes: Tensor  # (B, L) or (B, L, C)
    vectors: Tensor  # (B, L, C)
    inputs: Tensor  # (B, L - l_1, C)
    latent: Tensor  # (B, N, C)
    plan: Plan


class Fixture:
    """A component in a small composition.

    Args:
        kind, name: of the component.
        composition: has it among its nodes, and accepts it.
    """

    def __init__(self, kind: str, name: str, composition: Composition) -> None:
        self.kind, self.name, self.composition = kind, name, composition
        self._ready: dict[tuple[int, bool], dict[str, Tensor]] = {}

    @property
    def space(self) -> Space:
        """Of the data; with images if an encoder is checked."""
        return replace(SPACE, image_shape=IMAGE_SHAPE) if self.kind == "encoder" else SPACE

    @cached_property
    def state_dim(self) -> int:
        """S, the features of images among them."""
        if self.kind != "encoder":
            return SPACE.state_dim
        return SPACE.state_dim + int(build_encoder(self.composition.nodes["encoder"], self.space).features)

    def build(self, seed: int = 0, *, perturbed: bool = True, goals: bool = True, fitted: bool = True) -> Any:
        """A planner with fresh weights, perturbed so that nothing holds only because weights start at zero."""
        torch.manual_seed(seed)
        planner = assemble(self.composition.nodes, self.space, replace(self.composition.window, goals=goals))
        if fitted and (subgoal := subgoal_of(planner)) is not None:
            subgoal.fit(*walks())
        return perturb(planner) if perturbed else planner

    def build_ready(self, seed: int = 0, *, goals: bool = True) -> Any:
        """A planner in evaluation mode, each stage of which has had one batch, so that its codes are in use."""
        planner = self.build(seed, goals=goals)
        with contextlib.suppress(Exception):  # a stage that fails is reported by the contracts about training
            if (seed, goals) in self._ready:
                planner.load_state_dict(self._ready[seed, goals])
            else:
                for stage in all_stages(planner):
                    if stage.parameters:
                        stage.begin(planner)
                        stage.loss(self.batch(32, goals=goals))
                        if stage.after_step is not None:
                            stage.after_step()
                self._ready[seed, goals] = deepcopy(planner.state_dict())
        return planner.requires_grad_(True).eval()

    @cached_property
    def planner(self) -> Any:
        """A shared planner from `build_ready`; a check that changes weights builds its own."""
        return self.build_ready()

    @cached_property
    def other(self) -> Any:
        """A second shared planner, with weights of its own."""
        return self.build_ready(seed=5)

    @cached_property
    def component(self) -> Any:
        """The component in `planner`."""
        return self.part(self.planner)

    def part(self, planner: Any, kind: str | None = None) -> Any:
        """A part of a planner, by default the checked component; None if the planner has none of this kind."""
        kind = kind or self.kind
        if kind == "planner":
            return planner
        if kind not in self.composition.nodes:
            return None
        if kind == "schedule":
            return self.part(planner, "tokenizer").schedule
        parts = (getattr(module, kind, None) for module in planner.modules())
        return next((part for part in parts if part is not None), None)

    def batch(self, size: int = 6, *, seed: int = 1, goals: bool = True, padded: bool = True) -> Batch:
        """Random windows, half of which end in padding; a window's goal is the position of its last point, at rest."""
        generator, window = torch.Generator().manual_seed(seed), self.composition.window

        def randn(*shape: int) -> Tensor:
            return torch.randn(size, *shape, generator=generator)

        strides = torch.tensor(window.strides)
        stride = None if len(strides) == 1 else strides[torch.arange(size) % len(strides)]
        mask = torch.ones(size, window.horizon, dtype=torch.bool)
        chunk_mask = torch.ones(size, window.chunk, dtype=torch.bool)
        if padded:
            mask[size // 2 :, -(-window.horizon // 2) :] = False
            chunk_mask[-1, 1:] = False
        states = randn(window.horizon, self.state_dim)
        states[:, -1, len(GOAL_STATE) :] = 0  # at rest, where normalizers are not fitted
        end_positions = states[:, -1, list(GOAL_STATE)]
        batch = Batch(
            states=states,
            actions=randn(window.horizon, window.strides[0] if stride is None else 0, SPACE.action_dim),
            rewards=randn(window.horizon),
            returns=randn(window.horizon),
            mask=mask,
            chunk_states=randn(window.chunk, self.state_dim),
            chunk_actions=randn(window.chunk, SPACE.action_dim),
            chunk_mask=chunk_mask,
            goals=end_positions if goals else None,
            time=torch.arange(size),
            stride=stride,
        )
        further = torch.stack([end_positions, randn(SPACE.goal_dim)], dim=1)
        transitions = Transitions(
            next_states=randn(window.chunk, self.state_dim),
            rewards=randn(len(further[0]), window.chunk),
            terminals=randn(len(further[0]), window.chunk) > 1,
            mask=chunk_mask,
            goals=further,
        )
        if not goals:
            rewards, terminals = transitions.rewards[:, :1], transitions.terminals[:, :1]
            transitions = replace(transitions, rewards=rewards, terminals=terminals, goals=None)
        if self.kind == "encoder":
            batch = replace(batch, images=self.images(size, seed=seed))
        return replace(batch, transitions=transitions)

    def images(self, size: int = 6, *, seed: int = 1) -> Tensor:
        """Random pairs of images (B, 2, height, width, channels)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(256, (size, 2, *IMAGE_SHAPE), generator=generator, dtype=torch.uint8)

    def cond(self, size: int = 6) -> Cond:
        """Random conditions."""
        return self.batch(size).condition()

    def example(self, planner: Any = None, batch: Batch | None = None) -> Example:
        """A batch with what the parts of a planner make of it; by default of the shared planner and `batch()`."""
        planner, batch = planner or self.planner, batch or self.batch()
        cond = batch.condition()
        view, tokenizer = self.part(planner, "view"), self.part(planner, "tokenizer")
        x = batch.states if view is None else view(batch)
        if tokenizer is None:
            plan = replace(planner.plan(cond, torch.Generator().manual_seed(0)), noise=None)
            return Example(batch, cond, x, plan.codes, plan.latent, plan.latent[:, :0], plan.latent, plan)
        with torch.no_grad():
            encoding = tokenizer.encode(x)
            vectors = tokenizer.vectors(encoding.codes)
        plan = Plan(encoding.codes, encoding.latent, x, stride=cond.stride)
        return Example(batch, cond, x, encoding.codes, vectors, encoding.inputs, encoding.latent, plan)

    def windows(self) -> Tensor:
        """The features (B, T, D) of `batch()`."""
        x: Tensor = self.part(self.planner, "view")(self.batch())
        return x


def walks(episodes: int = 20, steps: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Positions (M, G) of random walks from the origin, and the first row of each."""
    moves = np.random.default_rng(0).normal(0, 0.3, (episodes, steps, SPACE.goal_dim))
    return moves.cumsum(1).reshape(-1, SPACE.goal_dim), np.arange(episodes) * steps


def perturb(module: nn.Module, amount: float = 0.2) -> nn.Module:
    """Adds noise to all weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)
    return module


def select(batch: Batch, rows: slice | list[int]) -> Batch:
    """Some windows of a batch."""
    return batch.map(lambda values: values[rows])


def input_spans(lengths: tuple[int, ...]) -> Iterator[tuple[int, slice, slice]]:
    """For each scale: its index, its slice of the tokens, and its slice of the teacher-forcing inputs."""
    start, first = 0, lengths[0]
    for k, n in enumerate(lengths):
        yield k, slice(start, start + n), slice(start - first, start + n - first) if k else slice(0, 0)
        start += n


def find_fixture(kind: str, name: str, recipe: str | None = None, changes: Mapping[str, Any] | None = None) -> Fixture:
    """The component in the first composition that accepts it.

    Args:
        kind, name: of the component.
        recipe: a recipe's name, or a path to one; None tries the shipped ones.
        changes: plain values that override the recipe's, as ``{"schedule": {"name": "unit"}}``.

    Raises:
        ConfigError: if no composition accepts it: the first refusal.
        Exception: whatever the component raises when it is built.
    """
    refusals: list[ConfigError] = []
    candidates = [(recipe, {})] if recipe else _candidates(kind)
    for removals in (0, MAX_REMOVALS):  # kinds are left out only where no recipe accepts the component as a whole
        for each, preset in candidates:
            for shrunk in (True, False):
                composition = _composition(each, kind, name, merged(preset, changes or {}), shrunk)
                result = _try(Fixture(kind, name, composition), removals)
                if isinstance(result, Fixture):
                    return result
                refusals.append(result)
    raise min(refusals, key=lambda refusal: "~" in (refusal.fix or ""))  # rather than one about unused kinds


def _try(fixture: Fixture, removals: int) -> Fixture | ConfigError:
    """The fixture if it can be built, if need be without unused kinds; otherwise the refusal."""
    try:
        fixture.build()
    except ConfigError as refusal:
        composition = fixture.composition
        unused = [kind for kind in re.findall(r"'~(\w+)'", refusal.fix or "") if kind in composition.nodes]
        if not removals or not unused or fixture.kind in unused:
            return refusal
        return _try(Fixture(fixture.kind, fixture.name, composition.without(unused)), removals - 1)
    return fixture


def _candidates(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The recipes to try, each with what is changed in it."""
    recipes = recipe_files()
    compositions = (words.split() for words in (*PREFERRED_RECIPES.get(kind, ("mage",)), *recipes))
    return [(recipe, values_of(changes)) for recipe, *changes in compositions if recipe in recipes]


def _composition(recipe: str, kind: str, name: str, changes: Mapping[str, Any], shrunk: bool) -> Composition:
    plain = _read_recipe(recipe)
    nodes = {k: complete(k, plain[k]) for k in KINDS if plain.get(k)}
    if kind != "planner" and "level" in spec("planner", nodes["planner"]["name"]).wiring:
        nodes["planner"] = spec("planner", "latent").defaults()  # one level of a hierarchy
    if nodes.get(kind, {}).get("name") != name:
        nodes[kind] = spec(kind, name).defaults()
    words = []
    window_changes = dict(changes.get("data", {}))
    for key, values in changes.items():
        if key == "data":
            words += [f"data.{option}={value}" for option, value in values.items()]
            continue
        if key not in KINDS or not isinstance(values, Mapping):
            raise ConfigError(
                f"Only components and the windows of data can be changed here, not '{key}'.",
                got=f"{key}={values}",
                fix="for example prior.width=8, schedule=unit, data.horizon=32, or recipe=flat_ar",
            )
        base = nodes if "name" not in values else {key: spec(key, values["name"]).defaults()}
        nodes[key] = merged(base, {key: values})[key]
        words += [f"{key}={v}" if option == "name" else f"{key}.{option}={v}" for option, v in values.items()]
    reduced = []
    for key, node in nodes.items():
        sizes = _small_sizes(node) if shrunk or key != kind else {}
        sizes = {option: size for option, size in sizes.items() if option not in changes.get(key, {})}
        reduced += [f"{key}.{option}={size}" for option, size in sizes.items() if size != node[option]]
        chosen = {option: value for option, value in changes.get(key, {}).items() if option != "name"}
        nodes[key] = complete(key, merged({**node, **sizes}, chosen))
    data = plain.get("data", {})
    largest = {"horizon": HORIZON, "stride": STRIDE, "chunk": CHUNK}
    shape = {option: min(data.get(option, size), size) for option, size in largest.items()}
    shape["chunk"] = min(shape["chunk"], shape["horizon"] * shape["stride"])
    reduced += [f"data.{o}={n}" for o, n in shape.items() if o not in window_changes and n != data.get(o, n)]
    window = WindowShape(return_power=1.0, goal_state=GOAL_STATE, goal_radius=GOAL_RADIUS)
    window = replace(window, **{**shape, **_checked(window_changes)})
    return Composition(recipe, nodes, window, tuple(words), tuple(reduced))


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options of data, all of which shape a window.

    Raises:
        ConfigError: for another option of data.
    """
    for option in options:
        if option not in WINDOW_OPTIONS:
            raise ConfigError(
                f"data.{option} does not shape a window, on which components are checked.",
                expected=", ".join(f"data.{name}" for name in WINDOW_OPTIONS),
                got=f"data.{option}={options[option]}",
                fix=nearest(option, WINDOW_OPTIONS),
            )
    return {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = find_file("recipe", recipe)
    if path is None:
        raise missing("recipe", recipe)
    plain = deepcopy(read_options("recipe", path))
    if not plain.get("planner"):
        raise ConfigError(f"The recipe {recipe} names no planner.", fix="planner: {name: latent}, as recipes/mage.yaml")
    return plain


def _small_sizes(node: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a component's node that `SMALL` reduces."""
    sizes: dict[str, Any] = {}
    fixed = () if node.get("quantizer", "vq") == "vq" else ("code_dim", "codebook_size")  # refused by other quantizers
    for option, value in node.items():
        size = None if option in fixed else SMALL.get(option)
        if type(value) is int and type(size) is int:
            sizes[option] = min(value, size)
        elif (isinstance(value, (tuple, list)) and isinstance(size, tuple)) or (
            isinstance(value, str) and isinstance(size, str)
        ):
            sizes[option] = size
    return sizes
