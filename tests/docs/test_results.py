"""The page of results: every row of its tables by recipe is one command of a recipe, its data and a seed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from functools import cache

import pytest
from pages import DOCS, ROOT

from trajgen.config import Config, compose, data_files, task_words
from trajgen.data.options import DataOptions
from trajgen.experiments import dry_run

PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
WINDOW = {"data.horizon", "data.stride", "data.chunk", "data.discount", "data.return_power"}
FREE = re.compile(r"engine\.stages\.\w+\.steps|(engine\.stages\.)?encoder(\..+)?")
"""Numbers of steps, and the encoder, which belongs to the images of the data."""
METHOD = ("val_fraction", "top_fraction", "stitch", "relabel_steps", "relative_goals", "action_limits",
          "absorbing_terminals", "absorbing_goals")  # fmt: skip
"""Options of the data that change what is learnt from them, and do not say how the set is, as ``relabel_ratio`` where
it has no goals of its own, or how the task ends."""
MOST = 3
"""Options that a task may have besides those of the window and numbers of steps."""
MORE = {
    r"antmaze/.+": (5, "relative goals gain 6 [0, 12] in umaze; the controllers leave most of the action space unused"),
    r"ogbench/antmaze-.+": (5, "relative goals gain 30 [12, 48] for bc, and uniform hindsight has few near goals"),
    r"ogbench/pointmaze-large-navigate": (4, "by the quantile of the others it has 56, not 58, from 10000 on"),
}  # fmt: skip
"""Tasks with more, and why."""
OTHER = re.compile(r"the controller, .+")
"""Rows of no recipe."""


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]


def sections() -> Iterator[tuple[str, str]]:
    """The titles and texts of all sections."""
    for part in re.split(r"^##+ ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        yield title, text


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The headers and rows of a section's tables; a first cell that is left out is that of the row above."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        header, _, *lines = block.splitlines()
        rows = [cells(line) for line in lines]
        for row, above in zip(rows[1:], rows, strict=False):
            row[0] = row[0] or above[0]
        yield cells(header), rows


def code(cell: str) -> str:
    """What stands in backticks; empty without any."""
    return (re.findall(r"`([^`]+)`", cell) or [""])[0]


def data_of(task: str) -> tuple[str, ...]:
    """The words for a task's data, and for the set that stands in for the hub's."""
    name = re.sub(r"^kitchen/", "kitchen/scripted-", task)
    replaced = task.startswith(("adroit/", "kitchen/", "mujoco/", "antmaze/"))
    return f"data={task}", *([f"data.id=local/{name}-v0"] if replaced else [])


def recipes_of(rows: list[list[str]], column: int) -> Iterator[tuple[list[str], list[str]]]:
    """The words of each row's recipes, and the row; "the same" is the last recipe named, with other options."""
    name = ""
    for row in rows:
        if OTHER.fullmatch(row[column]):
            continue
        for words in [part.split() for part in re.findall(r"`([^`]+)`", row[column])] or [[row[column]]]:
            if not row[column].startswith("the same"):
                name, *words = words
            yield [f"recipe={name}", *words], row


def commands_of(text: str) -> Iterator[tuple[str, ...]]:
    """The words of the command of each row of a section's tables that have a column of recipes, or one for each."""
    named = code(text)  # a section's first words in code are its data
    for header, rows in tables(text):
        if header[0] == "`data=`":
            recipes = [code(title) for title in header if code(title) in ("mage", "bc", "dt")]
            yield from ((f"recipe={name}", *data_of(code(row[0]))) for row in rows for name in recipes)
            continue
        if "recipe" not in header:
            continue
        column = header.index("recipe")
        for words, row in recipes_of(rows, column):
            if header[0] == "task":
                yield (*words, *data_of(code(row[0])))
            elif header[0] == "maze":
                maze, *kind = re.findall(r"\w+", row[0])
                task = named.replace("MAZE", maze).replace("navigate", *kind) if kind else named.replace("MAZE", maze)
                yield (*words, *data_of(task))
                if "with subgoals, %" in header and row[header.index("with subgoals, %")]:
                    graph = ["recipe=mage_graph"] if words == ["recipe=mage"] else [*words, "subgoal=graph"]
                    yield (*graph, *data_of(task))
            else:
                tasks = [code(title) for title in header if code(title) in data_files()] or [named]
                yield from ((*words, *data_of(task)) for task in tasks)


ROWS = {title: [*commands_of(text)] for title, text in sections()}
ALL = {words for rows in ROWS.values() for words in rows}


@pytest.mark.parametrize(
    ("title", "least"),
    [
        ("The present recipes", 25),
        ("The family in the medium maze", 19),
        ("OGBench's point mazes", 12),
        ("Its ant mazes", 6),
        ("Its cube", 4),
        ("Several agents", 8),
        ("Adroit, Kitchen, locomotion and AntMaze", 36),
    ],
)
def test_the_rows_are_found(title: str, least: int) -> None:
    assert len(ROWS[title]) >= least


@pytest.mark.parametrize("data", sorted({word for words in ALL for word in words if word.startswith("data=")}))
def test_every_row_composes_from_recipe_data_and_seed(data: str) -> None:
    for words in (words for words in ALL if data in words):
        config: Config = compose([*words, "seed=0"])
        assert config.recipe == words[0].removeprefix("recipe=")
        dry_run(config)


def test_the_sets_that_stand_in_for_the_hubs_are_those_of_the_study() -> None:
    study = (ROOT / "recipes" / "study" / "paper_table.yaml").read_text(encoding="utf-8")
    replaced = {words[-2:] for words in ALL if words[-1].startswith("data.id=local/")}
    assert len(replaced) >= 13 and all(", ".join(words) in study for words in replaced)


@cache
def differences(task: str) -> list[str]:
    """The options of a task besides those of the window and numbers of steps: of its recipe, and of its data."""
    words = task_words(["recipe=mage", f"data={task}"])
    by_recipe = [word for word in words if word.partition("=")[0] not in WINDOW]
    usual = {f.name: f.default for f in fields(DataOptions) if f.default is not MISSING}
    data = compose(["recipe=mage", f"data={task}"]).data
    by_data = {name: getattr(data, name) for name in METHOD if getattr(data, name) != usual[name]}
    of_data = [f"data.{name}={str(value).lower()}" for name, value in by_data.items()]
    return list(dict.fromkeys(word for word in (*by_recipe, *of_data) if not FREE.fullmatch(word.partition("=")[0])))


@pytest.mark.parametrize("task", data_files())
def test_a_task_has_few_options_besides_its_window_and_steps(task: str) -> None:
    more = [most for pattern, (most, _) in MORE.items() if re.fullmatch(pattern, task)]
    count = len(differences(task))
    assert count == more[0] if more else count <= MOST, differences(task)


def test_the_page_of_mage_says_what_differs_by_task() -> None:
    section = (DOCS / "recipes" / "mage.md").read_text(encoding="utf-8").partition("## What differs by task\n")[2]
    named = {word for words in re.findall(r"`([^`]+=[^`]+)`", section.partition("\n## ")[0]) for word in words.split()}
    assert named == {word for task in data_files() for word in differences(task)}


def test_no_command_of_mage_on_the_page_repeats_what_its_task_composes() -> None:
    for line in re.findall(r"^trajgen train .*recipe=mage.*$", PAGE, re.MULTILINE):
        words = [word for word in line.split()[2:] if not word.startswith("-")]
        assert not {*words} & {*task_words([word for word in words if word.startswith(("recipe=", "data="))])}, line
