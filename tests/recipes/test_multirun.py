"""``train -m`` is Hydra's multirun: a run folder for each job, failures that are the jobs' own, one table."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from trajgen import config as configuration
from trajgen import experiments
from trajgen.cli import main
from trajgen.config import compose, hydra_run
from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.experiments import multirun

STUB = '''
"""In place of a training: its score is a quarter of its seed."""
import json
from pathlib import Path

from trajgen import experiments
from trajgen.core.errors import ConfigError


def train(config, console, command=None):
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {**config.to_plain(), "command": command, "space": {"state_dim": 4, "action_dim": 2}}
    (folder / "config.json").write_text(json.dumps(plain))
    if config.seed in (13, 14):
        raise ConfigError("It does not work.") if config.seed == 13 else ZeroDivisionError
    if config.seed == 99 and not config.resume:
        from trajgen.engine.loop import StoppedError

        raise StoppedError("stopped")
    figures = {"episode_returns": {"policy": [1.0]}, "return": {"mean": 1.0}, "ratio_to_controller": config.seed / 4}
    (folder / "evaluation.json").write_text(json.dumps(figures))
    return folder


experiments.train = train
'''
NOTE = """
from pathlib import Path
from hydra.experimental.callback import Callback


class Note(Callback):
    def on_job_end(self, config, job_return, **_):
        Path(f"told-{job_return.return_value}").touch()
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the stub as a module, which jobs in other processes import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stub_train.py").write_text(STUB)
    (tmp_path / "note_score.py").write_text(NOTE)
    monkeypatch.setattr(experiments, "train", experiments.train)  # put back afterwards
    monkeypatch.delitem(sys.modules, "stub_train", raising=False)
    return tmp_path


