"""Every shipped recipe survives its own file; every component can be swapped in, or is refused with a cure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny
import torch
import yaml
from accepts import RECIPES

from trajgen.assemble import WindowShape, assemble
from trajgen.config import Config, compose, data_files, read_options, recipe_files
from trajgen.core.errors import ConfigError
from trajgen.core.options import structure
from trajgen.core.registry import KINDS, names, spec
from trajgen.data.options import DataOptions
from trajgen.experiments.preparation import dry_run

ROUNDS = 7
"""A composition that cannot work is cured by following the advice so many times at most."""


@pytest.fixture(scope="module")
def composed() -> dict[str, Config]:
    return {name: compose([f"recipe={name}"]) for name in recipe_files()}


@dataclass(frozen=True)
class Composition:
    """A recipe at a small size."""

    nodes: dict[str, dict[str, Any]]
    window: WindowShape

    @classmethod
    def of(cls, config: Config) -> Composition:
        data = config.data
        window = replace(tiny.WINDOW, stride=min(data.stride, tiny.STRIDE), chunk=min(data.chunk, tiny.CHUNK))
        return cls(config.components, window)

    def swapped(self, kind: str, node: dict[str, Any]) -> Composition:
        return replace(self, nodes={**self.nodes, kind: node})


def works(composed: Composition, *, built_only: bool = False) -> ConfigError | None:
    """Builds, trains one step of each stage and plans; or the refusal, which says how to cure it."""
    torch.manual_seed(0)
    try:
        images = (16, 16, 3) if "encoder" in composed.nodes else ()
        planner: Any = assemble(tiny.shrunk(composed.nodes), replace(tiny.SPACE, image_shape=images), composed.window)
    except ConfigError as refusal:
        tiny.check_cure(refusal)
        return refusal
    if built_only:
        return None
    space = replace(tiny.SPACE, state_dim=len(planner.normalizer.state.mean))
    batch = tiny.batch(16, space=space, stride=composed.window.stride, chunk=composed.window.chunk)
    trained = [stage for stage in planner.stages() if stage.parameters]
    assert trained
    for stage in trained:
        stage.begin(planner)
        optimizer = torch.optim.SGD(stage.trained, 1e-3)
        total = stage.loss(batch)["total"]
        assert torch.isfinite(total)
        total.backward()
        optimizer.step()
    planner.eval()
    cond = tiny.batch(3, space=space).condition()
    plan = planner.plan(cond, torch.Generator().manual_seed(0))
    if plan.trajectory is not None:
        assert plan.trajectory.shape[:2] == (3, tiny.HORIZON) and torch.isfinite(plan.trajectory).all()
        assert planner.refinements(plan, cond) and planner.condition_residuals(plan.trajectory, cond) is not None
    actions = planner.action(plan, tiny.batch(3, space=space).states[:, :1], torch.zeros(3, 1, dtype=torch.long))
    assert actions.shape == (3, 1, tiny.SPACE.action_dim) and torch.isfinite(actions).all()
    return None


def follow(advice: str, composed: Composition, recipes: dict[str, Config]) -> Composition:
    """The composition after the first of the cures that an error offers."""
    advice = re.split(r",? or ", advice)[0]
    overrides = re.findall(r"(~\w+|[a-z_]+(?:\.\w+)?=(?:\[[^\]]*\]|[\w./-]+))", advice)
    assert overrides, f"no cure can be read in: {advice}"
    for word in overrides:
        key, _, text = word.lstrip("~").partition("=")
        kind, _, option = key.partition(".")
        value = yaml.safe_load(text) if text else None
        if word.startswith("~"):
            composed = replace(composed, nodes={k: v for k, v in composed.nodes.items() if k != kind})
        elif kind == "recipe":
            composed = Composition.of(recipes[text])
        elif kind == "data":
            composed = replace(composed, window=replace(composed.window, **{option: value}))
        elif option:
            composed = composed.swapped(kind, {**composed.nodes[kind], option: value})
        else:
            composed = composed.swapped(kind, spec(kind, text).defaults())
    return composed


@pytest.mark.parametrize("name", recipe_files())
def test_a_recipe_survives_its_own_file(name: str, composed: dict[str, Config]) -> None:
    """``tests/docs/test_commands.py`` builds it at its real size, takes a step in each stage and plans."""
    config = composed[name]
    assert config.recipe == name and Config.from_plain(config.to_plain()) == config


@pytest.mark.parametrize("name", recipe_files())
def test_a_recipe_is_one_screen_and_says_what_it_is(name: str) -> None:
    lines = recipe_files()[name].read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and len(lines) <= 60


@pytest.mark.parametrize("name", data_files())
def test_a_data_preset_composes(name: str) -> None:
    from trajgen.data.store import ID
    from trajgen.envs.makers import MAKERS

    data = structure(DataOptions, read_options("data", data_files()[name])["data"], "data")
    assert ID.fullmatch(data.id)
    if data.maker is not None:
        assert MAKERS[data.maker].id == data.id
    if name == next(other for other in data_files() if other.split("/")[0] == name.split("/")[0]):  # one of a folder
        assert compose([f"data={name}"]).data.id == data.id


_built: dict[str, ConfigError | None] = {}
"""Of compositions, to which advice leads again and again."""


def builds(composed: Composition) -> ConfigError | None:
    key = repr(composed)
    if key not in _built:
        _built[key] = works(composed, built_only=True)
    return _built[key]


MATRIX = [(recipe, kind) for recipe in recipe_files() for kind in KINDS]


@pytest.mark.parametrize("built_only", [True, pytest.param(False, marks=pytest.mark.nightly)], ids=["built", "trained"])
@pytest.mark.parametrize(("recipe", "kind"), MATRIX, ids=lambda v: v)
def test_every_component_in_every_recipe_works_or_is_refused_with_a_cure(
    recipe: str, kind: str, built_only: bool, composed: dict[str, Config]
) -> None:
    """The recipes of the table build (nightly: train a step and plan); in others the error's advice leads to one."""
    assert set(RECIPES[kind]) == set(names(kind))
    tried = builds if built_only else works
    for name in names(kind):
        swapped = Composition.of(composed[recipe]).swapped(kind, spec(kind, name).defaults())
        refusal, refusals = tried(swapped), list[str]()
        assert (refusal is None) == (recipe in RECIPES[kind][name].split()), f"recipe={recipe} {kind}={name}: {refusal}"
        while refusal is not None and len(refusals) < ROUNDS:
            refusals.append(str(refusal))
            swapped = follow(str(refusal.fix), swapped, composed)
            refusal = tried(swapped)
        assert refusal is None, f"recipe={recipe} {kind}={name}: the advice leads nowhere\n" + "\n".join(refusals)


@pytest.mark.parametrize("name", recipe_files())
def test_every_recipe_composes_where_there_are_no_goals_but_those_that_need_one(name: str) -> None:
    config = compose([f"recipe={name}", "data=mujoco/hopper-medium-expert"])
    needs_more = {"hiql": "needs goals", "mage_graph": "positions on the way to a goal"}
    if name in needs_more:
        with pytest.raises(ConfigError, match=needs_more[name]):
            dry_run(config)
    else:
        dry_run(config)
