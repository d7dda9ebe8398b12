"""Bad input gets a sentence and a fix, exit code 1, no traceback, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from points import ID, WORDS

from trajgen.cli import main
from trajgen.config import compose
from trajgen.core.errors import ConfigError
from trajgen.data import minari

OBSERVATION = Dict(
    {name: Box(-9, 9, (width,), np.float64) for name, width in
     (("observation", 4), ("desired_goal", 2), ("achieved_goal", 2))}
)  # fmt: skip
SMALL = ["tokenizer.width=16", "prior.width=16", "prior.depth=1", "prior.heads=2", "conditioner.width=16"]
SMALL += ["decoder.width=16", "action.width=16", "return_target.width=16", "tokenizer.codebook_size=16"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def check_refused(capsys: pytest.CaptureFixture[str], folder: Path) -> Callable[..., str]:
    """Runs a command that must be refused; returns the error."""

    def run(*words: str, mentions: tuple[str, ...] = ()) -> str:
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        out, err = capsys.readouterr()
        assert caught.value.code == 1
        assert err.startswith("Error: ")
        assert "Traceback" not in err + out and "Hydra" not in err and "hydra" not in err.lower()
        assert "expected:" in err or "fix:" in err, err
        for mention in mentions:
            assert mention in err, err
        assert not (folder / "runs").exists()
        return err

    return run


def raw(steps: int = 40, **changes: Any) -> dict[str, Any]:
    rows = np.linspace(-1, 1, 4 * (steps + 1)).reshape(-1, 4)
    ends = np.arange(steps) == steps - 1
    usual = {
        "observations": {"observation": rows, "desired_goal": rows[:, 2:], "achieved_goal": rows[:, :2]},
        "actions": np.zeros((steps, 2), np.float32),
        "rewards": np.zeros(steps),
        "terminations": np.zeros(steps, bool),
        "truncations": ends,
    }
    return usual | changes


def write(*episodes: dict[str, Any], **changes: Any) -> None:
    spaces: dict[str, Any] = {"observation_space": OBSERVATION, "action_space": Box(-1, 1, (2,), np.float32)}
    minari.save(ID, episodes, env_spec=None, eval_env_spec=None, description="", algorithm="", **(spaces | changes))


TRAIN_OWN_DATA = ["train", f"data.id={ID}", "data.maker=null", "device=cpu"]


@pytest.mark.parametrize(
    ("line", "mentions"),
    [
        ("recipe=mgae", ["There is no recipe 'mgae'", "did you mean 'mage'?", ".yaml"]),
        ("recipe=MAGE", ["did you mean 'mage'?"]),
        ("--recipe mage", ["without dashes", "fix:      recipe=mage"]),
        ("seed=1 -recipe=mage", ["without dashes", "fix:      recipe=mage"]),
        ("--engine.budget 0.1 seed=1", ["fix:      engine.budget=0.1"]),
        ("--resume seed=1", ["fix:      resume=true"]),
        ("recipe = mage", ["fix:      recipe=mage"]),
        ("seed resume=true", ["fix:      seed=…"]),
        ("resume", ["fix:      resume=true"]),
        ("recipe=nofile.yaml", ["nofile.yaml", "No such file"]),
        ("data=pointmaze/umaz", ["There is no data", "'pointmaze/umaze'"]),
        ("data=umaze", ["'pointmaze/umaze'"]),
        ("data=mine/set-v0", ["fix:      data.id=mine/set-v0"]),
        ("data=nofile.yaml", ["nofile.yaml", "a NAME without .yaml"]),
        ("data.id=mine/set-v0", ["must be on this machine", "trajgen data get mine/set-v0"]),
        ("policy.backend=ONNX", ["did you mean 'onnx'?"]),
        ("budget=3", ["did you mean 'engine.budget'?"]),
        ("lr=3", ["did you mean 'engine.stages.NAME.lr'?"]),
        ("engine.steps=3", ["did you mean 'engine.stages.NAME.steps'?"]),
        ("codebook_size=3", ["did you mean 'tokenizer.codebook_size'?"]),
        ("sampler.p=0.8", ["sampler=top_p has p"]),
        ("engine.budget=0,5", ["engine.budget takes one value", "-m", "0.5"]),
        ("sampler=gredy", ["There is no sampler 'gredy'", "did you mean 'greedy'?", "trajgen list sampler"]),
        ("sampler=", ["There is no sampler ''", "greedy"]),
        ("tokenizer=null", ["There is no tokenizer 'null'"]),
        ("~tokenizer", ["what this recipe does not have"]),
        ("smapler=greedy", ["Unknown option 'smapler'", "'sampler'"]),
        ("tokenizer.codebok_size=3", ["Unknown option 'tokenizer.codebok_size'", "'codebook_size'"]),
        ("engine.budgt=3", ["Unknown option 'engine.budgt'", "did you mean 'budget'?"]),
        ("engine.stages.prior.lrr=3", ["'engine.stages.prior.lrr'", "did you mean 'lr'?"]),
        ("data.horizn=3", ["Unknown option 'data.horizn'", "did you mean 'horizon'?"]),  # and not 'absorbing'
        ("+engine.stages.priors.lr=0.1", ["no stage 'priors'", "tokenizer, return_target, prior"]),
        ("+newkey=3", ["Unknown option 'newkey'", "tokenizer"]),
        ("++newkey=3", ["Unknown option 'newkey'"]),
        ("+tokenizer.newkey=3", ["Unknown option 'tokenizer.newkey'", "codebook_size"]),
        ("engine.stages.tokenizer.lr=abc", ["a number", "'abc'"]),
        ("tokenizer.latent_length=2.5", ["a whole number", "2.5"]),
        ("seed=abc", ["seed", "a whole number"]),
        ("resume=perhaps", ["true or false"]),
        ("schedule.scales=[1,2]", ["'schedule.scales'", "a whole number"]),
        ("engine.precision=float16", ["'float32'", "float16"]),
        ("schedule=explicit schedule.lengths=[1,2,4]", ["end at the latent length", "(1, 2, 4)", "8"]),
        ("schedule=two_level schedule.coarse=8", ["schedule.coarse=8"]),
        ("schedule.scales=9", ["schedule.scales=9", "1 to 8"]),
        ("data.horizon=40", ["power of two", "data.horizon=40"]),
        ("seed=-1", ["seed is out of range", "seed=0"]),
        (f"seed={10**30}", ["seed is out of range"]),
        ("policy.replan_interval=9", ["policy.replan_interval=9", "data.chunk"]),
        ("policy.revise_misfit=state", ["No plan is revised", "leave out policy.revise_misfit"]),
        (f"policy.seed={2**64}", ["policy.seed is out of range", "fix:      policy.seed=0"]),
        ("evaluation.disturbance_size=20", ["disturbance=none evaluation.disturbance_size=20", "disturbance=push"]),
        ("prior.heads=0", ["prior.heads=0"]),
        ("prior.heads=3", ["prior.heads=3"]),
        ("view.fields=[stat]", ["did you mean 'state'?"]),
        ("view.fields=[return,place]", ["did you mean 'position'?"]),
        ("device=gpu", ["device=gpu", "cuda"]),
        ("device=mps", ["device=mps", "cuda"]),
        ("imports=[no_such_module.parts]", ["Cannot import 'no_such_module.parts'"]),
        ("imports=[.]", ["dotted names"]),
        ("imports=[", ["key=value"]),
        ("run_dir", ["key=value"]),
        ("mage", ["recipe=mage"]),
        ("-m pointmaze/umaze", ["data=pointmaze/umaze"]),
    ],
)
def test_command_lines(line: str, mentions: list[str], check_refused: Callable[..., str]) -> None:
    check_refused("train", *line.split(), mentions=tuple(mentions))


def test_cuda_without_cuda(check_refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_refused("train", "device=cuda", mentions=("finds no CUDA device", "device=cpu"))


@pytest.mark.parametrize(
    ("line", "mentions"),
    [
        ("study num_scales", ["study=num_scales"]),
        ("evaluate .", ["run=."]),
        ("evaluate greedy", ["sampler=greedy"]),
        ("evaluate", ["needs run=", "run=PATH"]),
        ("evaluate run=nowhere", ["no such run folder", "nowhere", "trajgen train"]),
        ("evaluate run=. sampler.p", ["key=value"]),
        ("evaluate seed=3", ["'policy.seed' or 'evaluation.seed'"]),
        ("evaluate run=. data=pointmaze/umaze", ["trained on", "init=."]),
        ("bench decision run=nowhere", ["There is no such run folder: nowhere"]),
        ("evaluate --run .", ["fix:      run=."]),
        ("study study=levels executor=slurm", ["There is no executor 'slurm'", "submitit is for SLURM"]),
        ("study seeds=0,1", ["'seeds=[0,1]'"]),
        ("report run=there", ["trajgen report there"]),
        ("report . out=a.pdf", ["HTML", "out=FILE.html"]),
        ("sample sed=3", ["Unknown option 'sed'", "did you mean 'seed'?"]),
        ("sample run=x state=[1,2", ["cannot be read", "state=[1,2"]),
        ("data import id=mine/x-v0", ["needs a source"]),
        ("data import config.json id=mine/x", ["fix:      for example mine/x-v0"]),
        ("data import config.json id=mine/x-v0 achieved=0,1", ["'achieved=[0,1]'"]),
        ("data import config.json id=mine/x-v0 format=D4RL", ["did you mean 'd4rl'?"]),
        ("data import config.json id=mine/x-v0 images=pixels", ["format of a source"]),
        ("data make adroit/door-human", ["trajgen data info adroit/door-human"]),
        ("data record env=CartPole", ["'CartPole-v1'", "or MODULE:CartPole"]),
        ("data record env=CartPole-v1 policy=no_such:act", ["fix:      MODULE:NAME"]),
        ("data make pointmaze/umze", ["'pointmaze/umaze'"]),
        ("data make pointmaze/umaze steps=many", ["steps", "a whole number"]),
        ("data make pointmaze/umaze stepps=3", ["Unknown option 'stepps'", "did you mean 'steps'?"]),
        ("data info no-such-set-v0", ["must be on this machine"]),
        ("data info pointmaze/umaze-dwel", ["no task and no data set", "'pointmaze/umaze-dwell'"]),
        ("list tokenizr", ["Unknown kind 'tokenizr'", "did you mean 'tokenizer'?"]),
        ("list recipes mage", ["trajgen train recipe=mage --cfg job"]),
        ("list recipe/mage", ["trajgen train recipe=mage --cfg job"]),
        ("list pointmaze/umaze", ["trajgen data info pointmaze/umaze"]),
        ("list sampler top_p", ["trajgen list sampler/top_p"]),
        ("list sampler/gredy", ["There is no sampler 'gredy'"]),
        ("list imports=[1]", ["imports"]),
        ("new prior gru file", ["key=value"]),
        ("check prior", ["KIND/NAME"]),
    ],
)
def test_other_commands(line: str, mentions: list[str], check_refused: Callable[..., str], folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    check_refused(*line.split(), mentions=tuple(mentions))


@pytest.mark.parametrize(
    ("line", "mentions"),
    [
        ("trian", "No such command 'trian'. Did you mean 'train'?"),
        ("data mak x", "No such command 'mak'. Did you mean 'make'?"),
        ("data make", "Missing argument 'NAME'"),
        ("train --cgf job", "No such option: --cgf (Possible options: --cfg)"),
        ("train --cfg jbo", "'jbo'"),
        ("bench decision --against gpt", "'gpt'"),
    ],
)
def test_a_line_that_cannot_be_parsed(line: str, mentions: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "Usage: trajgen" in error and "Error: " in error and mentions in error


@pytest.mark.parametrize("words", [["+newkey=3", "~tokenizer", "view.fields=[state]"], ["-m", "seed=0,1", "x@y=z"]])
def test_words_of_hydra_reach_it_as_they_are(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[list[str]] = []
    monkeypatch.setattr("trajgen.cli.train.run", reached.append)
    main(["train", *words])
    assert reached == [[word if word != "-m" else "--multirun" for word in words]]


def test_paths_are_taken_as_they_stand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[Any] = []
    monkeypatch.setattr("trajgen.experiments.evaluate", lambda run, _, *, out, **__: reached.append((run, out)))
    odd = folder / "lr=1 (é) [a],b"
    odd.mkdir()
    (odd / "config.json").touch()
    main(["evaluate", f"run={odd}", "out=1e3"])
    assert reached == [(odd, Path("1e3"))]
    monkeypatch.setattr("trajgen.cli.train.run", reached.append)
    main(["train", f"run_dir={odd}"])
    assert compose(reached[1]).run_dir == str(odd)


def refused_without(check_refused: Callable[..., str], *mentions: str) -> str:
    return check_refused(*TRAIN_OWN_DATA, *SMALL, mentions=mentions)


def test_a_missing_or_empty_data_set(check_refused: Callable[..., str], folder: Path) -> None:
    check_refused(*TRAIN_OWN_DATA, mentions=("must be on this machine", ID, f"looked for in {folder / 'sets'}"))
    write()
    refused_without(check_refused, "at least one episode", ID)


def test_a_truncated_data_set(folder: Path, check_refused: Callable[..., str]) -> None:
    write(raw())
    file = folder / "sets" / ID / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused_without(check_refused, "complete and readable", ID, "force")


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"rewards": np.full(40, np.nan)}, "field 'rewards', row 0"),
        ({"actions": np.full((40, 2), np.inf, np.float32)}, "field 'actions'"),
        ({"actions": np.zeros((40, 3), np.float32)}, "field 'actions'"),
        ({"actions": np.zeros((39, 2), np.float32)}, "field 'actions'"),
    ],
    ids=["nan", "infinity", "wide", "short"],
)
def test_a_data_set_with_faults(changes: dict[str, Any], mentions: str, check_refused: Callable[..., str]) -> None:
    write(raw(), raw(**changes))
    refused_without(check_refused, ID, "episode 1", mentions)


def test_states_of_another_width(check_refused: Callable[..., str]) -> None:
    wider = raw()
    wider["observations"]["observation"] = np.zeros((41, 5))
    write(raw(), wider)
    refused_without(check_refused, "episode 1", "field 'states'", "(41, 5)")


def test_actions_that_are_no_vectors_and_no_choices(check_refused: Callable[..., str]) -> None:
    write(raw(actions=np.zeros((40, 3), np.int8)), action_space=MultiBinary(3))
    refused_without(check_refused, "MultiBinary(3)", "or MultiDiscrete of several parts")


def test_a_discrete_action_that_is_no_choice(check_refused: Callable[..., str]) -> None:
    write(raw(actions=np.full(40, 3)), action_space=Discrete(3))
    refused_without(check_refused, ID, "an action between 3 and 3, of [3] choices")


def test_a_horizon_longer_than_every_episode(check_refused: Callable[..., str]) -> None:
    write(raw(40), raw(50))
    refused_without(check_refused, "at most 50 steps", "data.horizon=32", "data.stride=1")


def test_an_observation_key_that_is_not_there(check_refused: Callable[..., str]) -> None:
    write(raw())
    check_refused(*TRAIN_OWN_DATA, *SMALL, "data.state_key=observatoin", mentions=("data.state_key", "observation"))


def test_a_run_folder_of_another_configuration(stranger: Path, check_refused: Callable[..., str]) -> None:
    again = ["train", *WORDS, f"run_dir={stranger}"]
    check_refused(
        *again, "seed=1", "resume=true", mentions=("belongs to one configuration", "seed=0 there, 1 here", "run_dir=")
    )
    check_refused(*again, "prior.depth=2", mentions=("prior.depth=1 there, 2 here",))
    changes = ("lr=1", "steps=9", "warmup=0.2", "grad_clip=3", "ema_decay=0.5", "batch_size=9")
    words = [f"engine.stages.prior.{change}" for change in changes]
    message = check_refused(*again, "data.horizon=12", *words, mentions=("; and 2 more",))
    assert message.count(" there, ") == 5
    check_refused(*again, mentions=("finished", "trajgen evaluate run="))


def test_a_truncated_checkpoint(stranger: Path, check_refused: Callable[..., str]) -> None:
    path = stranger / "checkpoints" / "final.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for command in ("evaluate", "sample"):
        check_refused(command, f"run={stranger}", mentions=("damaged or cut short", "final.safetensors"))


def test_a_folder_that_is_no_run(
    folder: Path, check_refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty").mkdir()
    check_refused("evaluate", "run=empty", mentions=("config.json",))
    for name in ("lab/runs/mage-umaze-s0", "lab/others/bc-s0"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    monkeypatch.chdir(folder / "lab")
    Path("runs/mage-umaze-s0/summary.md").touch()
    for name in ("mage-umze-s0", "runs/mage-umaze-s1", "runs/mage-umaze"):
        check_refused("evaluate", f"run={name}", mentions=("'runs/mage-umaze-s0'",))
    check_refused("evaluate", "run=runs/mage-umaze-s0/summary.md", mentions=("fix:      run=runs/mage-umaze-s0",))
    check_refused("evaluate", "run=runs", mentions=("runs/mage-umaze-s0", "zoo/mage-umaze"))
    check_refused("evaluate", "run=others/bc-s1", mentions=("'others/bc-s0'",))


@pytest.mark.parametrize(
    ("line", "mentions"),
    [
        ("evaluate sampler=gredy", "'greedy'"),
        ("evaluate sampler.temprature=1", "'temperature'"),
        ("evaluate evaluation.episodes=0", "evaluation.episodes=48"),
        ("evaluate evaluation.episodes=x", "a whole number"),
        ("evaluate evalution.episodes=3", "'evaluation'"),
        ("evaluate policy.replan_interval=99", "policy.replan_interval=99"),
        ("evaluate device=tpu9", "device=tpu9"),
        ("evaluate episodes=3", "did you mean 'evaluation.episodes'?"),
        ("evaluate engine.budget=3", "Unknown option 'engine.budget'"),
        ("evaluate decoder.width=8", "leave out what changes the weights: decoder.width"),
        ("evaluate policy.revise_threshold=0.3", "leave out policy.revise_threshold"),
        ("evaluate data.return_power=1.0", "leave data.return_power out"),
        ("sample data.stride=2", "leave data.stride out"),
        ("plot data.top_fraction=0.5", "leave data.top_fraction out"),
        ("video data.action_limits=data", "leave data.action_limits out"),
        ("evaluate data.shift.gear=2", "or data.env_id=ID of an environment"),
        ("sample plans=x", "plans"),
        ("sample state=[1]", "The state of this run has"),
        ("sample return=.inf", "leave return out"),
        ("plot returns=[.nan]", "leave returns out"),
    ],
)
def test_overrides_of_a_run(line: str, mentions: str, stranger: Path, check_refused: Callable[..., str]) -> None:
    check_refused(*line.split(), f"run={stranger}", mentions=(mentions,))


def test_a_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ("train sampler=gredy --debug", "--debug evaluate", "train seed=x --debug"):
        with pytest.raises(ConfigError):
            main(line.split())
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigError):
        main(["train", "sampler=gredy"])


@pytest.mark.parametrize("word", ["seed=abc", "engine.stages.prior.optimizer=foo"])
def test_nothing_is_left_where_the_command_was_given(
    word: str, folder: Path, check_refused: Callable[..., str]
) -> None:
    check_refused("train", "recipe=mage", word, mentions=(word.rpartition("=")[2],))
    assert list(folder.iterdir()) == []
