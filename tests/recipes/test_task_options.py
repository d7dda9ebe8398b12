"""What a task needs of a recipe is composed by itself, and gives way to what a person types."""

from __future__ import annotations

from pathlib import Path

import pytest

from trajgen.config import compose, task_words
from trajgen.core.errors import ConfigError

PRESET = """
defaults: [/data/pointmaze/umaze-dwell]
recipes:
  mage: [planner.inverse_weight=0, action.depth=4, policy.replan_interval=1, return_target=constant,
    return_target.value=2]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yaml").write_text(PRESET)
    return tmp_path


def test_options_of_the_task_are_composed(folder: Path) -> None:
    config = compose(["recipe=mage", "data=task.yaml"])
    assert config.components["planner"]["inverse_weight"] == 0 and config.components["action"]["depth"] == 4
    assert config.policy.replan_interval == 1
    assert config.components["return_target"] == {"name": "constant", "value": 2.0, "subtract_rewards": True}


def test_what_is_typed_comes_first(folder: Path) -> None:
    config = compose(["data=task.yaml", "policy.replan_interval=2", "action=latent", "return_target=quantile"])
    assert config.policy.replan_interval == 2 and config.components["planner"]["inverse_weight"] == 0
    assert config.components["action"]["depth"] != 4 and config.components["return_target"]["name"] == "quantile"


def test_one_option_switches_them_off(folder: Path) -> None:
    words = ["data=task.yaml", "task_options=false"]
    assert task_words(words) == [] and compose(words).policy.replan_interval == 4


def test_they_are_for_a_recipe_and_for_those_that_inherit_it(folder: Path) -> None:
    (folder / "mine.yaml").write_text("defaults: [flat]\nschedule: {name: two_level}\n")
    assert len(task_words(["recipe=mine.yaml", "data=task.yaml"])) == 5  # flat inherits mage
    assert task_words(["recipe=dt", "data=task.yaml"]) == []
    assert compose(["recipe=dt", "data=task.yaml"]).policy.replan_interval == 1  # dt's own
    assert compose(["recipe=bc", "data=task.yaml"]).components["action"]["depth"] != 4
    (folder / "both.yaml").write_text(f"{PRESET}  flat: [action.depth=2]\n")
    for recipe, depth in (("mage", 4), ("mine.yaml", 2)):  # the nearer recipe's counts, and the rest of both
        config = compose([f"recipe={recipe}", "data=both.yaml"])
        assert (config.components["action"]["depth"], config.policy.replan_interval) == (depth, 1)


WRONG = ("[depth]", "{a: 1}", "mage", "[hydra.run.dir=x]", "[run_dir=elsewhere]", "[imports=os]")


@pytest.mark.parametrize("recipes", [*(f"{{mage: {options}}}" for options in WRONG), "[policy.seed=1]", "mage"])
def test_what_is_no_option_of_a_recipe_is_refused(recipes: str, folder: Path) -> None:
    (folder / "odd.yaml").write_text(f"defaults: [/data/pointmaze/umaze-dwell]\nrecipes: {recipes}\n")
    with pytest.raises(ConfigError, match="list of key=value"):
        compose(["data=odd.yaml"])
