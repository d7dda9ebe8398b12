"""The commands of the README and the pages: each is run, at debug size where it takes long, or says why not."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from debug_size import trains_and_acts
from pages import NOT_RUN, PAGES, README, RUN_ELSEWHERE, commands, refusals, run_python, shell_lines, write_files
from tiny import STAGES

from trajgen import cli, experiments
from trajgen.config import Config, compose
from trajgen.envs import makers
from trajgen.experiments import cells as studies
from trajgen.experiments import search as searches
from trajgen.experiments.definition import Study
from trajgen.experiments.search_space import Search

RUN = "runs/mage-umaze-dwell-s0"
"""The run folder that the pages speak of."""
STEPS = 400
"""Of a data set that a page makes."""
FOR_HYDRA = {"-m", "--help", "--cfg"}
REPLACED = re.compile(r" (?:device|repeats|threads|evaluation\.seed)=\S+| format=onnx|(?<==)[\d.e-]+(?= |$)")
"""What differs between commands that are one at debug size: numbers among it, and what is exported by default."""


def called(name: str) -> list[Any]:
    """The different commands of all pages that begin with ``name``, as parameters of a test."""
    parameters: dict[str, Any] = {}
    for page, path in PAGES.items():
        for words in commands(path):
            text = shlex.join(words[1:])
            # What needs a file of its page is another command on another page.
            key = text if "imports=" not in text and ".yaml" not in text else f"{page} {text}"
            key = REPLACED.sub("", key)
            if words[0] == name and not any(shlex.join(["trajgen", *words]).startswith(each) for each in NOT_RUN):
                parameters.setdefault(key, pytest.param(page, words[1:], id=f"{name}: {text}"))
    return list(parameters.values())


def copy_run(folder: Path, run: Path) -> Path:
    """Puts a copy of a run where the pages say that it is."""
    return Path(shutil.copytree(run, folder / RUN))


def prepare(page: str, folder: Path) -> None:
    """Writes what the commands of a page need: its files, and the skeletons that it has ``trajgen new`` write."""
    write_files(PAGES[page], folder)
    for words in commands(PAGES[page]):
        if words[0] == "new":
            cli.main(words)


def test_every_line_of_a_shell_block_is_run_or_says_why_not() -> None:
    lines = [line for path in PAGES.values() for line in shell_lines(path)]
    names = {line.split()[1] for line in lines if line.startswith(("trajgen ", ".venv/bin/trajgen "))}
    here = {"train", "evaluate", "sample", "data", "list", "study", "check", "new", "plot", "video", "report"}
    here |= {"search", "export", "bench", "hub"}
    assert names <= here, "give the command a test here"
    for line in lines:
        is_tested = line.startswith(("trajgen ", ".venv/bin/trajgen ", *RUN_ELSEWHERE))
        marked = [start for start in NOT_RUN if line.startswith(start)]
        assert is_tested or marked, line
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in lines), f"no page has it any more: {start}"


@pytest.mark.parametrize(("page", "words"), called("train"))
def test_train_commands_train_and_act(
    page: str, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole composition, one step in each stage. Of a sweep each value is composed; the rest is Hydra's."""
    prepare(page, folder)
    if page != README.name and not {*words} & FOR_HYDRA:
        trains_and_acts(compose(words))
        return
    built: list[Config] = []
    executed: list[list[str]] = []

    def execute(_: str, arguments: list[str], __: object) -> None:
        executed.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(experiments, "train", lambda config, *_: built.append(config))
    monkeypatch.setattr(os, "execve", execute)
    with suppress(SystemExit):
        cli.main(["train", *words])
    assert len(executed) == bool({"-m", "--cfg"} & {*words})
    for config in built:
        trains_and_acts(config)


