"""The page of results: every row is one command of a recipe, its data and a seed."""

from __future__ import annotations

import re

import pytest
from pages import DOCS

from trajgen.config import Config, compose, data_files, task_words
from trajgen.experiments import dry_run

PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
WINDOW = {"data.horizon", "data.stride", "data.chunk", "data.discount", "data.return_power"}
STEPS = re.compile(r"engine\.stages\.\w+\.steps")
MOST = 3
"""Options that a task may have besides those of its window and numbers of steps."""


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows() -> list[tuple[str, ...]]:
    """The words of the command of each row: of the mazes, of the family, and of the sets in place of the hub's."""
    mazes = [cells(line)[:2] for line in section("The three mazes").splitlines() if re.match(r"\| (\w+) \| \d", line)]
    commands = [("recipe=mage", f"data=pointmaze/{maze}-dwell", f"seed={seed}") for maze, seed in mazes]
    family = [cells(line)[0].strip("`") for line in section("The family under one protocol").splitlines()
              if re.match(r"\| `\w+` \| 0\.", line)]  # fmt: skip
    commands += [(f"recipe={recipe}", "data=pointmaze/medium-dwell", "seed=0") for recipe in family]
    sets = section("Adroit, Kitchen, locomotion and AntMaze")
    presets = {
        name: (data, own) for name, data, own in re.findall(r"^\| (.+?) \| `([\w/-]+)` \| `([\w/-]+)` \|$", sets, re.M)
    }
    task, recipes = "", set[tuple[str, str]]()
    for line in sets.partition("| task | recipe |")[2].partition("\n\n")[0].splitlines()[2:]:
        task = cells(line)[0] or task
        if match := re.match(r"`(\w+)`", cells(line)[1]):
            recipes.add((task, match[1]))
    commands += [
        (f"recipe={recipe}", f"data={presets[task][0]}", f"data.id={presets[task][1]}", "seed=0")
        for task, recipe in sorted(recipes)
    ]
    return commands


def test_the_rows_are_found() -> None:
    assert len(rows()) > 9 + 12 + 30


@pytest.mark.parametrize("data", sorted({word for words in rows() for word in words if word.startswith("data=")}))
def test_every_row_composes_from_recipe_data_and_seed(data: str) -> None:
    for words in (words for words in rows() if data in words):
        config: Config = compose(words)
        assert config.recipe == words[0].removeprefix("recipe=") and f"seed={config.seed}" == words[-1]
        dry_run(config)


@pytest.mark.parametrize("task", data_files())
def test_a_task_has_few_options_besides_its_window_and_steps(task: str) -> None:
    words = [word.partition("=")[0] for word in task_words(["recipe=mage", f"data={task}"])]
    assert len([word for word in words if word not in WINDOW and not STEPS.fullmatch(word)]) <= MOST


def test_no_command_of_mage_on_the_page_repeats_what_its_task_composes() -> None:
    for line in re.findall(r"^trajgen train .*recipe=mage.*$", PAGE, re.MULTILINE):
        words = [word for word in line.split()[2:] if not word.startswith("-")]
        assert not {*words} & {*task_words([word for word in words if word.startswith(("recipe=", "data="))])}, line
