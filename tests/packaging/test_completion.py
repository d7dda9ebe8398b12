"""What the Tab key offers, through the protocol of each shell that Typer writes a script for."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trajgen.cli import main
from trajgen.cli.completion import COMMANDS
from trajgen.cli.overrides import options_of
from trajgen.cli.plot import PlotOptions
from trajgen.config import data_files, recipe_files, study_files, zoo_files
from trajgen.core.formats import FORMAT
from trajgen.core.registry import KINDS, names, spec
from trajgen.viz.plot import PICTURES

HEAVY = {"torch", "minari", "gymnasium", "mujoco", "matplotlib", "timm", "hydra", "vector_quantize_pytorch"}
Offered = Callable[[str], list[str]]

ZOO = [f"run=zoo/{name}" for name in zoo_files()]


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, a study, a recipe, and the command on the path."""
    for folder in ("runs/mine", "studies/widths/cells/wide-s0", "bin", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs/mine/config.json").write_text(f'{{"format": {FORMAT}, "sampler": {{"name": "top_k"}}}}')
    (tmp_path / "studies/widths/cells/wide-s0/config.json").write_text("{}")
    (tmp_path / "own.yaml").write_text("sampler: {name: beam}\nengine: {stages: {only: {steps: 3}}}\n")
    command = tmp_path / "bin" / "trajgen"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m trajgen "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Offered:
    """Gives the words that fish would offer at the end of a line."""

    def ask(line: str) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setenv("_TRAJGEN_COMPLETE", "complete_fish")
            patch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
            patch.setenv("_TYPER_COMPLETE_ARGS", line)
            main([])
        return [each.partition("\t")[0] for each in capsys.readouterr().out.split("\n") if each]

    return ask


def options(kind: str, name: str) -> set[str]:
    return {f"{kind}.{option.name}" for option in spec(kind, name).options}


def keys(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words}


def test_commands_and_flags_are_offered(offered: Offered) -> None:
    assert {*offered("trajgen ")} == {path.split()[0] for path in COMMANDS} | {"data"}
    assert offered("trajgen data ma") == ["make"] and offered("trajgen train --conf") == ["--config-dir"]
    assert offered("trajgen trian recipe=") == []
    assert offered("trajgen bench decision --against ") == ["dt"] and "all" in offered("trajgen train --cfg ")


def test_names_of_files_are_offered(offered: Offered, lab: Path) -> None:
    assert offered("trajgen train recipe=") == sorted(f"recipe={name}" for name in [*recipe_files(), "own.yaml"])
    assert {*offered("trajgen bench train data=")} == {f"data={name}" for name in [*data_files(), "own.yaml"]}
    assert {*offered("trajgen study study=n")} == {f"study={n}" for n in study_files() if n.startswith("n")}
    assert offered(f"trajgen train recipe={lab}/ow") == [f"recipe={lab}/own.yaml"]
    assert offered("trajgen data make pointmaze/umaze-d") == ["pointmaze/umaze-dwell"]


@pytest.mark.parametrize("kind", KINDS)
def test_components_and_their_options_are_offered(kind: str, offered: Offered) -> None:
    assert offered(f"trajgen train {kind}=") == [f"{kind}={name}" for name in names(kind)]
    assert offered(f"trajgen list {kind}/") == [f"{kind}/{name}" for name in names(kind)]
    assert f"{kind}=" in offered("trajgen train ") and kind in offered("trajgen new ")
    for name in names(kind):
        assert keys(offered(f"trajgen train {kind}={name} {kind}.")) == options(kind, name)


@pytest.mark.parametrize(
    ("line", "component"),
    [
        ("trajgen train recipe=own.yaml", "beam"),
        ("trajgen evaluate run=runs/mine", "top_k"),
        ("trajgen evaluate run=runs/mine sampler=top_p", "top_p"),
        ("trajgen train recipe=mage", "temperature"),
    ],
)
def test_the_component_of_the_line_is_meant(line: str, component: str, offered: Offered) -> None:
    assert keys(offered(f"{line} sampler.")) == options("sampler", component)


def test_stages_are_those_of_the_recipe_and_damaged_files_offer_nothing(offered: Offered, lab: Path) -> None:
    assert "engine.stages.only.steps=" in offered("trajgen train recipe=own.yaml engine.stages.")
    assert offered("trajgen train recipe=absent.yaml engine.stages.") == []
    for text in ("not a run", '{"format": 99}', "[" * 10**5):
        (lab / "runs/mine/config.json").write_text(text)
        assert offered("trajgen evaluate run=runs/mine sampler.") == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train engine.precision=b", ["engine.precision=bfloat16"]),
        ("evaluate evaluation.latency=", ["evaluation.latency=false", "evaluation.latency=true"]),
        ("sample device=", ["device=auto", "device=cpu", "device=cuda"]),
        ("export format=", ["format=onnx", "format=torch_export"]),
        ("train -m sampler=greedy,top_", ["sampler=greedy,top_k", "sampler=greedy,top_p"]),
        ("plot what=[usage,pl", ["what=[usage,plans"]),
        ("train see", ["seed=", "seed=0"]),  # two, so that no blank follows the '='
        ("train sampler=top_p sampler.p", ["sampler.p=", "sampler.p=VALUE"]),
        ("plot out=", []),  # files, by the shell
        (
            "plot run=",
            [
                "run=bin/",
                "run=empty/",
                "run=runs/",
                "run=runs/mine",
                "run=studies/",
                *(f"run=zoo/{name}" for name in zoo_files()),
            ],
        ),
        ("video run=studies/widths/cells/w", ["run=studies/widths/cells/wide-s0"]),
        ("report studies/", ["studies/widths"]),
    ],
)
def test_values_are_offered(line: str, words: list[str], offered: Offered) -> None:
    assert offered(f"trajgen {line}") == words


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_of_a_help_is_offered(path: str, offered: Offered, capsys: pytest.CaptureFixture[str]) -> None:
    main([*path.split(), "--help"])
    text = capsys.readouterr().out
    arguments = {"data make": "x ", "data get": "x ", "data import": "x ", "check": "prior/gru ", "new": "prior gru "}
    words = keys(offered(f"trajgen {path} {arguments.get(path, '')}"))
    for key, option in options_of(COMMANDS[path].options).items():
        assert f"\n  {option.label}" in text and option.doc and key in words
    assert max(map(len, text.splitlines())) <= 80 and "\n  Example: trajgen " in text


