"""Sweeps: a run folder for each training that can be told apart, failures that are the trainings' own, one table."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import SMALL, Made
from trajgen.experiments.studies import sweep as sweeps
from trajgen.experiments.studies.sweep import expand, placed, score

from trajgen import experiments
from trajgen.cli import main
from trajgen.config import Config, compose, recipe_files
from trajgen.core.errors import CheckpointError, ConfigError

BASE = ["recipe=mage", *SMALL]


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "make_data", lambda *_: None)


def sweep(*words: str) -> int:
    """The exit code of ``trajgen train -m``."""
    try:
        main(["train", "-m", *BASE, *words])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def results(folder: str = "runs") -> dict[str, Any]:
    newest = max(Path(folder, "sweeps").iterdir(), key=lambda path: int(path.name))
    read: dict[str, Any] = json.loads((newest / "results.json").read_text())
    return read


def test_each_training_has_a_folder_named_by_what_is_its_own(made: Made) -> None:
    assert sweep("seed=1,2", "action=latent,latent_state") == 0
    names = [f"mage-umaze-dwell-action-{action}-s{seed}" for seed in (1, 2) for action in ("latent", "latent_state")]
    assert [name for name, _ in made.trained] == names
    assert list(results()["runs"]) == [f"runs/{name}" for name in names]
    for name in names:
        config = json.loads((Path("runs") / name / "config.json").read_text())
        assert f"action-{config['action']['name']}-s{config['seed']}" in name
        again = compose(shlex.split(config["command"])[2:])
        assert {**again.to_plain(), "run_dir": None} == {
            k: v for k, v in {**config, "run_dir": None, "resume": False}.items() if k not in ("space", "command")
        }
    assert all(figures["ratio"] is not None for figures in results()["runs"].values())


def test_the_table_names_every_run(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.returns = lambda config: (float(config.seed), float(config.seed))
    assert sweep("seed=1,3") == 0
    said = capsys.readouterr().out
    assert "mage-umaze-dwell-s1" in said and "0.250" in said and "mage-umaze-dwell-s3" in said and "0.750" in said


def test_nothing_is_overwritten_and_names_stay_different(made: Made) -> None:
    assert sweep("prior.depth=1,2") == 0 and sweep("prior.depth=2,3") == 0
    first, second = "mage-umaze-dwell-prior.depth-1-s0", "mage-umaze-dwell-prior.depth-2-s0"
    assert [name for name, _ in made.trained] == [first, second, f"{second}-2", "mage-umaze-dwell-prior.depth-3-s0"]
    assert {path.name for path in Path("runs/sweeps").iterdir()} == {"1", "2"}
    jobs = placed(expand(["recipe=mage", *(f"+data.bounds.{'x' * 150}{n}=[0,1],[0,2]" for n in "ab")]))
    assert len({job.folder for job in jobs}) == 4 and all(len(job.folder.name) < 130 for job in jobs)


def test_a_training_that_fails_leaves_the_others_alone(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.failing = {"mage-umaze-dwell-s0"}
    assert sweep("seed=0,1") == 1
    error = capsys.readouterr().err
    assert "1 of 2 trainings failed" in error and "resume=true" in error
    assert [name for name, _ in made.trained] == ["mage-umaze-dwell-s0", "mage-umaze-dwell-s1"]
    found = results()
    assert list(found["runs"]) == ["runs/mage-umaze-dwell-s1"]
    assert "It does not work." in found["failed"]["runs/mage-umaze-dwell-s0"]


def test_a_stopped_sweep_goes_on_in_the_same_folders(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.stopping = {"mage-umaze-dwell-s1"}
    assert sweep("seed=0,1,2") == 130
    assert "resume=true" in capsys.readouterr().err
    made.stopping = set()
    assert sweep("seed=0,1,2", "resume=true") == 0
    names = [f"mage-umaze-dwell-s{seed}" for seed in (0, 1, 2)]
    assert made.trained[2:] == [(names[0], True), (names[1], True), (names[2], False)]


def test_a_folder_of_ones_own_holds_them(made: Made) -> None:
    assert sweep("seed=0,1", "run_dir=mine") == 0
    assert {path.name for path in Path("mine").iterdir()} == {"mage-umaze-dwell-s0", "mage-umaze-dwell-s1", "sweeps"}
    assert sweep("seed=0,1", "run_dir=mine", "resume=true") == 0
    assert len(list(Path("mine").iterdir())) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prior.depth=1,x"], "prior.depth"),
        (["prior.wdith=1,2"], "width"),
        (["recipe=mage,maeg"], "maeg"),
        (["seed=interval(0,1)"], "compose"),
    ],
)
def test_what_does_not_compose_is_refused_before_any_training(
    words: list[str], said: str, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*words) == 1
    assert said in capsys.readouterr().err and not made.trained and not Path("runs").exists()


def test_ranges_globs_and_files_of_ones_own_are_swept(made: Made) -> None:
    Path("own.yaml").write_text(recipe_files()["mage"].read_text(encoding="utf-8"))
    jobs = expand(["recipe=glob(flat*)", "seed=range(0,2)"])
    assert [(job.config.recipe, job.config.seed) for job in jobs] == [
        ("flat", 0), ("flat", 1), ("flat_ar", 0), ("flat_ar", 1),
    ]  # fmt: skip
    main(["train", "-m", "recipe=own.yaml", *SMALL, "seed=0,1"])
    config = json.loads(Path("runs/own-umaze-dwell-s1/config.json").read_text())
    assert f"recipe={Path('own.yaml').absolute()}" in config["command"]  # the command can be given again


def test_a_sweeper_of_somebody_else_s_is_told_the_score(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's own sweeper stands for it: it is given what every other is."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    told: list[float] = []
    own = BasicSweeper.sweep

    def sweep_and_note(self: Any, arguments: list[str]) -> Any:
        batches = own(self, arguments)
        told.extend(job.return_value for batch in batches for job in batch)
        return batches

    monkeypatch.setattr(BasicSweeper, "sweep", sweep_and_note)
    made.returns = lambda config: (float(config.seed), 1.0)
    train = made.train
    places = iter(("one", "two"))

    def placed_train(config: Config, *rest: Any) -> Path:
        return train(replace(config, run_dir=next(places)), *rest)

    monkeypatch.setattr(experiments, "train", placed_train)
    main(["train", "-m", "hydra/sweeper=basic", *BASE, "seed=1,3"])
    assert told == [(1 + 1) / 2 / 4, (3 + 1) / 2 / 4]


@pytest.mark.parametrize("figures", [{}, {"return": {"mean": None}}, {"ratio_to_controller": "high"}, {"return": 3}])
def test_an_evaluation_without_a_score_is_refused(figures: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(figures))
    with pytest.raises(CheckpointError):
        score(tmp_path)


def test_the_score_is_the_ratio_or_the_return(tmp_path: Path) -> None:
    for figures, value in (({"ratio_to_controller": 0.5}, 0.5), ({"return": {"mean": 7.0}}, 7.0)):
        (tmp_path / "evaluation.json").write_text(json.dumps(figures))
        assert score(tmp_path) == value


def test_submitit_runs_a_training_in_a_process_of_its_own(
    tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The launcher for clusters, in its form for one machine; joblib's is that of the tests of studies."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="of the extra 'sweep'")
    monkeypatch.chdir(tmp_path)
    words = ["hydra/launcher=submitit_local", "data.id=nobody/has-v0", "data.maker=null"]
    with pytest.raises(SystemExit) as ended:
        main(["train", "-m", *BASE, "seed=7", *words])
    assert ended.value.code == 1 and "1 of 1 trainings failed" in capfd.readouterr().err
    assert "must be on this machine" in results()["failed"]["runs/mage-has-s7"]
    assert list(Path("runs/sweeps/1/jobs/.submitit").iterdir())


def test_a_run_folder_cannot_be_chosen_twice(made: Made) -> None:
    jobs = placed(expand([*BASE, "data.stride=8,8"]))
    assert [job.folder.name for job in jobs] == [
        "mage-umaze-dwell-data.stride-8-s0", "mage-umaze-dwell-data.stride-8-s0-2",
    ]  # fmt: skip


def test_resume_takes_no_run_of_another_configuration(made: Made) -> None:
    assert sweep("prior.depth=1,2") == 0
    assert sweep("prior.depth=1,2", "prior.heads=1", "resume=true") == 0
    assert [name for name, resumed in made.trained[2:]] == [
        "mage-umaze-dwell-prior.depth-1-s0-2", "mage-umaze-dwell-prior.depth-2-s0-2",
    ] and not any(resumed for _, resumed in made.trained)  # fmt: skip


def test_nothing_to_sweep_is_one_training(made: Made) -> None:
    assert sweep() == 0
    assert [name for name, _ in made.trained] == ["mage-umaze-dwell-s0"]


def test_an_error_of_composition_is_one_of_trajgen() -> None:
    with pytest.raises(ConfigError):
        expand(["recipe=mage", "prior.depth=[1"])
