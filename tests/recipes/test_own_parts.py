"""Recipes and components of a person's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from trajgen.cli import main
from trajgen.config import absolute_paths, compose
from trajgen.core import registry
from trajgen.core.errors import ConfigError
from trajgen.core.pairing import needs
from trajgen.core.registry import load_imports
from trajgen.samplers.autoregressive import AutoregressiveSampler

if TYPE_CHECKING:
    from trajgen.core.critics import Critic

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
return_target: {name: constant, value: 5.0}
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
    for key in [key for key, (spec, _) in registry._registered.items() if spec.module in ("lab_parts", __name__)]:
        del registry._registered[key]
    sys.modules.pop("lab_parts", None)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(list(words))
    return capsys.readouterr().out


def test_an_own_component_is_listed_and_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert "coin" not in printed(capsys, "list", "sampler")
    listed = printed(capsys, "list", "sampler", "imports=[lab_parts]")
    assert "coin" in listed and "Throws a coin among the first codes." in listed and "sides=2" in listed
    config = compose(["imports=[lab_parts]", "sampler=coin", "sampler.sides=4"])
    assert config.components["sampler"] == {"name": "coin", "sides": 4} and config.imports == ("lab_parts",)


def test_an_own_recipe_from_a_path(lab: Path) -> None:
    config = compose([f"recipe={lab / 'mine.yaml'}"])
    assert config.recipe == "mine" and config.engine.stages["prior"].steps == 7
    assert config.components["sampler"] == {"name": "coin", "sides": 3}
    assert config.components["tokenizer"]["codebook_size"] == 32 and config.components["schedule"] == {"name": "single"}
    swapped = compose([f"recipe={lab / 'mine.yaml'}", "sampler=greedy"])
    assert swapped.components["sampler"] == {"name": "greedy", "guidance": 0.0}


def test_own_data_from_a_path(lab: Path) -> None:
    (lab / "here.yaml").write_text("data: {id: lab/points-v3, horizon: 64}\n")
    data = compose([f"data={lab / 'here.yaml'}"]).data
    assert (data.id, data.horizon, data.maker) == ("lab/points-v3", 64, None)


def test_an_own_component_draws(lab: Path) -> None:
    import tiny

    registry.load_imports(["lab_parts"])
    planner = tiny.planner(sampler={"name": "coin"})
    codes = planner.plan(tiny.cond(50), torch.Generator().manual_seed(0)).codes
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


@pytest.mark.parametrize("default", [nn.GELU, object(), (1, {2})])
def test_a_default_that_no_recipe_can_hold_is_refused(default: Any) -> None:
    def odd(*, activation: Any = default) -> None: ...

    with pytest.raises(ConfigError, match="'activation' of sampler 'odd' cannot be written into a recipe"):
        registry.register("sampler", "odd")(odd)


def test_annotations_that_no_option_has_may_be_for_type_checkers() -> None:
    @registry.register("sampler", "typed")
    def typed(critic: Critic, *, p: float = 0.1) -> AutoregressiveSampler: ...

    @registry.register("sampler", "badly_typed")
    def badly_typed(*, p: Critic = 0.1) -> Critic: ...

    assert registry.complete("sampler", {"name": "typed", "p": 1}) == {"name": "typed", "p": 1.0}
    assert needs(typed) == AutoregressiveSampler.needs
    with pytest.raises(ConfigError, match=r"'p' cannot be read.*\n.*badly_typed: p: Critic"):
        registry.complete("sampler", {"name": "badly_typed", "p": 1})
    with pytest.raises(ConfigError, match="'return' cannot be read"):
        needs(badly_typed)


def test_wiring_that_nothing_provides_is_refused() -> None:
    @registry.register("sampler", "greedy_for_goals")
    def greedy_for_goals(goals: int) -> None:
        """Wants more than there is."""

    with pytest.raises(ConfigError, match="requires goals before its") as caught:
        registry.build("sampler", {"name": "greedy_for_goals"}, schedule=None)
    assert caught.value.fix


def test_a_recipe_may_have_a_component_s_name(lab: Path) -> None:
    (lab / "mine.yaml").rename(lab / "greedy.yaml")
    assert compose(["recipe=greedy.yaml"]).components["sampler"]["name"] == "coin"
    assert compose(["recipe=greedy.yaml", "sampler=greedy"]).components["sampler"]["name"] == "greedy"


def test_own_files_may_lie_anywhere(lab: Path) -> None:
    (lab / "my x=é (1)").mkdir()
    path = (lab / "mine.yaml").rename(lab / "my x=é (1)" / "it's, mine.yaml")
    assert compose([f"recipe={path}"]).recipe == "it's, mine"
    (word,) = absolute_paths([f"recipe={path.relative_to(lab)}"])
    assert compose([word]) == compose([f"recipe={path}"])  # as a command repeats it


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "view: fields\n", "view: {fields: [state]}\n", "a: [\n", "view: {name: fiels}\n"]
)
def test_a_malformed_recipe_is_refused(text: str, lab: Path) -> None:
    (lab / "broken.yaml").write_text(text)
    with pytest.raises(ConfigError):
        compose(["recipe=broken.yaml"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def broken(:\n", r"SyntaxError[\s\S]*correct .*odd_parts.py, line 1"),
        ("from odd_parts import later\nlater = 1\n", r"ImportError: cannot import name 'later'[\s\S]*line 1"),
        ("x = 1\n1 / 0\n", r"ZeroDivisionError[\s\S]*odd_parts.py, line 2"),
        ("import no_such_dependency\n", "install no_such_dependency, which it imports"),
    ],
)
def test_a_module_that_cannot_be_imported_says_where(
    text: str, words: str, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab / "odd_parts.py").write_text(text)
    monkeypatch.syspath_prepend(str(lab))
    monkeypatch.delitem(sys.modules, "odd_parts", raising=False)
    with pytest.raises(ConfigError, match=words):
        load_imports(["odd_parts"])