REPLIES = {
    "trajgen tra": {"train"},
    "trajgen train recipe=": {*recipe_files(), "own.yaml"},
    "trajgen train sampler=top_p sampler.": {"sampler.p=", "sampler.temperature=", "sampler.guidance="},
    "trajgen evaluate run=runs/m": {"runs/mine"},
}


def test_bash_replaces_what_follows_the_equals_sign() -> None:
    script = ['eval "$(_TRAJGEN_COMPLETE=source_bash trajgen)"', "complete -p trajgen >&2"]
    for line in REPLIES:
        words = [part for word in line.split(" ") for part in word.replace("=", " = ").rstrip(" ").split(" ")]
        script.append(f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}")
        script.append("_trajgen_completion trajgen; echo ${COMPREPLY[@]}")
    done = subprocess.run(["bash", "--norc", "-c", "\n".join(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "_trajgen_completion" in done.stderr
    assert [{*reply.split()} for reply in done.stdout.splitlines()] == [*REPLIES.values()]


@pytest.mark.parametrize(
    ("shell", "part"), [("bash", "complete -o default -F"), ("zsh", "#compdef trajgen"), ("fish", "--command trajgen")]
)
def test_the_library_writes_the_scripts(
    shell: str, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TRAJGEN_COMPLETE", f"source_{shell}")
    main([])
    assert part in capsys.readouterr().out


def test_zsh_is_answered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_TRAJGEN_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "trajgen train recipe=two")
    main([])
    assert capsys.readouterr().out.strip() == "_arguments '*: :((\"recipe=two_level\"))'"


@pytest.mark.parametrize("line", ["trajgen train sampler.", "trajgen evaluate run=", "trajgen bench train recipe="])
def test_nothing_heavy_is_imported(line: str) -> None:
    code = "import sys\ntry:\n import trajgen.__main__\n trajgen.cli.main()\nfinally: print('=', *sys.modules)"
    environment = {"_TRAJGEN_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment |= {"_TYPER_COMPLETE_ARGS": line, **os.environ}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert not HEAVY & {*done.stdout.rpartition("=")[2].split()} and done.stdout.count("\n") > 1, done.stderr


def test_the_pictures_that_are_offered_are_those_that_there_are() -> None:
    assert options_of(PlotOptions)["what"].values == tuple(PICTURES)


@pytest.mark.parametrize("columns", [60, 100])
def test_a_help_fits_the_terminal_and_nothing_of_it_is_cut_off(columns: int) -> None:
    for words in (["--help"], ["train", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "trajgen", *words],
            env=os.environ | {"COLUMNS": str(columns)},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        lines = [line for line in done.stdout.splitlines() if not line.strip().startswith(("trajgen ", "Example:"))]
        assert max(map(len, lines)) <= columns
        assert not [line for line in lines if line.endswith("...") and "Usage:" not in line]


@pytest.mark.parametrize(
    ("path", "is_no_option"), [("data encode", "return_target"), ("data import", "One of auto.")], ids=str
)
def test_a_help_names_what_the_command_takes(path: str, is_no_option: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([*path.split(), "--help"])
    assert is_no_option not in " ".join(capsys.readouterr().out.split())
