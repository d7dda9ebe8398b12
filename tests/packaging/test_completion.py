"""What the Tab key offers: asked directly, and by the shells that are here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trajgen.cli import COMMANDS, main
from trajgen.cli.completion import SCRIPTS, offered
from trajgen.config import data_files, recipe_files, study_files
from trajgen.core.registry import KINDS, names, spec

HEAVY = {"torch", "minari", "gymnasium", "mujoco", "matplotlib", "timm", "hydra", "vector_quantize_pytorch"}
ASKED = {
    "trajgen tra": ["trajgen", "tra"],
    "trajgen train recipe=two": ["trajgen", "train", "recipe", "=", "two"],
    "trajgen train sampler=top_p sampler.": ["trajgen", "train", "sampler", "=", "top_p", "sampler."],
    "trajgen list sampler/gr": ["trajgen", "list", "sampler/gr"],
    "trajgen evaluate run=runs/m": ["trajgen", "evaluate", "run", "=", "runs/m"],
}
"""Lines, and how bash takes them apart."""
WHOLE = {
    "trajgen tra": {"train"},
    "trajgen train recipe=two": {"recipe=two_level"},
    "trajgen train sampler=top_p sampler.": {"sampler.p=", "sampler.temperature=", "sampler.guidance="},
    "trajgen list sampler/gr": {"sampler/greedy"},
    "trajgen evaluate run=runs/m": {"run=runs/mine"},
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, a study, a recipe, and the command on the path."""
    for folder in ("runs/mine", "studies/widths/cells/wide-s0", "bin", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs/mine/config.json").write_text('{"format": 2, "sampler": {"name": "top_k"}}')
    (tmp_path / "studies/widths/cells/wide-s0/config.json").write_text("{}")
    (tmp_path / "own.yaml").write_text("sampler: {name: beam}\nengine: {stages: {only: {steps: 3}}}\n")
    command = tmp_path / "bin" / "trajgen"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m trajgen "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(kind: str, name: str) -> set[str]:
    return {f"{kind}.{option.name}=" for option in spec(kind, name).options}


def test_commands_are_offered_first() -> None:
    assert {*offered("trajgen ")} == {*COMMANDS, "--help", "--version"}
    assert offered("trajgen ex") == ["export"] and offered("cd there && ./bin/trajgen ex") == ["export"]
    assert offered("trajgen trian recipe=") == [] and offered("trajgen zzz") == []


def test_names_of_files_are_offered(lab: Path) -> None:
    assert offered("trajgen train recipe=") == sorted(f"recipe={name}" for name in [*recipe_files(), "own.yaml"])
    assert {*offered("trajgen bench train data=")} == {f"data={name}" for name in [*data_files(), "own.yaml"]}
    assert {*offered("trajgen study study=n")} == {f"study={n}" for n in study_files() if n.startswith("n")}
    assert offered(f"trajgen train recipe={lab}/ow") == [f"recipe={lab}/own.yaml"]
    assert offered("trajgen bench decision --against ") == ["dt"]
    assert offered("trajgen data make pointmaze/umaze") == ["pointmaze/umaze", "pointmaze/umaze-dwell"]


@pytest.mark.parametrize("kind", KINDS)
def test_components_and_their_options_are_offered(kind: str) -> None:
    assert offered(f"trajgen train {kind}=") == [f"{kind}={name}" for name in names(kind)]
    assert offered(f"trajgen list {kind}/") == [f"{kind}/{name}" for name in names(kind)]
    assert f"{kind}=" in offered("trajgen train ") and kind in offered("trajgen new ")
    for name in names(kind):
        assert {*offered(f"trajgen train {kind}={name} {kind}.")} == options(kind, name)


def test_the_component_of_the_recipe_or_of_the_run_is_asked(lab: Path) -> None:
    assert {*offered("trajgen train recipe=own.yaml sampler.")} == options("sampler", "beam")
    assert {*offered("trajgen evaluate run=runs/mine sampler.")} == options("sampler", "top_k")
    assert {*offered("trajgen evaluate run=runs/mine sampler=greedy sampler.")} == options("sampler", "greedy")
    assert {*offered("trajgen train recipe=mage sampler.")} == options("sampler", "temperature")
    assert offered("trajgen train recipe=own.yaml engine.stages.") == ["engine.stages.only."]
    assert "engine.stages.only.steps=" in offered("trajgen train recipe=own.yaml engine.stages.only.")
    assert offered("trajgen train recipe=absent.yaml engine.stages.") == []
    for spoilt in ("not a run", '{"format": 99}', "[" * 10**5):
        (lab / "runs/mine/config.json").write_text(spoilt)
        assert offered("trajgen evaluate run=runs/mine sampler.") == []


def test_values_that_are_few_are_offered() -> None:
    assert offered("trajgen train engine.precision=b") == ["engine.precision=bfloat16"]
    assert offered("trajgen evaluate evaluation.latency=") == ["evaluation.latency=false", "evaluation.latency=true"]
    assert offered("trajgen sample device=") == ["device=auto", "device=cpu", "device=cuda"]
    assert offered("trajgen export format=") == ["format=onnx", "format=torch_export"]
    assert "what=[usage,plans" in offered("trajgen plot what=[usage,")
    assert offered("trajgen train -m sampler=greedy,top_") == ["sampler=greedy,top_k", "sampler=greedy,top_p"]
    assert offered("trajgen completion ") == sorted(SCRIPTS)


def test_run_folders_are_offered(lab: Path) -> None:
    assert offered("trajgen plot run=") == ["run=bin/", "run=empty/", "run=runs/", "run=runs/mine", "run=studies/"]
    assert offered("trajgen video run=studies/widths/cells/w") == ["run=studies/widths/cells/wide-s0"]
    assert {"runs/mine", "out=", "title="} <= {*offered("trajgen report ")}
    assert offered("trajgen report studies/") == ["studies/widths"]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "list"])  # which has no options
