"""The catalogue: every preset composes, says what it asks and how it is scored, and is listed."""

from __future__ import annotations

from dataclasses import asdict, replace

import gymnasium
import pytest

from trajgen.cli import main
from trajgen.cli.data import catalogue
from trajgen.config import compose, data_files
from trajgen.data.catalogue import facts
from trajgen.envs.gym import register_envs
from trajgen.experiments import dry_run
from trajgen.experiments.run_folder import run_name

TASKS = catalogue()
D4RL = {
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "door": (-56.512833, 2880.5693087298737),
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
}
"""Reference returns of D4RL, infos.py."""


def test_the_benchmarks_are_all_there() -> None:
    adroit = {
        f"adroit/{task}-{kind}"
        for task in ("pen", "hammer", "door", "relocate")
        for kind in ("human", "cloned", "expert")
    }
    ants = {f"antmaze/{kind}" for kind in ("umaze", "medium-play", "medium-diverse", "large-play", "large-diverse")}
    kitchens = {f"kitchen/{kind}" for kind in ("complete", "partial", "mixed")}
    bodies = {
        f"mujoco/{b}-{k}" for b in ("hopper", "halfcheetah", "walker2d") for k in ("medium", "expert", "medium-expert")
    }
    mazes = {
        f"{family}/{maze}" for family in ("maze2d", "multi2d", "pointmaze") for maze in ("umaze", "medium", "large")
    }
    assert adroit | ants | kitchens | bodies | mazes <= {*TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_all_that_a_score_depends_on(name: str) -> None:
    task = TASKS[name]
    for field in ("reward", "ends", "bounds", "return_target", "differs"):
        assert getattr(task.about, field), field
    assert task.what and task.eval_env and task.get
    assert {"what", "Minari id", "get", "train", "environment", "windows", "returns", "success", "bounds"} <= {
        *facts(task)
    }
    for bounds, pair in task.options.bounds.items() if not name.startswith("agents/") else ():
        assert pair == (D4RL[bounds.removeprefix("d4rl ")] if bounds.startswith("d4rl ") else (0.0, 1.0))
    assert task.options.bounds or name.split("/")[0] in ("chain", "pointmaze", "maze2d", "multi2d", "ogbench")


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        *(("mage", name) for name in ("adroit/door-human", "antmaze/umaze", "kitchen/mixed", "maze2d/large")),
        *(("dt", "mujoco/hopper-expert"), ("bc", "kitchen/mixed")),
    ],
)
def test_a_preset_composes_with_a_recipe(name: str, recipe: str) -> None:
    config = compose([f"recipe={recipe}", f"data={name}"])
    expected = asdict(TASKS[name].options)
    window_options = {"dt": ("horizon", "stride", "chunk"), "bc": ("horizon", "chunk")}.get(
        recipe, ()
    )  # a recipe's windows are its own
    assert {k: v for k, v in asdict(config.data).items() if k not in window_options} == {
        k: v for k, v in expected.items() if k not in window_options
    }


ADVISED = {tuple(words): name for name, task in TASKS.items() if (words := task.recipes.get("mage"))}
"""A task for each list of options that tasks have MAGE take."""


@pytest.mark.parametrize("name", ADVISED.values())
def test_what_mage_needs_there_is_composed_and_builds(name: str) -> None:
    words = TASKS[name].train.split()
    assert words == ["trajgen", "train", "recipe=mage", f"data={name}"]
    config = compose(words[2:])
    plain = compose([*words[2:], "task_options=false"])
    explicit = compose([*words[2:], *TASKS[name].recipes["mage"], "task_options=false"])
    assert replace(config, task_options=False).identity() == explicit.identity() != plain.identity()
    dry_run(config)


CHOSEN = {
    (tuple(task.recipes["mage_critic"]), bool(task.options.goal_state)): name
    for name, task in TASKS.items()
    if "mage_critic" in task.recipes
}
"""A task for each critic that tasks have MAGE choose plans by, with goals that specify the state and with others."""


@pytest.mark.parametrize("name", CHOSEN.values())
def test_plans_can_be_chosen_there_by_the_critic_of_the_task(name: str) -> None:
    config = compose(["recipe=mage_critic", f"data={name}"])
    has_goal_state = bool(TASKS[name].options.goal_state)
    assert config.components["critic"]["name"] == ("length" if has_goal_state else "value")
    dry_run(config)


def test_another_set_can_stand_in_for_a_task() -> None:
    config = compose(["data=adroit/door-human", "data.id=lab/adroit/door-human-v0", "data.success.steps=3"])
    assert config.data.id == "lab/adroit/door-human-v0" and config.data.success.steps == 3
    assert config.data.env_id == "AdroitHandDoor-v1"
    here = ["lab/adroit/door-human-v0", "lab/kitchen/scripted-mixed-v0", "lab/mujoco/hopper-medium-expert-v0", "odd-v0"]
    assert TASKS["adroit/door-human"].stand_ins(here) == here[:1]
    assert TASKS["kitchen/mixed"].stand_ins(here) == here[1:2]
    assert TASKS["mujoco/hopper-medium-expert"].stand_ins(here) == here[2:3]
    assert TASKS["mujoco/hopper-expert"].stand_ins(here) == []
    assert TASKS["adroit/door-human"].stand_ins(["D4RL/door/human-v2"]) == []


@pytest.mark.parametrize(
    "name", [name for name, task in TASKS.items() if task.options.env_id and "ogbench" not in name]
)
def test_the_environments_that_are_named_are_known(name: str) -> None:
    register_envs()
    spec = gymnasium.spec(TASKS[name].options.env_id)
    steps = TASKS[name].options.max_episode_steps
    assert steps == (100 if "pen" in name else spec.max_episode_steps)  # D4RL's pen is half as long


def test_the_list_and_a_task_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "list"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("adroit/door-human", "kitchen/partial", "mujoco/walker2d-expert"))
    main(["data", "info", "adroit/door-human"])
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "D4RL/door/human-v2",
        "trajgen data get D4RL/door/human-v2",
        "26 steps",
        "infos.py",
        "AdroitHandDoor-v1",
    ):
        assert part in shown, part


@pytest.mark.parametrize("name", ["antmaze/large-play", "mujoco/hopper-medium"])
def test_the_command_that_trains_can_be_copied(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "info", name])
    assert TASKS[name].train in capsys.readouterr().out.splitlines()


def test_names_of_presets_are_paths() -> None:
    assert all(name.count("/") == 1 for name in data_files())


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["data=adroit/door-human"], "mage-door-human-s0"),
        (["data=mujoco/hopper-medium"], "mage-hopper-medium-s0"),
        (["data=adroit/door-human", "data.id=lab/adroit/door-human-v0"], "mage-door-human-s0"),
        (["data=pointmaze/umaze-dwell"], "mage-umaze-dwell-s0"),
    ],
)
def test_a_run_is_called_after_its_task(words: list[str], name: str) -> None:
    assert run_name(compose(words)) == name
