"""Command lines and files of options become a configuration: swaps, inheritance, folders, old names, refusals."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.compose import compose as hydra_compose

from trajgen.config import RECIPES, compose, merged, read_options, read_yaml, recipe_files
from trajgen.core.errors import ConfigError
from trajgen.core.options import entry, nested, value_of
from trajgen.core.registry import KINDS, names, spec
from trajgen.core.renamed import OPTIONS, VALUES, new_name
from trajgen.experiments.preparation import dry_run

FILES = {
    "mine.yaml": "defaults: [mage, _self_]\ntokenizer: {codebook_size: 32}\nsampler: {name: greedy}\n",
    "absolute.yaml": "defaults: [/recipe/mage, {override /sampler: top_p}, {override /data: antmaze/umaze}, _self_]\n"
    "sampler: {p: 0.5}\nengine: {stages: {prior: {steps: 7}}}\n",
    "first.yaml": "defaults: [_self_, mage]\nseed: 3\nsampler: {name: greedy}\n",
    "beside.yaml": "defaults: [mine]\nsampler: null\nseed: 4\n",
    "points.yaml": "defaults: [/data/antmaze/umaze]\ndata: {id: lab/points-v0}\n",
    "folder/recipe/base_mage.yaml": "# @package _global_\ndefaults: [/recipe/mage]\nseed: 5\n",
    "folder/recipe/cold.yaml": "defaults: [base_mage, {override /sampler: cold}]\n",
    "folder/sampler/cold.yaml": "name: temperature\ntemperature: 0.1\n",
    "folder/data/lab/maze.yaml": "defaults: [pointmaze/umaze]\ndata: {id: lab/maze-v0, maker: null}\n",
}


@pytest.fixture(autouse=True)
def _by_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra, "compose", hydra_compose)  # not tests/conftest.py's, which remembers


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_swap_leaves_no_key_of_the_old_node(kind: str) -> None:
    for name in names(kind)[-1:]:
        assert compose([f"{kind}={name}"]).components[kind] == spec(kind, name).defaults()


def test_options_are_set_after_the_swap() -> None:
    config = compose(["sampler=top_p", "sampler.p=0.5", "schedule=explicit", "schedule.lengths=[2,8]", "~decoder"])
    assert config.components["sampler"]["p"] == 0.5 and "decoder" not in config.components
    assert config.components["schedule"] == {"name": "explicit", "lengths": (2, 8)}


def test_a_recipe_changes_what_it_says_and_leaves_the_rest() -> None:
    nodes = read_yaml(recipe_files()["mage"])
    config = compose(["recipe=mage"])
    for kind in set(nodes) & set(KINDS):
        assert config.components[kind] == {**spec(kind, nodes[kind]["name"]).defaults(), **config.components[kind]}
        assert all(
            config.components[kind][k] == (tuple(v) if isinstance(v, list) else v) for k, v in nodes[kind].items()
        )


@pytest.mark.parametrize("option", ["return_scales", "dropout"])
def test_null_and_numbers_are_told_apart(option: str) -> None:
    value = compose([f"conditioner.{option}=1"]).components["conditioner"][option]
    assert value == 1 and isinstance(value, int if option == "return_scales" else float)


def test_a_recipe_inherits_a_recipe(lab: Path) -> None:
    mage, config = compose([]), compose(["recipe=mine.yaml"])
    assert config.recipe == "mine" and config.components["sampler"] == {"name": "greedy", "guidance": 0.0}
    assert config.components["tokenizer"] == {**mage.components["tokenizer"], "codebook_size": 32}
    assert config.components["prior"] == mage.components["prior"] and config.engine == mage.engine
    assert compose(["recipe=mine.yaml", "sampler=top_k"]).components["sampler"] == spec("sampler", "top_k").defaults()
    deeper = compose(["recipe=beside.yaml"])
    assert deeper.seed == 4 and "sampler" not in deeper.components
    assert deeper.components["tokenizer"]["codebook_size"] == 32


def test_a_defaults_list_is_read_as_hydra_reads_it(lab: Path) -> None:
    config = compose(["recipe=absolute.yaml"])
    assert config.components["sampler"] == {**spec("sampler", "top_p").defaults(), "p": 0.5}
    assert config.data.id == "D4RL/antmaze/umaze-v1" and config.engine.stages["prior"].steps == 7
    assert compose(["recipe=absolute.yaml", "data=kitchen/mixed"]).data.id == "D4RL/kitchen/mixed-v2"
    before = compose(["recipe=first.yaml"])  # what stands after _self_ goes over it
    assert before.seed == 3 and before.components["sampler"]["name"] == "temperature"


def test_a_data_preset_inherits_a_preset(lab: Path) -> None:
    data, umaze = compose(["data=points.yaml"]).data, compose(["data=antmaze/umaze"]).data
    assert data.id == "lab/points-v0" and data.state_key == umaze.state_key and data.bounds == umaze.bounds
    about = read_options("data", lab / "points.yaml")["about"]
    assert about == read_options("data", RECIPES / "data/antmaze/umaze.yaml")["about"]


@pytest.mark.parametrize("flag", [["--config-dir", "folder"], ["--config-dir=folder"], ["-cd", "folder"]])
def test_a_folder_of_ones_own_holds_recipes_data_and_components(flag: list[str], lab: Path) -> None:
    config = compose([*flag, "recipe=cold", "data=lab/maze"])
    assert (config.recipe, config.seed, config.data.id, config.data.horizon) == ("cold", 5, "lab/maze-v0", 32)
    assert config.components["sampler"]["temperature"] == 0.1
    assert compose([*flag, "sampler=cold"]).components["sampler"]["temperature"] == 0.1
    with pytest.raises(ConfigError, match="no recipe 'cold'"):
        compose(["recipe=cold"])
    with pytest.raises(ConfigError, match="'cold'"):
        compose([*flag, "recipe=colt"])


REFUSED = {
    "prior.wdith=3": "did you mean 'width'",
    "data.success.step=3": "did you mean 'steps'",
    "engine.stages.prior.stpes=1": "did you mean 'steps'",
    "+engine.stages.prior.more=1": "Unknown option 'engine.stages.prior.more'",
    "~nothing": "Unknown option 'nothing'",
    "seed=1,2": "-m trains once",
    "engine.stages.piror.steps=3": "did you mean 'prior'?",
    "~engine.stages.piror": "did you mean 'prior'?",
    "engine.stages.critic={lr: 1}": "'+engine.stages.critic={lr: 1}' gives another stage options",
    "data=null": "There is no data 'null'",
    "critic.detour=1": "Recipe 'mage' has no critic",
    "prior=5": "There is no prior '5'",
    "+prior=[1e3]": "choose one of: diffusion, flow",
    "recipe=True": "There is no recipe 'True'",
    "data=-1.5": "There is no data '-1.5'",
    "--config-dir=nowhere": "no such folder",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_does_not_fit_is_refused_with_what_would(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=mage", word])
    assert REFUSED[word] in str(caught.value) and len(str(caught.value)) < 3000


OLD = {
    "target=quantile": "return_target=quantile",
    "target.spend=true": "return_target.subtract_rewards=true",
    "target.octaves=4": "return_target.fourier_frequencies=4",
    "policy.replan=4": "policy.replan_interval=4",
    "data.desired_share=0.3": "data.relabel_ratio=0.7",
    "data.goals=desired": "data.goals=dataset",
    "engine.stages.prior.clip=1": "engine.stages.prior.grad_clip=1",
    "engine.stages.target.lr=0.1": "engine.stages.return_target.lr=0.1",
    "+engine.stages.target.lr=0.1": "engine.stages.return_target",
    "+target.quantile=0.5": "return_target",
    "planner.drawn=0.5": "planner.end_to_end=true planner.sampled_prefixes=true",
    "planner.drawn=0": "planner.end_to_end=false",
}


@pytest.mark.parametrize("word", OLD)
def test_a_word_of_0_1_is_refused_with_the_new_one(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([word])
    assert OLD[word] in str(caught.value.fix)


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("target: {name: constant}", "return_target"),
        ("policy: {replan: 3}", "policy.replan_interval=3"),
        ("engine: {stages: {prior: {ema: 0.9}}}", "engine.stages.prior.ema_decay=0.9"),
    ],
)
def test_a_recipe_of_0_1_is_refused_with_the_new_name(text: str, new: str, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(f"defaults: [mage, _self_]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        compose([f"recipe={tmp_path / 'old.yaml'}"])
    assert new in str(caught.value.fix)


def test_new_names_are_those_of_today() -> None:
    """What the table says instead exists, and what it refuses does not."""
    options = {f"{kind}.{o.name}" for kind in KINDS for name in names(kind) for o in spec(kind, name).options}
    plain = compose([]).to_plain()
    options |= {f"{key}.{name}" for key in ("data", "policy", "engine") for name in plain[key]} | {*KINDS}
    options |= {f"engine.stages.{name}" for name in plain["engine"]["stages"]}
    options |= {f"engine.stages.prior.{name}" for name in plain["engine"]["stages"]["prior"]}
    for pattern in OPTIONS:
        old = re.sub(r"^\((\w+)[^)]*\)", r"\1", pattern.replace("(\\w+)", "prior")).replace("\\.", ".")
        assert old not in options and new_name(old) in options, old
    for (option, old), new in VALUES.items():
        if option in KINDS:
            assert old not in names(option) and new.partition(" ")[0] in names(option)
            continue
        value = "[{}]" if isinstance(entry(plain, option.split(".")), list) else "{}"
        with pytest.raises(ConfigError) as caught:
            dry_run(compose([f"{option}={value.format(old)}"]))
        assert caught.value.fix in (f"{option}={new}", f"did you mean '{new}'?")


def test_numbers_may_have_an_exponent_wherever_they_are_typed(tmp_path: Path) -> None:
    (tmp_path / "fine.yaml").write_text("defaults: [bc]\nengine: {budget: 1e-2, stages: {action: {lr: 3E-4}}}\n")
    engine = compose([f"recipe={tmp_path / 'fine.yaml'}"]).engine
    assert engine.budget == 0.01 and engine.stages["action"].lr == 3e-4
    words = ["a=1e3", "b=[-2.5e-1,x1e3]", "c=1.e+2", "d=e3", "e='1e3'"]
    assert [value_of(word) for word in words] == [1000.0, [-0.25, "x1e3"], 100.0, "e3", "1e3"]


def test_overrides_of_a_finished_run() -> None:
    plain = {"sampler": {"name": "top_k", "k": 5, "temperature": 1.0}, "policy": {"replan_interval": 4, "seed": 1}}
    assert merged(plain, {"sampler": {"name": "greedy"}})["sampler"] == {"name": "greedy"}
    assert merged(plain, {"sampler": {"k": 3}})["sampler"] == {"name": "top_k", "k": 3, "temperature": 1.0}
    assert merged(plain, {"sampler": {"name": "top_k", "k": 3}})["sampler"]["temperature"] == 1.0
    assert merged(plain, {"policy": {"replan_interval": 1}})["policy"] == {"replan_interval": 1, "seed": 1}
    assert plain["policy"] == {"replan_interval": 4, "seed": 1}


def test_words_are_nested_and_what_is_nested_stays() -> None:
    data = {"env_options": {"continuing_task": False}}
    words = {"sampler": "greedy", "sampler.k": 3, "data": data, "data.env_options.more": 1, "seed": 1}
    expected = {
        "sampler": {"name": "greedy", "k": 3},
        "data": {"env_options": {"continuing_task": False, "more": 1}},
        "seed": 1,
    }
    assert nested(words.items()) == expected == nested(expected.items())
    assert data == {"env_options": {"continuing_task": False}}  # what was given is left as it was
    both: Any
    for both in ([("seed", 1), ("seed.x", 2)], [("sampler", [1]), ("sampler", "greedy")]):
        with pytest.raises(ConfigError, match="not both"):
            nested(both)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ("seed=1", True),
        ("prior.depth=2", True),
        ("engine.budget=2", True),
        ("data.discount=0.9", True),
        ("device=cpu", False),
        ("engine.accumulate=2", False),
        ("engine.cuda_graph=false", False),
        ("run_dir=elsewhere", False),
        ("resume=true", False),
        ("evaluation.episodes=3", False),
        ("policy.replan_interval=2", False),
    ],
)
def test_what_makes_two_trainings_different(change: str, differs: bool) -> None:
    assert (compose([change]).identity() != compose([]).identity()) == differs


def test_composing_needs_no_torch() -> None:
    code = (
        "import sys, trajgen.config as c; c.compose(['prior.depth=2', 'sampler=greedy']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
