"""What the command line answers to common mistakes, and that whatever it lists is explained."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import pytest

from trajgen.cli import main
from trajgen.cli.components import _argument_docs
from trajgen.config import compose
from trajgen.core.checks import refuse_idle
from trajgen.core.errors import ConfigError, DataError
from trajgen.core.registry import KINDS, names, spec
from trajgen.envs.gym import make_env


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        main(words)
    return capsys.readouterr().err


def test_a_run_that_does_not_exist_is_answered_alike_by_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["evaluate"], ["export"], ["hub", "push", "repo=me/run"]):
        assert "There is no such run folder: runs/none" in answer(capsys, *words, "run=runs/none")


@pytest.mark.parametrize(
    ("tokenizer", "has", "lacks"),
    [("multiscale", "codebook_size", "bin_limit"), ("bins", "bin_limit", "codebook_size")],
)
def test_an_unknown_option_is_answered_by_those_of_the_chosen_component(tokenizer: str, has: str, lacks: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=mage", f"tokenizer={tokenizer}", "tokenizer.codebook=256"])
    text = str(caught.value)
    assert has in text and lacks not in text and text.count("latent_length") < 2


def test_a_word_alone_is_answered_by_the_option_that_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert "run=runs/mine" in answer(capsys, "evaluate", "runs/mine")
    assert "env=Pendulum-v1" in answer(capsys, "data", "record", "Pendulum-v1")


def test_a_mistyped_name_of_many_is_answered_by_those_that_are_close(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "train", "data=pointmaze/umaze-dwel")
    assert "'pointmaze/umaze-dwell'" in text and "adroit" not in text
    assert "dt" in answer(capsys, "train", "recipe=magee")  # few are all listed


def test_the_fix_for_a_missing_package_of_an_environment_is_pips() -> None:
    class Game(gymnasium.Env):
        def __init__(self) -> None:
            raise gymnasium.error.DependencyNotInstalled(
                'pygame is not installed, run `pip install "gymnasium[classic-control]"`'
            )

    with pytest.raises(DataError) as caught:
        make_env(gymnasium.envs.registration.EnvSpec("Game-v0", entry_point=Game))
    assert caught.value.fix == 'pip install "gymnasium[classic-control]"'


def test_options_of_revisions_are_refused_where_they_are_typed_and_do_nothing() -> None:
    """Not where the advice ``policy.revise=null`` is followed, nor those of a task, which are not typed."""
    for options, revise in (
        (["policy.revise_threshold"], 3),
        (["policy.revise_threshold", "policy.revise"], None),
        (["policy.seed"], None),
    ):
        refuse_idle(options, revise)
    with pytest.raises(ConfigError, match=r"policy\.revise=2[\s\S]*leave out policy\.revise_threshold"):
        refuse_idle(["policy.revise_threshold", "policy.seed"], None)


@pytest.mark.parametrize("what", ["recipes", "studies", "searches"])
def test_what_lies_in_files_is_listed_in_whole_sentences(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", what])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert lines and all(line.endswith((".", "?")) for line in lines)


def test_every_option_of_a_component_is_explained() -> None:
    components = [
        spec(kind, name) for kind in KINDS for name in names(kind) if spec(kind, name).module.startswith("trajgen")
    ]
    docs = {(c.kind, c.name, o.name): _argument_docs(c).get(o.name, "") for c in components for o in c.options}
    assert len(docs) > 50 and not [key for key, doc in docs.items() if len(doc.split()) < 2]


def test_an_interruption_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trajgen.data.store.local_sets", interrupted)
    monkeypatch.setattr("trajgen.experiments.run_study", interrupted)
    for line, beginning in {
        "data list": "Interrupted.",
        "study study=levels": "The study was stopped; the same",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(line.split())
        assert ended.value.code == 130
        error = capsys.readouterr().err
        assert error.startswith(beginning) and error.count("\n") == 1


def test_an_interruption_while_the_command_line_is_loaded_is_said() -> None:
    code = """
import sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
import trajgen.cli
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")
