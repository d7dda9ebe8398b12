"""A training that starts from the weights of another run, and one of a part of the planner."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console

from trajgen.cli import main
from trajgen.config import Config, compose
from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.core.files import read_json, write_json
from trajgen.engine.checkpoint import Checkpoints, read_weights
from trajgen.experiments.loading import load_policy, load_run
from trajgen.experiments.preparation import build_planner, derived, dry_run, load_episodes
from trajgen.experiments.starting import is_below, require_same_offsets, stages_of, start_from
from trajgen.nn.low_rank import add_adapters, merged_weights

pytestmark = pytest.mark.usefixtures("undrawn")


def planner(run: Path, **overrides: Any) -> Any:
    config, space = load_run(run, overrides=overrides)
    return build_planner(config, space)


def test_all_weights_of_the_same_planner_are_taken(tiny_run: Path) -> None:
    model = planner(tiny_run)
    note = start_from(model, str(tiny_run))
    weights = read_weights(Checkpoints(tiny_run / "checkpoints").newest())
    assert f"{len(weights)} of {len(weights)} tensors" in note and "fresh" not in note
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_what_does_not_fit_stays_fresh_and_is_named(tiny_run: Path) -> None:
    model = planner(tiny_run, **{"prior.depth": 2, "decoder.width": 24, "action": "latent"})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    note = start_from(model, str(tiny_run))
    weights = read_weights(Checkpoints(tiny_run / "checkpoints").newest())
    fits = {name for name in before if name in weights and weights[name].shape == before[name].shape}
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name] if name in fits else before[name]), name
    assert f"{len(fits)} of {len(before)} tensors; fresh" in note and len(fits) < len(before)
    modules = note.partition("another shape: ")[2].partition(";")[0].split(", ")
    assert {"action", "prior.blocks.1"} <= set(modules), modules
    below = {name for name in before if any(is_below(name, part) for part in modules)}
    assert below == set(before) - fits, "what is named, and nothing else, is fresh"


def test_what_a_smaller_planner_does_not_use_is_named(tiny_run: Path) -> None:
    model = planner(tiny_run, **{"schedule.scales": 3, "action": "latent"})
    note = start_from(model, str(tiny_run))
    unused = set(read_weights(Checkpoints(tiny_run / "checkpoints").newest())) - set(model.state_dict())
    modules = note.partition("not used: ")[2].split(", ")
    assert "tokenizer.layout.convolutions.3" in modules and not {"tokenizer", "action"} & set(modules)
    assert unused == {name for name in unused if any(is_below(name, part) for part in modules)}
    assert not [name for name in model.state_dict() if any(is_below(name, part) for part in modules)]


def test_a_run_of_which_nothing_fits_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    config, space = load_run(tiny_run)
    model: Any = torch.nn.ModuleDict({"policy": torch.nn.Linear(2, 2)})
    with pytest.raises(CheckpointError, match="No weight of the run fits"):
        start_from(model, str(tiny_run))
    with pytest.raises(CheckpointError, match="is no folder"):
        start_from(build_planner(config, space), str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("options", "train_only", "fresh", "further"),
    [
        (
            {"tokenizer.codebook_size": 32},
            ["action"],
            {"prior.head", "tokenizer.quantizer"},
            {"prior.head", "tokenizer"},
        ),
        ({"tokenizer.codebook_size": 32}, ["lora", "prior"], {"tokenizer.quantizer"}, {"tokenizer"}),
        ({"prior.depth": 2}, ["prior.head", "decoder"], {"prior.blocks.1"}, {"prior.blocks.1"}),
    ],
)
def test_what_is_fresh_is_trained(
    options: dict[str, Any], train_only: list[str], fresh: set[str], further: set[str], tiny_run: Path
) -> None:
    model = planner(tiny_run, **options)
    with pytest.raises(ConfigError, match="would stay untrained") as refusal:
        start_from(model, str(tiny_run), train_only)
    assert fresh <= set(str(refusal.value.got).partition(" with ")[0].split(", "))
    parts = str(refusal.value.fix).partition("[")[2].partition("]")[0].split(",")
    assert parts[: len(train_only)] == train_only and further <= set(parts)
    stages_of(planner(tiny_run, **options, train_only=parts), parts)
    start_from(model, str(tiny_run), parts)


@pytest.mark.parametrize(
    ("options", "train_only"),
    [
        ({"subgoal": "graph"}, ["subgoal"]),  # which is made of the data
        ({"action.width": 24}, ["action"]),
        ({"return_target": "constant", "decoder.width": 24}, ["decoder"]),
        ({}, ["lora"]),
    ],
)
def test_what_is_not_trained_need_not_be_there(options: dict[str, Any], train_only: list[str], tiny_run: Path) -> None:
    model = planner(tiny_run, **options, train_only=train_only)
    model.tokenizer.register_buffer("grid", torch.zeros(2, 3))
    model.tokenizer.quantizer.register_buffer("digits", torch.arange(3))
    model.register_parameter("of_no_stage", torch.nn.Parameter(torch.zeros(3)))
    assert "tokenizer.quantizer.digits" in start_from(model, str(tiny_run), train_only)


def test_only_the_parts_named_are_trained() -> None:
    model = tiny.planner()
    names = {id(p): name for name, p in model.named_parameters()}
    stages = {s.name: [names[id(p)] for p in s.trained] for s in stages_of(model, ["action", "decoder"])}
    everything = {s.name: [names[id(p)] for p in s.trained] for s in model.stages()}
    for stage, trained in stages.items():
        assert trained == [n for n in everything[stage] if n.startswith(("action.", "decoder."))]
    assert stages["prior"] and stages_of(model, ()) and everything != stages
    with pytest.raises(ConfigError, match="'decode' is none") as refusal:
        stages_of(model, ["decode"])
    assert "decoder" in str(refusal.value)


def test_parts_that_are_not_trained_are_in_evaluation_mode() -> None:
    model = tiny.planner()
    add_adapters(model.prior, rank=2)
    for part, trained in (("decoder", "decoder"), ("lora", "prior"), ("lora", "prior.conditioner")):
        stages_of(model, [part])[2].begin(model)
        assert model.training and model.get_submodule(trained).training
        assert not model.tokenizer.quantizer.training and not model.action.training
        assert model.prior.training == (part == "lora")


def test_a_run_is_adapted_by_its_heads(tiny_run: Path, tiny_place: Path, tmp_path: Path, capfd: Any) -> None:
    words = [f"init={tiny_run}", "train_only=[action,decoder]", "engine.budget=0.1", f"run_dir={tmp_path / 'run'}"]
    main(["train", "recipe=mage", *tiny.TRAIN, *words])
    assert "Starts from" in capfd.readouterr().out
    before = read_weights(Checkpoints(tiny_run / "checkpoints").newest())
    after = read_weights(Checkpoints(tmp_path / "run" / "checkpoints").newest())
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"action", "decoder"}  # and no code of the tokenizer, in whose stage the decoder is trained


def test_a_run_is_adapted_by_low_rank_adapters(tiny_run: Path, tiny_place: Path, tmp_path: Path, capfd: Any) -> None:
    folder = tmp_path / "adapted"
    words = [*tiny.TRAIN, "engine.budget=0.2", "train_only=[lora]", "lora.rank=2"]
    main(["train", "recipe=mage", *words, f"init={tiny_run}", f"run_dir={folder}"])
    before = read_weights(Checkpoints(tiny_run / "checkpoints").newest())
    after = read_weights(Checkpoints(folder / "checkpoints").newest())
    assert f"{len(before)} of {len(before)} tensors" in capfd.readouterr().out
    assert all(torch.equal(value, after[adapted_name(name, after)]) for name, value in before.items())
    added = {name: value.numel() for name, value in after.items() if ".parametrizations.weight.0." in name}
    assert any(after[name].any() for name in added if name.endswith(".up"))
    weights = sum(p.numel() for p in planner(folder).parameters())
    trained = sum(added.values())
    share = f"weights trained: {trained:,} of {weights:,} ({100 * trained / weights:.1f} %)"
    assert share in (folder / "summary.md").read_text(encoding="utf-8")

    policy = load_policy(folder, device="cpu")  # acts with the merged weights
    merged = merged_weights(after)
    assert {*policy.planner.state_dict()} == {*before} == {*merged}
    torch.testing.assert_close(policy.planner.state_dict(), merged)

    model = planner(tiny_run)  # and so does what starts from it
    assert f"{len(before)} of {len(before)} tensors" in start_from(model, str(folder))
    torch.testing.assert_close(model.state_dict(), merged)


def adapted_name(name: str, adapted: Any) -> str:
    """The name of a tensor in a checkpoint with adapters."""
    return name if name in adapted else name.removesuffix("weight") + "parametrizations.weight.original"


def test_adapters_of_nothing_are_refused(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="where train_only names them"):
        planner(tiny_run, **{"lora.rank": 2})
    with pytest.raises(ConfigError, match="parts of the planner with linear layers"):
        planner(tiny_run, train_only=["lora"], **{"lora.modules": ["prior", "heads"]})
    with pytest.raises(ConfigError, match="1 or more"):
        planner(tiny_run, train_only=["lora"], **{"lora.rank": 0})


def test_data_with_another_offset_are_refused(tiny_run: Path) -> None:
    require_same_offsets(str(tiny_run), tiny.SPACE)
    with pytest.raises(ConfigError, match="state_offset"):
        require_same_offsets(str(tiny_run), replace(tiny.SPACE, state_offset=(0.0, 0.0, 1.7e9, 0.0)))


def test_the_range_of_returns_is_that_of_the_weights_that_a_training_goes_on_with(
    tiny_run: Path, tmp_path: Path
) -> None:
    (config, space), quiet = load_run(tiny_run), Console(quiet=True)
    wide = replace(space, return_range=(-20.0, 5.0))
    write_json(tmp_path / "config.json", {**read_json(tiny_run / "config.json"), "space": asdict(wide)})
    assert load_run(tmp_path)[1] == wide  # as a run folder records it
    episodes = load_episodes(config, quiet)
    starts = {"new": (config, None), "init": (replace(config, init=str(tmp_path)), None), "resumed": (config, wide)}
    ranges = {
        name: derived(one, episodes, quiet, resumed).space.return_range for name, (one, resumed) in starts.items()
    }
    assert ranges == {"new": (-4.0, 4.0), "init": (-20.0, 5.0), "resumed": (-20.0, 5.0)}
    bins = build_planner(config, wide).return_target.histogram.centers
    assert (float(bins[0]), float(bins[-1])) == (-20, 5)


@pytest.mark.parametrize("resume", [False, True])  # also where there is nothing to resume yet
def test_returns_to_another_power_are_refused(resume: bool, tiny_run: Path) -> None:
    config, _ = load_run(tiny_run)
    dry_run(replace(config, init=str(tiny_run)))
    other = replace(config, init=str(tiny_run), resume=resume, data=replace(config.data, return_power=1.0))
    with pytest.raises(ConfigError, match=r"got: .*return_power=1\.0") as refusal:
        dry_run(other)
    assert refusal.value.fix == "data.return_power=0.25"


def test_a_part_alone_is_trained_on_top_of_a_run(tiny_run: Path) -> None:
    words = ["recipe=mage", "data=pointmaze/umaze-dwell", "train_only=[lora]"]
    with pytest.raises(ConfigError, match="train_only=lora without init") as refusal:
        dry_run(compose(words))
    assert str(refusal.value.fix).startswith("init=RUN,")
    dry_run(compose([*words, "init=zoo/mage-umaze"]))


@pytest.mark.parametrize(("name", "value", "usual"), [("discount", 0.9, 0.99), ("stride", 1, 8), ("stride", (4, 8), 8)])
def test_a_return_target_that_stays_needs_the_discount_and_the_stride_of_its_run(
    name: str, value: Any, usual: float
) -> None:
    """Whatever else is trained; another task may have others where the target is trained anew."""
    parts = ["tokenizer", "decoder", "prior", "action"]

    def started(*train_only: str, **options: Any) -> Config:
        config = compose(["recipe=mage_critic", "critic=length", "data=pointmaze/medium-dwell", "init=zoo/mage-umaze"])
        return replace(config, train_only=train_only, data=replace(config.data, **options))

    for train_only in (("lora",), ("action", "decoder"), parts):
        dry_run(started(*train_only))
        with pytest.raises(ConfigError, match=rf"another {name}[\s\S]*got: .*data\.{name}=") as refusal:
            dry_run(started(*train_only, **{name: value}))
        anew = f"'train_only=[{','.join((*train_only, 'return_target'))}]'"
        assert refusal.value.fix == f"data.{name}={usual}, or train the return target too: {anew}"
        dry_run(started(*train_only, "return_target", **{name: value}))
    dry_run(started(**{name: value}))


@pytest.mark.parametrize(
    ("shifted", "usual"),
    [
        ("pointmaze/umaze-gear", "pointmaze/umaze-dwell"),
        ("pointmaze/medium-blocked", "pointmaze/medium-dwell"),
        ("antmaze/umaze-gear", "antmaze/umaze"),
        ("antmaze/medium-blocked", "antmaze/medium-play"),
        ("mujoco/hopper-mass", "mujoco/hopper-medium-expert"),
        ("mujoco/hopper-friction", "mujoco/hopper-medium-expert"),
    ],
)
def test_runs_adapt_to_shifted_sets_by_their_presets(shifted: str, usual: str, tmp_path: Path) -> None:
    run = compose(["recipe=mage", f"data={usual}"])
    write_json(tmp_path / "config.json", run.to_plain())
    config = compose(["recipe=mage", f"data={shifted}", f"init={tmp_path}", "train_only=[lora]"])
    checkpoint = tmp_path / "checkpoints" / "final.safetensors"
    checkpoint.parent.mkdir()
    checkpoint.touch()  # which is not read
    windows = [(data.return_power, data.discount, data.stride) for data in (run.data, config.data)]
    assert windows[0] == windows[1] and config.data.id != run.data.id  # which names the shifted environment
    dry_run(config)
    with pytest.raises(ConfigError, match="another discount"):
        dry_run(replace(config, data=replace(config.data, discount=run.data.discount / 2)))