def sweep(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of ``trajgen train -m``, in this process where it would become Hydra's."""

    def execute(_: str, arguments: list[str], environment: dict[str, str]) -> None:
        monkeypatch.setattr(sys, "argv", arguments[2:])
        assert environment["PYTHONSAFEPATH"] == "1" and arguments[1:3] == ["-m", "trajgen.experiments"]
        monkeypatch.setenv("HYDRA_FULL_ERROR", environment["HYDRA_FULL_ERROR"])
        multirun.main()
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execute)
    try:
        main(["train", "-m", "recipe=mage", "imports=[stub_train]", *words])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_each_job_has_a_folder_and_a_failing_one_stops_no_other(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (lab / "own one.yaml").write_text((configuration.RECIPES / "mage.yaml").read_text(encoding="utf-8"))
    assert sweep(monkeypatch, "recipe=own one.yaml", "seed=13,14,3", "action=latent") == 1
    out, err = capsys.readouterr()
    assert "0.750" in out and "seed=13" in out and out.count("failed") == 2
    assert "It does not work." in err and "ZeroDivisionError" in err and "resume=true" in err
    (folder,) = Path("runs/sweeps").iterdir()
    assert [path.name for path in sorted(folder.glob("*/evaluation.json"))] == ["evaluation.json"]
    besides = ("command", "space")
    for number, seed in enumerate((13, 14, 3)):
        config = json.loads((folder / str(number) / "config.json").read_text())
        assert config["seed"] == seed and config["recipe"] == "own one" and config["action"]["name"] == "latent"
        assert config["run_dir"] == str(folder.absolute() / str(number))
        again = compose(shlex.split(config["command"])[2:]).to_plain()
        assert {**again, "run_dir": None} == {k: v for k, v in {**config, "run_dir": None}.items() if k not in besides}


def test_the_means_over_seeds_are_printed_and_written(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(monkeypatch, "seed=1,3", "action=latent,state", "run_dir=mine") == 0
    assert "Means over seeds" in capsys.readouterr().out
    lines = Path("mine/means.csv").read_text().splitlines()
    assert lines[0] == 'overrides,seeds,ratio,"lowest, highest",return,action error,success'
    assert lines[1:] == [f'action={name},2 of 2,0.500,"[0.250, 0.750]",1.00,–,–' for name in ("latent", "state")]
    page = Path("mine/table.md").read_text()
    assert "| action=latent | 2 of 2 | 0.500 | [0.250, 0.750] | 1.00 |\n" in page and page.count("| 1.00 |") == 6
    assert len(Path("mine/runs.csv").read_text().splitlines()) == 5


def test_a_damaged_record_of_a_job_is_named(lab: Path) -> None:
    (lab / "sweep" / "0").mkdir(parents=True)
    record = lab / "sweep" / "0.json"
    record.write_text('{"overrides": [')
    with pytest.raises(CheckpointError, match=re.escape(str(record))):
        multirun.print_runs(lab / "sweep", None)


def test_a_named_sweep_goes_on_in_the_same_folders(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(monkeypatch, "seed=99,2", "run_dir=mine") == 130
    assert {path.name for path in Path("mine").iterdir()} >= {"0"} and not Path("mine/1").exists()
    assert sweep(monkeypatch, "seed=99,2", "run_dir=mine", "resume=true") == 0
    assert [json.loads(Path(f"mine/{n}/config.json").read_text())["seed"] for n in range(2)] == [99, 2]
    with pytest.raises(ConfigError, match="named"):
        hydra_run(["-m", "seed=1,2", "resume=true"])


def test_a_sweep_leaves_the_records_of_another_as_they_are(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(monkeypatch, "seed=1,2", "run_dir=mine") == 0
    files = [Path("mine") / name for name in ("0.json", "1.json", "1/config.json", "runs.csv", "means.csv", "table.md")]
    before = [path.read_text() for path in files]
    assert sweep(monkeypatch, "seed=3,4,5", "run_dir=mine") == 1
    assert "0.json, 1.json" in capsys.readouterr().err and not Path("mine/2").exists(), "before the first job"
    assert sweep(monkeypatch, "seed=1,4", "run_dir=mine", "resume=true") == 1
    error = capsys.readouterr().err
    assert "Error: 1 of these trainings were refused" in error and "seed=2 there, 4 here" in error
    assert [path.read_text() for path in files] == before and not list(Path("mine").glob("*.refused"))


def test_the_sweeper_is_told_the_score(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(monkeypatch, "seed=13,2", "+hydra.callbacks.note._target_=note_score.Note") == 1
    assert {path.name for path in lab.glob("told-*")} == {"told-nan", "told-0.5"}


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.nightly)])
def test_launchers_run_jobs_in_processes_of_their_own(
    launcher: str, lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    pytest.importorskip(package, reason="of the extra 'sweep'")
    assert sweep(monkeypatch, "seed=2,13", "run_dir=mine", f"hydra/launcher={launcher}") == 1
    out = capsys.readouterr().out
    assert "0.500" in out and "failed" in out and Path("mine/0/evaluation.json").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["prior.depth=1,x"], "prior.depth"),
        (["prior.wdith=1,2"], "width"),
        (["recipe=mage,maeg"], "maeg"),
        (["seed=1,2", "prior.depth=[1"], "bracket"),
        (["policy.replan=1,2"], "policy.replan_interval"),
    ],
)
def test_what_does_not_compose_is_refused_before_any_training(
    words: list[str], part: str, lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(multirun, "main", lambda: pytest.fail("it began"))
    assert sweep(monkeypatch, *words) == 1
    assert part in capsys.readouterr().err and not Path("runs").exists()


@pytest.mark.parametrize("flag", [("--cfg", "job"), ("--info", "searchpath")])
def test_a_sweep_is_not_printed(
    flag: tuple[str, str], lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(monkeypatch, "data=antmaze/umaze", "seed=0,1", *flag) == 1
    error = capsys.readouterr().err
    assert f"-m {flag[0]}" in error and "leave -m out" in error


def test_each_job_says_what_its_task_adds(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(monkeypatch, "data=kitchen/complete,pointmaze/umaze-dwell", "run_dir=mine") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("For this task: ")]
    assert len(lines) == 1 and "action.num_bins=0" in lines[0] and "task_options=false" in lines[0]


def test_a_preset_in_a_folder_of_ones_own_adds_its_options(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab / "own" / "data").mkdir(parents=True)
    task = "defaults: [/data/pointmaze/umaze-dwell]\nrecipes: {mage: [policy.replan_interval=2]}\n"
    (lab / "own" / "data" / "task.yaml").write_text(task)
    assert sweep(monkeypatch, "data=task", "seed=1,2", "run_dir=mine", "--config-dir", "own") == 0
    config = json.loads(Path("mine/1/config.json").read_text())
    assert config["policy"]["replan_interval"] == 2
    assert compose(shlex.split(config["command"])[2:]).policy.replan_interval == 2


def test_ranges_and_globs_are_swept(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(monkeypatch, "recipe=glob(flat*)", "seed=range(1,3)", "run_dir=mine") == 0
    configs: list[Any] = [json.loads(Path(f"mine/{n}/config.json").read_text()) for n in range(4)]
    assert [(c["recipe"], c["seed"]) for c in configs] == [("flat", 1), ("flat", 2), ("flat_ar", 1), ("flat_ar", 2)]
