"""schedule=auto: lengths that a training chooses from its data, writes down, and keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console

from trajgen.cli import main
from trajgen.config import compose
from trajgen.core.errors import ConfigError
from trajgen.core.files import read_json
from trajgen.core.schedule import ScaleSchedule
from trajgen.engine.checkpoint import Checkpoints, read_weights
from trajgen.experiments import dry_run, load_episodes
from trajgen.experiments.loading import load_policy, load_run
from trajgen.experiments.preparation import with_scales
from trajgen.schedules import AutoSchedule

pytestmark = pytest.mark.usefixtures("undrawn")
SHORT = [word for word in tiny.TRAIN if not word.startswith("engine.budget")] + ["engine.budget=0.2"]
WORDS = ["recipe=mage", "schedule=auto", *SHORT, "evaluation.episodes=1", "evaluation.latency=false"]


def chosen(*words: str) -> tuple[int, ...]:
    config = compose([*WORDS, *words])
    return with_scales(config, load_episodes(config, Console(quiet=True)), Console(quiet=True)).space.scale_lengths


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_weights(Checkpoints(folder / "checkpoints").newest())


def test_a_run_has_the_lengths_of_its_data(
    tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are shown, written into the run folder, rebuilt from it, and train as if they had been typed."""
    monkeypatch.chdir(tmp_path)
    lengths = chosen()
    assert lengths[-1] == 8 and list(lengths) == sorted(set(lengths)) and lengths != (8,)
    assert chosen() == lengths and chosen("tokenizer.codebook_size=2", "schedule.least_gain=1") == (8,)
    main(["train", *WORDS, "run_dir=auto"])
    assert f"Scales of these data: {ScaleSchedule(lengths)}, " in " ".join(capsys.readouterr().out.split())
    assert tuple(read_json(tmp_path / "auto" / "config.json")["space"]["scale_lengths"]) == lengths
    assert f"scales: {', '.join(map(str, lengths))} tokens" in (tmp_path / "auto" / "summary.md").read_text("utf-8")
    policy: Any = load_policy(tmp_path / "auto")
    assert policy.planner.tokenizer.schedule.lengths == lengths
    text = str(list(lengths)).replace(" ", "")
    explicit = ["recipe=mage", "schedule=explicit", f"schedule.lengths={text}", *WORDS[2:], "run_dir=explicit"]
    main(["train", *explicit])
    one, other = weights(tmp_path / "auto"), weights(tmp_path / "explicit")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_run_keeps_the_lengths_that_were_saved(
    tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["train", *WORDS, "run_dir=run"])
    path = tmp_path / "run" / "config.json"
    stored = read_json(path)
    changed = json.dumps(stored | {"space": stored["space"] | {"scale_lengths": [1, 8]}})
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint.unlink()
    path.write_text(changed, encoding="utf-8")  # as if other data had been chosen for
    main(["train", *WORDS, "run_dir=run", "resume=true"])
    assert load_run(tmp_path / "run")[1].scale_lengths == (1, 8)
    assert any(name.startswith("tokenizer.layout.convolutions.1") for name in weights(tmp_path / "run"))
    assert not any(name.startswith("tokenizer.layout.convolutions.2") for name in weights(tmp_path / "run"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The windows from which lengths are chosen."""
    windows: list[torch.Tensor] = []
    choose = AutoSchedule.choose

    def recorded(schedule: AutoSchedule, x: torch.Tensor, *how: Any) -> Any:
        windows.append(x)
        return choose(schedule, x, *how)

    monkeypatch.setattr(AutoSchedule, "choose", recorded)
    return windows


def test_lengths_do_not_depend_on_the_seed_of_a_training(tiny_place: Path, read: list[torch.Tensor]) -> None:
    assert chosen("seed=0") == chosen("seed=1") and torch.equal(*read)


def test_lengths_are_chosen_from_windows_without_padding(tiny_place: Path, read: list[torch.Tensor]) -> None:
    """In padding nothing changes, for which no bits are needed; where hardly a window is without, all are read."""
    chosen("data.max_padding=0.9")
    chosen("data.max_padding=0.9", "data.horizon=8", "data.stride=142")  # nearly as long as an episode of 1000 steps
    moving, padded = ((x[:, -1] != x[:, -2]).any(-1) for x in read)
    assert moving.all() and len(moving) == 4096 and not padded.all()


def test_other_schedules_leave_the_data_as_they_are(tiny_place: Path) -> None:
    config = compose(["recipe=mage", *tiny.TRAIN])
    episodes = load_episodes(config, Console(quiet=True))
    assert with_scales(config, episodes, Console(quiet=True)) is episodes and episodes.space.scale_lengths == ()


def test_a_revision_from_a_scale_that_is_not_chosen_is_refused_before_training(
    tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until lengths are chosen there may be as many scales as tokens; the refusal's remedy trains."""
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, "policy.replan_interval=8", "run_dir=run"]
    scales = len(chosen())
    with pytest.raises(SystemExit):
        main(["train", *words, "policy.revise=8"])
    error = capsys.readouterr().err
    assert f"policy.revise is from 2 to {scales}" in error and f"fix:      policy.revise={scales}\n" in error
    assert not (tmp_path / "run").exists()
    dry_run(compose([*words, "policy.revise=8"]))
    with pytest.raises(ConfigError, match=r"policy\.revise[\s\S]*2 to 8[\s\S]*policy\.revise=9") as refusal:
        dry_run(compose([*words, "policy.revise=9"]))
    assert refusal.value.fix == "policy.revise=2"
    chosen("policy.replan_interval=8", f"policy.revise={scales}")
    episodes = load_episodes(compose(words), Console(quiet=True))
    resumed = replace(episodes.space, scale_lengths=(2, 8))
    with pytest.raises(ConfigError, match="from 2 to 2"):
        with_scales(compose([*words, "policy.revise=3"]), episodes, Console(quiet=True), resumed)


def test_what_has_no_tokenizer_of_its_own_is_refused() -> None:
    config = compose(["recipe=hierarchy", "schedule=auto"])
    with pytest.raises(ConfigError, match="one tokenizer") as refusal:
        dry_run(config)
    tiny.check_cure(refusal.value)
    dry_run(compose(["recipe=mage", "schedule=auto"]))
