"""Run folders from strangers: nothing in them is executed, imported, followed or taken on trust."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from points import WORDS
from rich.console import Console

from trajgen import experiments, load_policy
from trajgen.config import compose
from trajgen.core.errors import CheckpointError, TrajgenError
from trajgen.core.files import LARGEST_FILE, read_json
from trajgen.data.options import DataOptions
from trajgen.engine.checkpoint import Checkpoints
from trajgen.envs.eval_env import EnvRecord, make_eval_env
from trajgen.envs.teams import TEAMS
from trajgen.experiments.definition import Study, Variant
from trajgen.experiments.reporting import read_facts
from trajgen.experiments.run_folder import load_config, trained_stages, write_summary
from trajgen.experiments.study import check_folder
from trajgen.viz.report.page import page

TRACE = "executed"
MODULE = f"import pathlib\npathlib.Path({TRACE!r}).touch()\n"


@pytest.fixture
def trap(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``trap`` that can be imported from here, and leaves a file behind if it is; gives that file."""
    (lab / "trap.py").write_text(MODULE)
    monkeypatch.syspath_prepend(lab)
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    return lab / TRACE


def change(folder: Path, *keys: str, to: Any) -> None:
    """Writes another value into a run's configuration."""
    plain = json.loads((folder / "config.json").read_text())
    node = plain
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = to
    (folder / "config.json").write_text(json.dumps(plain))


def check_refused(folder: Path) -> str:
    with pytest.raises(TrajgenError) as caught:
        load_policy(folder, device="cpu")
    assert len(str(caught.value)) < 3000
    return str(caught.value)


def test_the_folder_as_it_is_loads(stranger: Path) -> None:
    assert load_policy(stranger, device="cpu").space.action_low == (-float("inf"),) * 2


