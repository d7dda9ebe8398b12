"""Searches: what is proposed lies in the space, what is scored lies on tuning episodes, and a stopped one goes on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from fake_runs import SMALL, FakeRuns, exit_code
from tiny import TRAIN

from trajgen.cli import main
from trajgen.config import Config, compose, search_files
from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.experiments.search import STARTUP, Trial, load_trials, propose
from trajgen.experiments.search_space import Search, Span, read_search

pytest.importorskip("optuna", reason="of the extra 'sweep'")

SPACE = """# What suits?
base: [recipe=mage, device=cpu]
space:
  prior.depth: {low: 1, high: 3}
  engine.stages.prior.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
  action: [latent, latent_state]
trials: 4
"""
FOLDER = Path("studies/own")
BETTER = {"latent": 0.0, "latent_state": 2.0}


@pytest.fixture
def runs(fake_runs: FakeRuns) -> FakeRuns:
    """A search in own.yaml, whose returns say that latent_state and a deep prior are better."""
    Path("own.yaml").write_text(SPACE)
    fake_runs.returns = lambda config: (quality(config), quality(config))
    return fake_runs


def quality(config: Config) -> float:
    return BETTER[config.components["action"]["name"]] + config.components["prior"]["depth"] / 10 + config.seed / 100


def search(*words: str) -> int:
    file = () if any(word.startswith("search=") for word in words) else ("search=own.yaml",)
    small = [word for word in SMALL[1:] if not word.startswith("action.")]  # whose component is chosen
    return exit_code("search", *file, *small, "workers=1", *words)


def results(folder: Path = FOLDER) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return read


@pytest.mark.parametrize("name", search_files())
def test_a_shipped_search_is_one_screen_and_every_corner_of_it_can_be_built(name: str) -> None:
    from trajgen import experiments

    path = search_files()[name]
    shipped = read_search(path)
    assert "?" in shipped.question and len(path.read_text(encoding="utf-8").splitlines()) <= 30
    assert "evaluation.seed=10000" in shipped.base
    for end in (0, -1):
        params = {k: (c.low, c.high)[end] if isinstance(c, Span) else c[end] for k, c in shipped.space.items()}
        config = compose(shipped.overrides(params, {}))
        assert config.evaluation.seed == 10000
        experiments.dry_run(config)
        assert shipped.params_of(config) == params


def test_the_best_comes_first_and_all_are_compared(runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    assert search() == 0
    assert [name for name, _ in runs.trained] == ["as-it-is-s0", *(f"trial-{n:03d}-s0" for n in range(1, 5))]
    outcome = results()
    means = [row["mean"] for row in outcome["rows"]]
    assert len(means) == 5 and means == sorted(means, reverse=True)
    assert outcome["best"]["score"] == means[0] and outcome["best"]["name"] == outcome["rows"][0]["name"]
    base_row = next(row for row in outcome["rows"] if row["name"] == "as it is")
    assert base_row["reference"] and outcome["reference"] == "as it is"
    assert all(row["difference"] is not None for row in outcome["rows"] if row is not base_row)
    out = capsys.readouterr().out
    assert "evaluation.seed=0" in out and "table.md" in out
    for name, _ in runs.trained:
        config = json.loads((FOLDER / "cells" / name / "config.json").read_text())
        assert config["evaluation"]["seed"] == 10000  # never the episodes that are reported
    again = compose(shlex.split(config["command"])[2:])
    assert {k: config[k] for k in again.to_plain() if k not in ("run_dir", "resume")} == {
        k: v for k, v in again.to_plain().items() if k not in ("run_dir", "resume")
    }
    proposed = json.loads((FOLDER / "search.json").read_text())["proposed"]
    assert len(proposed) == 4 and all(1 <= each["prior.depth"] <= 3 for each in proposed)
    assert all(1e-4 <= each["engine.stages.prior.lr"] <= 1e-2 for each in proposed)


def test_a_stopped_search_ends_as_one_that_was_not(runs: FakeRuns) -> None:
    assert search("out=whole") == 0
    runs.stopping = {"trial-002-s0"}
    assert search("out=cut") == 130
    runs.stopping = set()
    before = len(runs.trained)
    assert search("out=cut") == 0
    assert runs.trained[before:] == [("trial-002-s0", True), ("trial-003-s0", False), ("trial-004-s0", False)]
    one, two = (json.loads(Path(name, "search.json").read_text())["proposed"] for name in ("whole", "cut"))
    assert one == two
    assert search("out=cut", "trials=6") == 0
    more = json.loads(Path("cut/search.json").read_text())["proposed"]
    assert more[:4] == one and len(more) == 6
    assert search("out=cut", "trials=4") == 1  # the two that were added would be lost
    assert json.loads(Path("cut/search.json").read_text())["proposed"] == more


def test_a_trial_that_fails_is_told_so_and_tried_again(runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    runs.failing = {"trial-001-s0"}
    assert search() == 1
    assert "1 of 5 cells failed" in capsys.readouterr().err
    outcome = results()
    assert len([row for row in outcome["rows"] if row["mean"] is not None]) == 4
    assert "It does not work." in outcome["failed"]["trial-001-s0"]
    runs.failing = set()
    before = len(runs.trained)
    assert search() == 0 and runs.trained[before:] == [("trial-001-s0", True)]


def test_a_trial_whose_episodes_all_failed_has_failed(runs: FakeRuns) -> None:
    runs.returns = lambda config: (None, None) if "trial-001" in str(config.run_dir) else (1.0, 2.0)
    assert search("trials=2") == 1
    assert search("trials=2") == 1 and len(runs.trained) == 3  # again, from what is on disk
    outcome = results()
    assert [*outcome["failed"]] == ["trial-001-s0"] and "has no mean return" in outcome["failed"]["trial-001-s0"]
    assert len([row for row in outcome["rows"] if row["mean"] is not None]) == 2


def test_a_folder_of_ones_own_holds_the_recipe_of_all_trials(
    runs: FakeRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder/recipe").mkdir(parents=True)
    Path("folder/recipe/small_mage.yaml").write_text("defaults: [mage]\n")
    words = ["recipe=small_mage", "trials=1"]
    assert search(*words) == 1 and "small_mage" in capsys.readouterr().err
    assert search("--config-dir", "folder", *words) == 0
    assert search("--config-dir", "folder", *words, "trials=2") == 0
    configs = [json.loads(path.read_text()) for path in FOLDER.glob("cells/*/config.json")]
    assert [config["recipe"] for config in configs] == ["small_mage"] * 3
    flag = f"--config-dir={tmp_path / 'folder'}"
    assert all(flag in config["command"] for config in configs) and flag in results()["command"]


def test_a_component_that_the_base_has_keeps_its_options() -> None:
    space = Search(name="a", base=("recipe=mage",), space={"action": ("latent", "latent_state")})
    base = compose(space.overrides({}, {}))
    same = compose(space.overrides({"action": "latent_state"}, base.components))
    assert same.components == base.components and base.components["action"]["depth"] == 4
    assert space.params_of(base) == {"action": "latent_state"}
    assert "action=latent" in space.overrides({"action": "latent"}, base.components)


def test_a_composition_that_cannot_be_built_fails_alone(runs: FakeRuns) -> None:
    Path("odd.yaml").write_text(
        "base: [recipe=mage, device=cpu]\nspace: {prior.heads: [2, 3], data.max_padding: [0.5, 2.0]}\ntrials: 4\n"
    )
    words = [word for word in SMALL[1:] if word != "prior.heads=2"]
    assert exit_code("search", "search=odd.yaml", *words, "workers=1") == 1
    outcome = results(Path("studies/odd"))
    assert outcome["failed"] and "as-it-is-s0" not in outcome["failed"]


def test_the_score_is_the_mean_over_seeds(runs: FakeRuns) -> None:
    assert search("seeds=[0,2]", "trials=1") == 0
    assert len(runs.trained) == 4
    best = results()["rows"][0]
    assert {*best["by_seed"]} == {"0", "2"} and len({*best["by_seed"].values()}) == 2
    assert results()["best"]["score"] == pytest.approx(sum(best["by_seed"].values()) / 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluation.seed=0"], "evaluation.seed >= 48"),
        (["evaluation.seed=50", "evaluation.episodes=96"], "evaluation.seed >= 96"),
        (["prior.depth=2"], "prior.depth=2 beside prior.depth"),
        (["action.depth=2"], "action.depth=2 beside"),
        (["seed=1"], "seeds=[0,1,2]"),
        (["trials=0"], "trials"),
        (["seeds=[1,1]"], "seeds"),
        (["search=nothing"], "mage"),
        (["prior.wdith=2"], "width"),
        (["schedule=explicit", "schedule.lengths=[3]"], "residual pyramid"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    words: list[str], message: str, runs: FakeRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(*words) == 1
    assert message in capsys.readouterr().err and not runs.trained and not FOLDER.exists()


@pytest.mark.parametrize(
    "choices",
    [
        Span(low=2, high=2), Span(low=0, high=1.0, log=True), Span(low=float("nan"), high=1.0),
        Span(low=0, high=10**400), Span(low=float("-inf"), high=0.0), (), (1, 1),
    ],
)  # fmt: skip
def test_a_space_that_is_none_is_refused(choices: Any) -> None:
    with pytest.raises(ConfigError):
        Search(name="a", space={"prior.depth": choices})
    with pytest.raises(ConfigError):
        Search(name="a", space={"evaluation.seed": Span(low=48, high=100)})
    with pytest.raises(ConfigError):
        Search(name="a")


CHANGES = ["prior.heads=1", "seeds=[0,1]"]


@pytest.mark.parametrize("word", CHANGES)
def test_another_definition_is_refused(word: str, runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("trials=1") == 0
    assert search("trials=1", word) == 1
    assert "out=ANOTHER" in capsys.readouterr().err and len(runs.trained) == 2


def test_proposals_follow_the_scores() -> None:
    """Where a small value was better, small ones are proposed; each is a function of the trials before it."""
    space = Search(name="a", space={"prior.dropout": Span(low=0.0, high=1.0)})
    trials: list[Trial] = []
    for number in range(1, 31):
        params = propose(space, number, trials)
        assert params == propose(space, number, trials)
        trials.append(Trial(number, params, score=-params["prior.dropout"]))
    values = [trial.params["prior.dropout"] for trial in trials]
    assert sum(values[STARTUP:]) / len(values[STARTUP:]) < 0.25
    under_way = [*trials, Trial(31, propose(space, 31, trials))]
    assert propose(space, 32, under_way) != propose(space, 31, trials)


def test_without_optuna_it_is_said(runs: FakeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    assert search() == 1 and not runs.trained


@pytest.mark.usefixtures("undrawn")
def test_two_trials_are_trained(tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("base: [recipe=mage]\nspace: {sampler.temperature: {low: 0.1, high: 1.0}}\ntrials: 2\n")
    words = [word for word in TRAIN if not word.startswith("engine.budget")]
    main(["search", "search=own.yaml", *words, "engine.budget=0.05", "evaluation.latency=false", "workers=1"])
    outcome = results()
    assert len(outcome["rows"]) == 3 and not outcome["failed"] and outcome["best"]["score"] is not None
    assert "seed 10000 to 10001" in outcome["protocol"]
    with pytest.raises(TrajgenError):
        load_trials(tmp_path, Search(name="own", space={"prior.depth": Span(low=1, high=2)}))