def test_every_option_of_a_help_text_is_offered(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    before = {"data": "make x ", "check": "prior/gru ", "new": "prior gru ", "bench": "train "}.get(command, "")
    for option in re.findall(r"(?m)^  (\w+)=", capsys.readouterr().out):
        assert option == "key" or f"{option}=" in offered(f"trajgen {command} {before}")


@pytest.mark.parametrize("line", ["trajgen train sampler.", "trajgen evaluate run=", "trajgen bench train recipe="])
def test_nothing_heavy_is_imported(line: str, lab: Path) -> None:
    code = (
        f"import sys; from trajgen.cli import main; main(['completion', 'words', {line!r}]); print('=', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not HEAVY & {*done.stdout.rpartition("=")[2].split()} and done.stdout.count("\n") > 1


def test_a_shell_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "fsh"])
    said = capsys.readouterr().err
    assert "bash, zsh, fish" in said and "did you mean 'fish'" in said
    main(["completion"])
    assert "source <(trajgen completion bash)" in capsys.readouterr().out


def shell(*command: str) -> list[str]:
    """What a shell found, line by line; its answers are parted by that word."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("parted\n")[:-1]


def test_bash_is_told(lab: Path) -> None:
    asked = [
        f"COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        "_trajgen; printf '%s\\n' \"${COMPREPLY[@]}\" parted"
        for line, words in ASKED.items()
    ]
    found = shell(
        "bash", "--norc", "-c", "\n".join(["source <(trajgen completion bash)", "complete -p trajgen", *asked])
    )
    found[0] = found[0].partition("\n")[2]  # how it is bound
    for line, said in zip(ASKED, found, strict=True):
        parts = {word.rpartition("=")[2] or word for word in WHOLE[line]}
        expected = parts if "=" in ASKED[line][-2:] else WHOLE[line]
        assert {*said.split()} == expected, line  # bash replaces what follows the '=' alone


def test_zsh_is_told(lab: Path) -> None:
    stubs = 'compdef() { :; }; compadd() { print -rl -- "${(P@)argv[-1]}"; }'
    asked = [f"LBUFFER='{line}'; _trajgen; print parted" for line in ASKED]
    found = shell("zsh", "-f", "-c", "\n".join([stubs, "source <(trajgen completion zsh)", *asked]))
    assert [{*said.split()} for said in found] == [*WHOLE.values()]


def test_fish_is_told(lab: Path) -> None:
    asked = [f"complete -C '{line}'; echo parted" for line in ASKED]
    found = shell("fish", "--no-config", "-c", "\n".join(["trajgen completion fish | source", *asked]))
    assert [{*said.split()} for said in found] == [*WHOLE.values()]