DEEP = "[" * 200_000 + "]" * 200_000
TEXTS = {
    "deep lists": DEEP,
    "deep lists that never end": "[" * 200_000,
    "deep dictionaries": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "deep lists of an option": f'{{"recipe": {DEEP}}}',
    "a key twice": '{"recipe": "mage", "recipe": "bc"}',
    "a key twice, deep down": '{"recipe": "mage", "data": {"id": "a", "id": "b"}}',
    "no number": '{"seed": NaN}',
    "a number of five thousand digits": f'{{"seed": {"9" * 5000}}}',
    "no text": "",
    "no options": "{}",
    "not UTF-8": b"\xff\xfe\x00",
    "a list": "[]",
    "null": "null",
    "bytes of a pickle": b"\x80\x04\x95",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_configuration_that_is_no_plain_json_is_refused(name: str, stranger: Path) -> None:
    text = TEXTS[name]
    (stranger / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    check_refused(stranger)


def test_a_hundred_megabytes_of_brackets_are_not_read(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stranger / "config.json"
    with open(path, "wb") as file:
        for _ in range(100):
            file.write(b"[" * 2**20)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match=f"{LARGEST_FILE:,}"):
        read_json(path)


VALUES: list[tuple[tuple[str, ...], Any]] = [
    (("seed",), float("nan")),
    (("seed",), float("inf")),
    (("seed",), 10**400),
    (("engine", "budget"), float("inf")),
    (("engine", "budget"), 10**300),
    (("engine",), []),
    (("data",), None),
    (("data",), "text"),
    (("data", "horizon"), 2**40),
    (("data", "discount"), {"a": 1}),
    (("data", "id"), ["a"]),
    (("space",), []),
    (("space",), None),
    (("space", "state_dim"), 2**50),
    (("space", "state_dim"), -1),
    (("space", "state_dim"), "4"),
    (("space", "more"), 1),
    (("imports",), "trap"),
    (("prior",), []),
    (("prior", "name"), []),
    (("prior", "name"), {"a": 1}),
    (("prior", "name"), None),
    (("prior", "name"), "os.system"),
    (("prior", "name"), "trajgen.priors.transformer.TransformerPrior"),
    (("prior", "name"), "../transformer"),
    (("prior", "name"), "_Base"),
    (("prior", "name"), "__import__"),
    (("prior", "_target_"), "trap.run"),
    (("prior", "width"), 2**23),
    (("prior", "width"), 10**12),
    (("prior", "width"), -16),
    (("prior", "width"), 0),
    (("prior", "width"), "${oc.env:HOME}"),
    (("prior", "depth"), 2**20),
    (("prior", "heads"), 0),
    (("prior", "heads"), 3),
    (("tokenizer", "codebook_size"), 2**24),
    (("tokenizer", "latent_length"), 2**20),
    (("tokenizer", "latent_length"), 10**9),
    (("schedule", "scales"), 2**24),
    (("_target_",), "trap.run"),
    (("hydra",), {"callbacks": {"x": {"_target_": "trap.run"}}}),
    (("defaults",), ["trap"]),
    (("components",), {"prior": {"name": "transformer"}}),
]


@pytest.mark.parametrize(("keys", "value"), VALUES, ids=lambda each: str(each)[:40])
def test_a_value_that_no_run_has_is_refused(keys: tuple[str, ...], value: Any, stranger: Path, trap: Path) -> None:
    change(stranger, *keys, to=value)
    check_refused(stranger)
    assert not trap.exists() and "trap" not in sys.modules


def test_a_model_far_larger_than_its_weights_is_not_built(stranger: Path) -> None:
    change(stranger, "prior", "width", to=4096)  # 800 MB
    assert "far larger than its weights" in check_refused(stranger)


def test_modules_that_the_folder_names_are_not_imported(stranger: Path, trap: Path) -> None:
    change(stranger, "imports", to=["trap"])
    load_policy(stranger, device="cpu")
    assert not trap.exists() and "trap" not in sys.modules
    load_policy(stranger, device="cpu", imports=("trap",))
    assert trap.exists()  # when the person says so


def test_an_environment_of_a_module_is_not_imported(stranger: Path, trap: Path) -> None:
    """Gymnasium imports what stands before the colon of an environment's id."""
    change(stranger, "data", "env_id", to="trap:Env-v0")
    assert "imports=[trap]" in check_refused(stranger)
    with pytest.raises(CheckpointError, match="imported already"):
        experiments.evaluate(stranger, Console(quiet=True), device="cpu")
    assert not trap.exists()
    load_policy(stranger, device="cpu", imports=("trap",))


def test_text_is_never_interpolated(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "it is out")
    change(stranger, "recipe", to="${oc.env:SECRET}")
    config, _ = load_config(stranger)
    assert config.recipe == "${oc.env:SECRET}"


@pytest.mark.parametrize("id", ["/etc/passwd", "../../etc/x-v0", "a/../../b-v0", "~/x-v0", "a\0b-v0", "C:\\x-v0"])
def test_a_data_set_is_a_name_and_no_path(id: str, stranger: Path) -> None:
    change(stranger, "data", "id", to=id)
    with pytest.raises(TrajgenError, match="name with a version"):
        experiments.evaluate(stranger, Console(quiet=True), device="cpu")


@pytest.mark.parametrize("run_dir", ["/nowhere/else", "../../outside"])
def test_the_folder_that_a_configuration_names_is_not_used(run_dir: str, stranger: Path) -> None:
    change(stranger, "run_dir", to=run_dir)
    load_policy(stranger, device="cpu")
    assert not (stranger / run_dir).resolve().exists()


@pytest.mark.parametrize(
    "name", ["config.json", "summary.md", "metrics.jsonl", "checkpoints/final.safetensors", "plots/returns.png"]
)
@pytest.mark.parametrize("absolute", [True, False])
def test_links_out_of_the_folder_are_refused(name: str, absolute: bool, stranger: Path, lab: Path) -> None:
    outside, path = lab / "precious", stranger / name
    outside.write_text("precious")
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(outside if absolute else os.path.relpath(outside, path.parent))
    assert "lie within it" in check_refused(stranger)
    with pytest.raises(CheckpointError, match="lie within it"):
        experiments.evaluate(stranger, Console(quiet=True), device="cpu")
    assert outside.read_text() == "precious"


ODD: dict[str, Callable[[Path], None]] = {
    "a FIFO": lambda path: os.mkfifo(path),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "name",
    ["config.json", "data.json", "versions.json", "metrics.jsonl", "evaluation.json", "checkpoints/final.safetensors"],
)
def test_what_is_no_file_is_refused_before_it_is_read(name: str, odd: str, stranger: Path) -> None:
    (stranger / name).unlink(missing_ok=True)
    ODD[odd](stranger / name)
    for read in (lambda: load_policy(stranger, device="cpu"), lambda: read_json(stranger / name)):
        with pytest.raises(TrajgenError):
            read()
    if odd != "a link to itself":  # which reads as missing
        with pytest.raises(TrajgenError):
            trained_stages(stranger / name)
    with pytest.raises(TrajgenError):
        read_facts([stranger])
    study = Study(name="a", variants={"one": Variant()})
    (stranger / "study.json").write_text("{}")
    with pytest.raises(CheckpointError, match="lie within it"):
        check_folder(stranger, study, {})


def test_an_environment_of_several_agents_imports_no_module(trap: Path) -> None:
    options, several = DataOptions(id="nobody/none-v0"), partial(EnvRecord, "trajgen/Parallel-v0", max_episode_steps=5)
    with pytest.raises(CheckpointError, match=r"imports=\[trap\], if you know"):
        make_eval_env(options, several(options={"env": "trap"}))
    assert not trap.exists()
    make_eval_env(options, several(options=TEAMS["spread"].options))


def test_figures_and_commands_that_no_training_wrote(stranger: Path) -> None:
    huge = 10**400
    returns = {"policy": [huge], "controller": [1.0]}
    figures = {"env": "a", "episodes": huge, "seeds": [0, 0], "episode_returns": returns}
    (stranger / "evaluation.json").write_text(json.dumps(figures | {"ratio_to_controller_ci95": [huge, 1]}))
    assert stranger.name in page(read_facts([stranger]), title="", command="")
    for command in ("trajgen train 'open", ["a", 1], 5):
        change(stranger, "command", to=command)
        write_summary(stranger, stranger, compose(WORDS), {"env": "a", "episodes": 1}, [])
        assert "## What to do next" in (stranger / "summary.md").read_text()


def test_a_folder_that_is_a_link_is_refused_too_and_links_within_are_not(stranger: Path, lab: Path) -> None:
    (stranger / "again.json").symlink_to("config.json")
    (lab / "link").symlink_to(stranger)
    load_policy(lab / "link", device="cpu")
    (stranger / "plots").symlink_to(lab / "sets")
    check_refused(stranger)


def test_a_summary_does_not_follow_a_link(stranger: Path, lab: Path) -> None:
    (lab / "precious").write_text("precious")
    (stranger / "summary.md").symlink_to(lab / "precious")
    with pytest.raises(CheckpointError, match="lie within it"):
        write_summary(stranger, stranger, compose(WORDS), {}, [])
    assert (lab / "precious").read_text() == "precious"


LINES: dict[str, Callable[[], str]] = {
    "deep": lambda: DEEP,
    "no stage": lambda: '{"step": 1}',
    "a stage that is no text": lambda: '{"stage": [1], "stage_index": 0, "step": 1, "seconds": 1}',
    "text for a number": lambda: '{"stage": "a", "stage_index": 0, "step": 1, "seconds": "1"}',
    "a huge number": lambda: f'{{"stage": "a", "stage_index": 0, "step": 1{"0" * 400}, "seconds": 1}}',
    "nested": lambda: '{"stage": "a", "stage_index": 0, "step": 1, "seconds": 1, "total": {"a": 1}}',
}


@pytest.mark.parametrize("name", LINES)
def test_metrics_that_no_training_wrote_are_refused(name: str, stranger: Path) -> None:
    path = stranger / "metrics.jsonl"
    path.write_text(LINES[name]() + "\n")
    with pytest.raises(CheckpointError, match="metrics"):
        trained_stages(path)
    with pytest.raises(CheckpointError, match="metrics"):
        experiments.evaluate(stranger, Console(quiet=True), device="cpu")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("versions.json", "{"),
        ("data.json", '{"returns": {"mean": "x"}}'),
        ("data.json", '{"returns": {"mean": 1}}'),
    ],
)
def test_damaged_files_beside_the_weights_are_refused_before_episodes_are_played(
    name: str, content: str, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for player in ("evaluate.evaluate", "on_data.compare_with_data"):
        monkeypatch.setattr(f"trajgen.evaluation.{player}", lambda *_, **__: pytest.fail("they were played"))
    (stranger / name).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        experiments.evaluate(stranger, Console(quiet=True), device="cpu")


def test_a_run_that_lacks_its_versions_has_a_summary(stranger: Path) -> None:
    (stranger / "versions.json").unlink()
    write_summary(stranger, stranger, compose(WORDS), {"env": "a", "episodes": 1}, [])
    assert "- versions" not in (stranger / "summary.md").read_text()


def test_a_line_that_was_cut_off_is_left_out(stranger: Path) -> None:
    path = stranger / "metrics.jsonl"
    path.write_text('{"stage": "a", "stage_index": 0, "step": 1, "seconds": 1.0, "total": 2.0}\n{"stage": "a", "st')
    assert [stage["name"] for stage in trained_stages(path)] == ["a"]


def test_weights_that_do_not_fit_the_configuration_are_refused(stranger: Path) -> None:
    (stranger / "checkpoints" / "final.safetensors").write_bytes(b"")
    assert "damaged" in check_refused(stranger)
    Checkpoints(stranger / "checkpoints").save_final(torch.nn.Linear(2, 2))
    assert "another model" in check_refused(stranger)