@pytest.mark.parametrize(
    ("page", "words", "message"), [(p, *each) for p, path in PAGES.items() for each in refusals(path)]
)
def test_refusals_are_those_of_the_page(
    page: str,
    words: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_files(PAGES[page], folder)
    monkeypatch.setattr(experiments, "train", lambda config, *_: experiments.dry_run(config))
    with pytest.raises(SystemExit):
        cli.main(words)
    assert capsys.readouterr().err.strip() == message.strip()


@pytest.mark.parametrize(("page", "words"), called("study"))
def test_study_commands_ask_for_variants_that_train(
    page: str, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every variant can be built, and the last one trains; shipped studies are built in ``tests/experiments``."""
    prepare(page, folder)
    requested: list[Study] = []
    monkeypatch.setattr(experiments, "run_study", lambda study, *_, **__: requested.append(study))
    cli.main(["study", *words])
    rows = studies.make_rows(replace(requested[0], equal=("steps",)))
    if not any(word.startswith("study=") and not word.endswith(".yaml") for word in words):
        assert studies.dry_run_rows(rows) == {}
    trains_and_acts(rows[-1].config)


@pytest.mark.parametrize(("page", "words"), called("search"))
def test_search_commands_propose_what_trains(
    page: str, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole searches, at debug size, are run in ``tests/experiments``."""
    prepare(page, folder)
    requested: list[Search] = []
    monkeypatch.setattr(experiments, "run_search", lambda search, *_, **__: requested.append(search))
    cli.main(["search", *words])
    assert len(requested) == 1
    proposed = searches.propose(requested[0], 1, [])
    trains_and_acts(compose(requested[0].overrides(proposed, {})))


@pytest.mark.parametrize(("page", "words"), called("check"))
def test_check_commands_find_nothing_wrong(
    page: str, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(page, folder)
    cli.main(["check", *words])
    assert "contracts that apply are kept" in capsys.readouterr().out


@pytest.mark.parametrize(("page", "words"), called("new"))
def test_new_commands_write_a_file(page: str, words: list[str], folder: Path) -> None:
    cli.main(["new", *words])
    assert [path.suffix for path in folder.iterdir()] == [".py"]


@pytest.mark.parametrize(("page", "words"), called("evaluate"))
def test_evaluate_commands_run(
    page: str, words: list[str], folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a toy run, whose episodes are short."""
    monkeypatch.chdir(folder)
    prepare(page, folder)
    run_copy = copy_run(folder, run)
    before = (run_copy / "evaluation.json").stat().st_mtime_ns
    monkeypatch.setattr("trajgen.evaluation.evaluate.LATENCY_BATCHES", ())
    if len(words) > 1:  # drawn once is enough
        monkeypatch.setattr("trajgen.viz.plans.draw_run", lambda *_, **__: [])
    few = [f"evaluation.episodes={min(2, int(w.partition('=')[2]))}" for w in words if "episodes=" in w]
    monkeypatch.setattr("trajgen.export.backends.OnnxProgram", lambda module, *_: module)  # as test_backends.py has it
    cli.main(["evaluate", *words, *few, "device=cpu"])
    changed = len([word for word in words if not word.startswith(("run=", "imports="))])
    assert bool([*run_copy.glob("evaluations/*/evaluation.json")]) == bool(changed)
    assert ((run_copy / "evaluation.json").stat().st_mtime_ns == before) == bool(changed)


@pytest.mark.parametrize(("page", "words"), called("sample"))
def test_sample_commands_run(
    page: str,
    words: list[str],
    folder: Path,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    run_copy = copy_run(folder, run)
    cli.main(["sample", *words, "device=cpu"])
    assert "condition error of the first state" in " ".join(capsys.readouterr().out.split())
    assert (run_copy / "plots" / "sample-1.png").exists()


@pytest.mark.parametrize(("page", "words"), called("export"))
def test_export_commands_write_a_policy(
    page: str, words: list[str], folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the default format the names alone: ``tests/export`` plays what ONNX Runtime makes of it."""
    monkeypatch.chdir(folder)
    copy_run(folder, run)
    monkeypatch.setattr("trajgen.export.package.to_onnx", lambda *_: b"")
    cli.main(["export", *words, "out=exported"])
    written = {path.name for path in (folder / "exported").iterdir()}
    assert {"policy.py", "policy.json"} < written and {name.partition(".")[0] for name in written} >= {"plan", "act"}


@pytest.mark.parametrize(("page", "words"), called("bench"))
def test_bench_commands_measure(page: str, words: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["repeats=1", "threads=1"]
    few += [f"engine.stages.{stage}.batch_size=16" for stage in STAGES] if words[0] == "train" else ["batch=[1]"]
    if words[0] == "decision":
        few.append("backends=[eager]")
    cli.main(["bench", *words, *few, "device=cpu"])
    out = capsys.readouterr().out
    assert {"decision": "roofline at batch 1", "train": "a training step", "data": "loaded in"}[words[0]] in out


OF_DATA = [page for page, path in PAGES.items() if any(words[0] == "data" for words in commands(path))]


@pytest.mark.parametrize("page", OF_DATA)
def test_data_commands_run_one_after_the_other(
    page: str, folder: Path, tiny_place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the page's Python blocks, which write what is read. Sets are made with few steps."""
    shutil.copytree(tiny_place / "datasets", folder / "datasets")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "datasets"))
    make = makers.make
    monkeypatch.setattr(makers, "make", lambda name, **o: make(name, **(o | {"steps": STEPS, "force": True})))
    data_commands = [words for words in commands(PAGES[page]) if words[0] == "data" and words[1] != "get"]
    if any(words[1] in ("import", "info", "record") for words in data_commands):
        run_python(page, folder)
    for words in data_commands:
        again = ["force=true"] if "import" in words and "force=true" not in words and len(words) > 3 else []
        few = ["engine.budget=0.002", "engine.stages.encoder.batch_size=8"] if words[1] == "encode" else []
        cli.main([*words, *again, *few])  # a later block of the page may have written the same set
        assert capsys.readouterr().out.strip(), words


@pytest.mark.parametrize(("page", "words"), called("list"))
def test_list_commands_run(page: str, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(page, folder)
    capsys.readouterr()
    cli.main(["list", *words])
    assert capsys.readouterr().out
