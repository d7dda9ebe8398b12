"""What a task needs of a recipe is composed by itself, and gives way to what a person types."""

from __future__ import annotations

from pathlib import Path

import pytest

from trajgen.config import compose, task_words
from trajgen.core.errors import ConfigError
from trajgen.core.options import entry
from trajgen.experiments.preparation import dry_run

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


@pytest.mark.parametrize("typed", ["return_target.quantile=0.5", "return_target={quantile: 0.5}"])
def test_an_option_of_a_component_holds_the_component(typed: str, folder: Path) -> None:
    words = ["data=task.yaml", typed]
    assert not any(word.startswith("return_target") for word in task_words(words))
    node = compose(words).components["return_target"]
    assert node["name"] == "quantile" and node["quantile"] == 0.5


TYPED = {
    "action={depth: 3}": 3,
    "policy={replan_interval:3}": 3,
    "engine.stages={prior: {steps: 3}}": 3,
    "engine={stages:{prior:{steps:3}}}": 3,
    "~engine.stages.prior": None,
}


@pytest.mark.parametrize("typed", TYPED)
def test_groups_and_what_is_removed_come_first_too(typed: str, folder: Path) -> None:
    (folder / "long.yaml").write_text(f"{PRESET.rstrip()[:-1]}, engine.stages.prior.steps=9]\n")
    words = ["data=long.yaml", typed]
    options = (("action", "depth"), ("policy", "replan_interval"), ("engine", "stages", "prior", "steps"))
    (path,) = (path for path in options if path[0] in typed)
    assert not any(word.startswith(".".join(path)) for word in task_words(words)) and len(task_words(words)) == 5
    assert entry(compose(words).to_plain(), path) == TYPED[typed]


@pytest.mark.parametrize("value", ["false", "False"])
def test_one_option_switches_them_off(value: str, folder: Path) -> None:
    words = ["data=task.yaml", f"task_options={value}"]
    assert task_words(words) == [] and compose(words).policy.replan_interval == 4


def test_a_recipe_switches_them_off(folder: Path) -> None:
    (folder / "off.yaml").write_text("defaults: [mage]\ntask_options: false\n")
    words = ["recipe=off.yaml", "data=task.yaml"]
    config = compose(words)
    assert task_words(words) == [] and config.policy.replan_interval == 4 and not config.task_options
    assert compose([*words, "task_options=true"]).policy.replan_interval == 1


def test_they_are_those_of_the_data_that_a_recipe_names(folder: Path) -> None:
    (folder / "mine.yaml").write_text("defaults: [mage, override /data: task.yaml]\n")
    config = compose(["recipe=mine.yaml"])
    assert config.policy.replan_interval == 1
    assert config.identity() | {"recipe": "mage"} == compose(["recipe=mage", "data=task.yaml"]).identity()
    assert compose(["recipe=mine.yaml", "data=pointmaze/umaze-dwell"]).policy.replan_interval == 4


def test_they_are_for_a_recipe_and_for_those_that_inherit_it(folder: Path) -> None:
    (folder / "mine.yaml").write_text("defaults: [flat]\nschedule: {name: two_level}\n")
    assert len(task_words(["recipe=mine.yaml", "data=task.yaml"])) == 5  # flat inherits mage
    assert task_words(["recipe=bc", "data=task.yaml"]) == []
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


def test_those_of_a_component_that_a_recipe_replaces_are_left_out(folder: Path) -> None:
    """Flow is diffuser with another prior and another sampler."""
    options = "policy.replan_interval=1, prior.depth=2, prior.value=true, sampler.value_scale=0.5"
    (folder / "task.yaml").write_text(
        f"defaults: [/data/pointmaze/umaze-dwell]\nrecipes: {{diffuser: [{options}], flow: [sampler.steps=3]}}\n"
    )
    assert task_words(["recipe=diffuser", "data=task.yaml"]) == options.split(", ")
    assert task_words(["recipe=flow", "data=task.yaml"]) == ["policy.replan_interval=1", "sampler.steps=3"]
    config = compose(["recipe=flow", "data=task.yaml"])
    assert config.components["sampler"]["steps"] == 3 and config.components["prior"]["name"] == "flow"


AT_GOAL = {
    "pointmaze/medium-dwell": "at_rest",
    "maze2d/umaze": "at_rest",
    "ogbench/pointmaze-giant-stitch": "at_rest",
    "antmaze/large-play": True,
    "ogbench/antmaze-giant-stitch": True,
    "ogbench/humanoidmaze-medium-navigate": True,
    "ogbench/humanoidmaze-medium-stitch": True,
    "ogbench/cube-single-play": True,
    "ogbench/scene-play": True,
}
"""Where a state is a position and its velocity, a plan ends at rest; a body's posture at a goal is not known."""


@pytest.mark.parametrize("recipe", ["diffuser", "hd", "flow"])
@pytest.mark.parametrize("data", AT_GOAL)
def test_a_plan_ends_at_the_goal_and_where_a_body_is_a_point_at_rest(data: str, recipe: str) -> None:
    config = compose([f"recipe={recipe}", f"data={data}"])
    assert config.components["tokenizer"]["inpaint_goal"] == AT_GOAL[data]
    dry_run(config)


@pytest.mark.parametrize("recipe", ["diffuser", "hd", "flow", "dd", "dv"])
@pytest.mark.parametrize(
    "data",
    ["adroit/pen-expert", "kitchen/mixed", "multi2d/umaze", "agents/spread"]
    + [name for name in AT_GOAL if "ogbench" in name],
)
def test_where_episodes_have_an_end_of_their_own_inverse_dynamics_learn_it(data: str, recipe: str) -> None:
    options = compose([f"recipe={recipe}", f"data={data}"]).data
    assert options.ends_with_task or options.max_padding == 1.0


@pytest.mark.parametrize("recipe", ["diffuser", "hd", "flow", "dv", "carp"])
@pytest.mark.parametrize("data", ["antmaze/umaze", "kitchen/complete", "ogbench/antmaze-giant-stitch"])
def test_a_plan_is_followed_for_steps_that_its_actions_were_trained_at(data: str, recipe: str) -> None:
    config = compose([f"recipe={recipe}", f"data={data}"])
    assert config.data.chunk >= min(config.policy.replan_interval, config.data.stride)
    dry_run(config)


LEARNT = {
    **dict.fromkeys(("diffuser", "hd", "flow", "dd", "dv"), ("absorbing_goals", True)),  # plans that stay at their goal
    "tap": ("absorbing_terminals", True),  # ends between two points
    **dict.fromkeys(("bc", "iql"), ("horizon", 1)),  # the last steps before a timeout
    "hiql": ("horizon", 4),  # up to its subgoal
}
"""What recipes learn of the data by an option."""


@pytest.mark.parametrize("recipe", LEARNT)
def test_recipes_learn_the_ends_of_ways_and_of_episodes(recipe: str) -> None:
    option, value = LEARNT[recipe]
    assert getattr(compose([f"recipe={recipe}", "data=pointmaze/medium-dwell"]).data, option) == value


@pytest.mark.parametrize("data", ["antmaze/umaze", "ogbench/antmaze-giant-stitch"])
def test_plans_of_positions_are_chosen_by_their_length(data: str) -> None:
    config = compose(["recipe=mage_critic", f"data={data}"])
    assert config.components["critic"]["name"] == "length"
    dry_run(config)
