"""Recipes and components of a person's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trajgen.cli import main
from trajgen.core import registry
from trajgen.core.errors import ConfigError

PARTS = '''
"""Parts of a laboratory."""
import torch
from trajgen import register
from trajgen.samplers.autoregressive import AutoregressiveSampler


@register("sampler", "coin")
def coin(*, sides: int = 2) -> AutoregressiveSampler:
    """Throws a coin among the first codes."""
    return AutoregressiveSampler(lambda logits, rng: torch.randint(sides, logits.shape[:-1], generator=rng))


@register("schedule", "evens")
class Evens:
    """Even lengths."""
    def __init__(self, length: int, *, step: int = 2) -> None: ...
'''
RECIPE = """# A recipe of my own.
imports: [lab_parts]
view: {name: fields, fields: [state]}
schedule: {name: single}
tokenizer: {name: multiscale, codebook_size: 32}
conditioner: {name: fields}
prior: {name: transformer, depth: 2}
decoder: {name: plain}
action: {name: latent}
sampler: {name: coin, sides: 3}
target: {name: constant, value: 5.0}
planner: {name: latent}
engine: {stages: {prior: {steps: 7}}}
"""


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with own parts on the path; what they register is forgotten afterwards."""
    (tmp_path / "lab_parts.py").write_text(PARTS)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for key in [key for key, (found, _) in registry._own.items() if found.module in ("lab_parts", __name__)]:
        del registry._own[key]
    sys.modules.pop("lab_parts", None)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(list(words))
    return capsys.readouterr().out


def test_an_own_component_is_listed_and_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert "coin" not in said(capsys, "list", "sampler")
    listed = said(capsys, "list", "sampler", "imports=[lab_parts]")
    assert "coin" in listed and "Throws a coin among the first codes." in listed and "sides=2" in listed
    chosen = said(capsys, "train", "imports=[lab_parts]", "sampler=coin", "sampler.sides=4", "--cfg", "job")
    assert "name: coin" in chosen and "sides: 4" in chosen and "temperature" not in chosen.partition("sampler:")[2][:60]


def test_an_own_recipe_from_a_path(capsys: pytest.CaptureFixture[str], lab: Path) -> None:
    out = said(capsys, "train", f"recipe={lab / 'mine.yaml'}", "--cfg", "job")
    for line in ("recipe: mine", "name: coin", "sides: 3", "codebook_size: 32", "name: constant", "steps: 7"):
        assert line in out
    assert "scales:" not in out.partition("schedule:")[2].partition("tokenizer:")[0]
    swapped = said(capsys, "train", f"recipe={lab / 'mine.yaml'}", "sampler=greedy", "--cfg", "job")
    assert "name: greedy" in swapped and "sides" not in swapped


def test_own_data_from_a_path(capsys: pytest.CaptureFixture[str], lab: Path) -> None:
    (lab / "here.yaml").write_text("data: {id: lab/points-v3, horizon: 64}\n")
    out = said(capsys, "train", f"data={lab / 'here.yaml'}", "--cfg", "job")
    assert "id: lab/points-v3" in out and "horizon: 64" in out and "maker: null" in out


def test_an_own_component_draws(lab: Path) -> None:
    import tiny

    registry.load_imports(["lab_parts"])
    made = tiny.planner(sampler={"name": "coin"})
    codes = made.plan(tiny.cond(50), torch.Generator().manual_seed(0)).codes
    assert set(codes.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["greedy", "coin"])
def test_a_taken_name_is_refused(name: str) -> None:
    registry.load_imports(["lab_parts"])

    def other() -> None:
        """Another one."""

    with pytest.raises(ConfigError, match=f"'{name}' of kind 'sampler' is taken") as caught:
        registry.register("sampler", name)(other)
    assert "other" in str(caught.value.got) and f"my_{name}" in str(caught.value.fix)
    registry.register("sampler", "another")(other)
    registry.register("sampler", "another")(other)  # the same one again, as on a reload


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sampler'"):
        registry.register("sampelr", "coin")


def test_an_option_without_default_is_refused() -> None:
    def bare(*, sides: int) -> None: ...

    with pytest.raises(ConfigError, match="'sides' of sampler 'bare' has no default"):
        registry.register("sampler", "bare")(bare)


def test_wiring_that_nothing_provides_is_refused() -> None:
    @registry.register("sampler", "greedy_for_goals")
    def wants(goals: int) -> None:
        """Wants more than there is."""

    with pytest.raises(ConfigError, match="asks for goals before its") as caught:
        registry.build("sampler", {"name": "greedy_for_goals"}, schedule=None)
    assert caught.value.fix


def test_a_recipe_may_have_a_component_s_name(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lab / "mine.yaml").rename(lab / "greedy.yaml")
    out = said(capsys, "train", "recipe=greedy.yaml", "--cfg", "job")
    assert "recipe: greedy" in out and "name: coin" in out
    assert "name: coin" not in said(capsys, "train", "recipe=greedy.yaml", "sampler=greedy", "--cfg", "job")


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "view: fields\n", "view: {fields: [state]}\n", "a: [\n", "view: {name: fiels}\n"]
)
def test_a_malformed_recipe_is_refused(text: str, lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lab / "broken.yaml").write_text(text)
    with pytest.raises(SystemExit) as caught:
        main(["train", "recipe=broken.yaml"])
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("Error: ")
