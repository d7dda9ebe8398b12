"""Cells: every shipped study composes and can be built, and the commands of a cell give what the cell is."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from fake_runs import SMALL, composed

from trajgen.cli.overrides import parse
from trajgen.cli.study import read_study_words
from trajgen.config import Config, compose, recipe_files, study_files
from trajgen.core.errors import ConfigError
from trajgen.experiments import cells
from trajgen.experiments.cells import PER_CELL, Cell, dry_run_rows, make_rows
from trajgen.experiments.definition import Study, Variant, read_study

PROMISED = {
    "num_scales", "generation_scheme", "return_condition", "action_head", "levels", "sampler_temperature", "replan",
    "recipes", "losses", "revision", "adaptation",
}  # fmt: skip
CLAIMS = ("num_scales", "generation_scheme", "return_condition", "losses", "action_head")
"""The studies of what the paper claims."""
DATA = {"dimension": "trajgen/chain/", "agents": "trajgen/agents/", "adaptation": "trajgen/pointmaze/umaze-gear"}
"""Of studies that are not of the medium maze."""
TRAININGS = {"sampler_temperature": 1, "replan": 1, "revision": 1, "adaptation": 4}
"""Of studies whose variants share them, for each seed."""


def test_the_promised_studies_are_shipped() -> None:
    assert set(study_files()) >= PROMISED
    one_agent = set(recipe_files()) - {"mage_multi"}
    assert set(read_study(study_files()["recipes"]).variants) == one_agent
    budgets = {f"{recipe} {budget}x" for recipe in one_agent - {"mage_paper"} for budget in (1, 3, 10)}
    assert set(read_study(study_files()["compute"]).variants) == budgets  # mage_paper is for a GPU


@pytest.mark.parametrize("name", sorted({*study_files()} - {"paper_table"}))  # which is a study for each task
def test_a_shipped_study_is_one_screen_and_can_be_run(name: str) -> None:
    path = study_files()[name]
    study = read_study(path)
    assert "?" in study.question and study.seeds == (0, 1, 2)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 30
    rows = make_rows(study)
    assert [row.name for row in rows] == list(study.variants)
    built = [row for row in rows if row.config.engine.budget == rows[0].config.engine.budget]  # steps build nothing
    assert dry_run_rows(built[:: -(-len(built) // 4)]) == {}
    for row in rows:
        assert row.config.data.id.startswith(DATA.get(name, "trajgen/pointmaze/medium-dwell"))
        assert (row.config.evaluation.seed, row.config.evaluation.episodes) == (0, 48)
    assert len({row.run for row in rows}) == TRAININGS.get(name, len(rows))


@pytest.mark.parametrize("data", ["antmaze/medium-play", pytest.param("kitchen/complete", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_of_the_paper_can_be_studied_in_other_tasks_too(name: str, data: str) -> None:
    study = read_study_words([f"study={name}", f"data={data}", f"data.id=local/{data}-v0"])[2]
    rows = make_rows(study)
    assert dry_run_rows(rows) == {}
    assert {row.config.data.id for row in rows} == {f"local/{data}-v0"}
    assert len({json.dumps(row.config.components, default=list) for row in rows}) == len(rows)


@pytest.fixture(autouse=True)
def _composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "compose", composed)


def plain(config: Config) -> dict[str, Any]:
    return {k: v for k, v in config.to_plain().items() if k not in PER_CELL[1:]}


STUDY = Study(
    name="mixed",
    base=("recipe=mage", "data=pointmaze/medium-dwell", *SMALL),
    variants={
        "plain": Variant(),
        "deep": Variant(("prior.depth=2", "view.fields=[return,state]", "policy.replan_interval=2")),
        "flat, greedy": Variant(("schedule=single",), ("sampler=greedy", "policy.replan_interval=8")),
        "cooler": Variant(evaluate=("sampler.temperature=0.1", "evaluation.episodes=12")),
        "longer": Variant(("engine.stages.return_target.steps=7",)),
    },
    seeds=(0, 3),
)


def test_commands_give_what_their_cell_is() -> None:
    rows = make_rows(STUDY)
    assert dry_run_rows(rows) == {}
    for row in rows:
        cell = Cell(row, 3, Path("studies/mixed"))
        train, evaluate = cell.commands("repeat/mixed")
        program, command, *words = shlex.split(train)
        assert (program, command) == ("trajgen", "train")
        config = compose(words)
        assert plain(config) == plain(cell.config) and config.seed == 3
        assert config.run_dir == f"repeat/mixed/cells/{cell.run.name}"
        assert (evaluate is None) == (not row.overrides)
        if evaluate is not None:
            program, command, *words = shlex.split(evaluate)
            assert (program, command) == ("trajgen", "evaluate")
            values = parse(words)
            assert values.pop("run") == config.run_dir and values.pop("out").startswith(config.run_dir)
            assert values.pop("device") == "cpu"
            assert values == row.overrides


def test_steps_of_equal_time_are_part_of_the_commands() -> None:
    study = Study(name="time", variants={"carp": Variant(("recipe=carp",))}, equal=("time",))
    (row,) = make_rows(study, {"carp": {"prior": 77, "return_target": 5}})  # the recipe names no stage 'return_target'
    steps = {name: stage.steps for name, stage in row.config.engine.stages.items()}
    assert steps == {"tokenizer": 1000, "prior": 77, "return_target": 5}
    train, _ = Cell(row, 0, Path("here")).commands("there")
    assert compose(shlex.split(train)[2:]).engine == row.config.engine


def test_variants_with_equal_training_share_a_run() -> None:
    rows = {row.name: row for row in make_rows(STUDY)}
    assert {name: row.run for name, row in rows.items()} == {name: name for name in rows} | {"cooler": "plain"}
    assert rows["plain"].overrides == rows["deep"].overrides == {}
    assert rows["cooler"].overrides["evaluation"] == {"episodes": 12}
    assert rows["cooler"].overrides["sampler"]["temperature"] == 0.1
    cell = Cell(rows["flat, greedy"], 0, Path("here"))
    assert cell.run == Path("here/cells/flat-greedy-s0") and cell.out == cell.run / "evaluations" / "flat-greedy"


@pytest.mark.parametrize("words", ["engine.accumulate=1,2", "engine.cuda_graph=true,false"])
def test_how_a_training_computes_is_varied_by_trainings_of_its_own(words: str) -> None:
    """It ends with the same figures, but in other minutes."""
    study = read_study_words([f"axis=[{words}]"])[2]
    assert len({row.run for row in make_rows(study)}) == 2


def test_an_evaluation_may_leave_a_component_out() -> None:
    study = Study(
        name="critic", base=("recipe=mage_critic",), variants={"with": Variant(), "without": Variant((), ("~critic",))}
    )
    plain_row, row = make_rows(study)
    assert row.run == "with" and row.overrides == {"critic": None} and plain_row.overrides == {}
    assert dry_run_rows([row]) == {}
    evaluate = Cell(row, 0, Path("here")).commands("there")[1]
    assert evaluate is not None and "critic" in (values := parse(shlex.split(evaluate)[2:])) and not values["critic"]


def test_an_option_that_would_do_nothing_is_not_varied() -> None:
    with pytest.raises(ConfigError, match=r"Variant 'policy\.revise_interval=1' of the study: No plan is revised"):
        make_rows(read_study_words(["evaluate=[policy.revise_interval=1,2]"])[2])
    make_rows(read_study_words(["evaluate=[policy.revise_interval=1,2]", "policy.revise=2"])[2])


@pytest.mark.parametrize("word", ["engine.budget=2", "data.discount=0.9", "engine.precision=float32"])
def test_an_evaluation_cannot_change_what_is_trained(word: str) -> None:
    study = Study(name="wrong", variants={"one": Variant(evaluate=tuple(word.split()))})
    with pytest.raises(ConfigError, match="needs a training of its own"):
        make_rows(study)


@pytest.mark.parametrize(
    ("word", "has_weights"), [("prior.depth=2", True), ("action=latent", True), ("return_target=constant", False)]
)
def test_an_evaluation_with_components_that_have_weights_is_refused(word: str, has_weights: bool) -> None:
    study = Study(name="parts", base=tuple(SMALL), variants={"one": Variant(), "other": Variant(evaluate=(word,))})
    refused = dry_run_rows(make_rows(study))
    assert list(refused) == (["other"] if has_weights else [])
    assert not has_weights or "needs weights of its own" in refused["other"]


def test_a_variant_that_does_not_compose_is_named() -> None:
    study = Study(name="wrong", variants={"good": Variant(), "bad": Variant(("prior.dpeth=2",))})
    with pytest.raises(ConfigError, match=r"Variant 'bad' of the study: Unknown option 'prior\.dpeth'"):
        make_rows(study)


def test_when_no_variant_can_work_an_error_is_raised() -> None:
    study = Study(name="wrong", variants={"bad": Variant(("prior.width=10", "prior.heads=3"))})
    with pytest.raises(ConfigError):
        dry_run_rows(make_rows(study))
