"""The page of results: every row is one command of a recipe, its data and a seed."""

from __future__ import annotations

import re

import pytest
from pages import DOCS

from trajgen.config import Config, compose, data_files, task_words
from trajgen.experiments import dry_run

PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
WINDOW = {"data.horizon", "data.stride", "data.chunk", "data.discount", "data.return_power"}
FREE = re.compile(r"engine\.stages\.\w+\.steps|(engine\.stages\.)?encoder(\..+)?")
"""Numbers of steps, and the encoder, which belongs to the images of the data."""
MOST = 3
"""Options that a task may have besides those and the window's."""


def section(title: str) -> str:
    return re.split(r"\n##+ ", PAGE.partition(f"## {title}\n")[2])[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(title: str) -> list[list[str]]:
    """The cells of the first table of a section; a first cell that is left out is that of the row above."""
    lines = [line for line in section(title).partition("\n|")[2].partition("\n\n")[0].splitlines() if "---" not in line]
    rows = [cells(line) for line in lines if line.startswith("|")]
    for row, above in zip(rows[1:], rows, strict=False):
        row[0] = row[0] or above[0]
    return rows


def stand_in(task: str) -> tuple[str, ...]:
    """The set that stands in for the hub's."""
    name = {"kitchen/complete": "kitchen/scripted-complete"}.get(task, task)
    return () if task.startswith("pointmaze") else (f"data.id=local/{name}-v0",)


def rows() -> list[tuple[str, ...]]:
    """The words of the command of each row: of the present recipes, the family, and the other tasks."""
    commands = []
    for task, recipe in (row[:2] for row in table("The present recipes")):
        task, (name, *options) = task.strip("`"), recipe.split("`")[1].split()
        commands.append((f"recipe={name}", *options, f"data={task}", *stand_in(task), "seed=0"))
    family = [row[0].split("`")[1] for row in table("The family under one protocol")]
    commands += [(f"recipe={recipe}", "data=pointmaze/medium-dwell", "seed=0") for recipe in family]
    for task in (row[0].strip("`") for row in table("Adroit, Kitchen, locomotion and AntMaze")):
        commands += [(f"recipe={recipe}", f"data={task}", *stand_in(task), "seed=0") for recipe in ("mage", "bc", "dt")]
    return commands


def test_the_rows_are_found() -> None:
    assert len(rows()) >= 14 + 10 + 3 * 12


@pytest.mark.parametrize("data", sorted({word for words in rows() for word in words if word.startswith("data=")}))
def test_every_row_composes_from_recipe_data_and_seed(data: str) -> None:
    for words in {words[:-1]: words for words in rows() if data in words}.values():  # of all seeds, one
        config: Config = compose(words)
        assert config.recipe == words[0].removeprefix("recipe=") and f"seed={config.seed}" == words[-1]
        dry_run(config)


@pytest.mark.parametrize("task", data_files())
def test_a_task_has_few_options_besides_its_window_and_steps(task: str) -> None:
    words = [word.partition("=")[0] for word in task_words(["recipe=mage", f"data={task}"])]
    assert len([word for word in words if word not in WINDOW and not FREE.fullmatch(word)]) <= MOST


def test_no_command_of_mage_on_the_page_repeats_what_its_task_composes() -> None:
    for line in re.findall(r"^trajgen train .*recipe=mage.*$", PAGE, re.MULTILINE):
        words = [word for word in line.split()[2:] if not word.startswith("-")]
        assert not {*words} & {*task_words([word for word in words if word.startswith(("recipe=", "data="))])}, line
