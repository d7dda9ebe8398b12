"""The definition of a study: files, axes on the command line, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runs import exit_code

from trajgen.cli.study import read_study_words
from trajgen.core.errors import ConfigError
from trajgen.experiments.definition import (
    Study,
    Variant,
    grid,
    grid_name,
    merge_overrides,
    option_of,
    read_axis,
    read_study,
    slug,
)

TWO = {"small": Variant(("prior.depth=2",)), "large": Variant(("prior.depth=6",))}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[prior.depth=2,prior.depth=4]", [("prior.depth=2",), ("prior.depth=4",)]),
        ("[prior.depth=2,4, 8]", [("prior.depth=2",), ("prior.depth=4",), ("prior.depth=8",)]),
        ("[schedule=unit, schedule=linear  schedule.scales=3]",
         [("schedule=unit",), ("schedule=linear", "schedule.scales=3")]),
        ("[view.fields=[state],view.fields=[return,state]]",
         [("view.fields=[state]",), ("view.fields=[return,state]",)]),
        ("[view.fields=[state, action] seed=1,data.bounds={a: [0, 1]}]",
         [("view.fields=[state, action]", "seed=1"), ("data.bounds={a: [0, 1]}",)]),
        ("[~target]", [("~target",)]),
    ],
)  # fmt: skip
def test_an_axis_is_a_list_of_variants(text: str, words: list[tuple[str, ...]]) -> None:
    assert [variant.train for variant in read_axis(text).values()] == words
    assert [variant.evaluate for variant in read_axis(text, evaluate=True).values()] == words


@pytest.mark.parametrize("text", ["[]", "", "prior.depth=2", "[2,4]", "[prior.depth=2,2]", "[ ]"])
def test_what_is_no_axis_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_axis(text)
    assert "axis=" in str(caught.value.fix) and text in str(caught.value.got)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study=num_scales", "axis=[schedule.scales=2,3]"], r"schedule\.scales=1 has no effect"),
        (["study=action_head", "action.width=32"], "'latent' has action=latent"),
        (["axis=[action=latent,latent_state]", "action.wdth=32"], "has action=latent"),
    ],
)
def test_words_without_effect_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_study_words(words)


def test_a_bare_value_after_several_overrides_is_refused() -> None:
    with pytest.raises(ConfigError, match="value 4 follows no single option"):
        read_axis("[schedule=linear schedule.scales=3,4]")


def test_axes_make_a_grid() -> None:
    axes = [read_axis("[prior.depth=2,4]"), read_axis("[sampler=greedy,top_k]", evaluate=True)]
    combined = grid(axes)
    assert list(combined) == [
        "prior.depth=2, sampler=greedy",
        "prior.depth=2, sampler=top_k",
        "prior.depth=4, sampler=greedy",
        "prior.depth=4, sampler=top_k",
    ]
    assert combined["prior.depth=4, sampler=top_k"] == Variant(("prior.depth=4",), ("sampler=top_k",))
    assert grid_name(axes) == "prior.depth-sampler"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["[prior.depth=2,4]", "[prior.depth=6,8]"], r"prior\.depth=2 has no effect"),
        (["[sampler.temperature=0.5,1.0]", "[sampler=greedy,top_k]"], r"sampler\.temperature=0\.5 has no effect"),
    ],
)
def test_an_axis_that_undoes_another_is_refused(axes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid([read_axis(text, evaluate="greedy" in text) for text in axes])
    assert len(grid([read_axis("[action.width=32,64]"), read_axis("[action=latent,latent_state]")])) == 4


def test_of_two_overrides_of_an_option_the_later_counts() -> None:
    assert merge_overrides(["a=1", "b=2", "~c"], ["a=3", "+c=4"]) == ("b=2", "a=3", "+c=4")
    assert merge_overrides(["sampler.p=1", "prior.depth=2"], ["sampler=greedy"]) == ("prior.depth=2", "sampler=greedy")
    assert merge_overrides(["sampler=top_p"], ["sampler.p=1"]) == ("sampler=top_p", "sampler.p=1")
    assert option_of("~sampler") == option_of("sampler=greedy") == "sampler"


def test_folders_have_plain_names() -> None:
    assert slug("R,s,a (equal time)") == "R-s-a-equal-time" and slug("λ=½") == "variant" and slug("T=0.25") == "T-0.25"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_study_file_is_read(tmp_path: Path) -> None:
    text = (
        "# Which depth?\nbase: [recipe=mage]\nvariants:\n  2: [prior.depth=2]\n  greedy: {evaluate: [sampler=greedy]}\n"
    )
    study = read_study(write(tmp_path, text + "reference: greedy\nseeds: [3, 5]\nequal: [steps, time]\n"))
    assert study.name == "mine" and study.question == "Which depth?" and study.base == ("recipe=mage",)
    assert study.variants == {"2": Variant(("prior.depth=2",)), "greedy": Variant(evaluate=("sampler=greedy",))}
    assert study.reference == "greedy" and study.seeds == (3, 5) and study.equal == ("steps", "time")
    assert read_study(write(tmp_path, text)).reference == "2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variant: {a: [seed=1]}", "did you mean 'variants'"),
        ("base: [recipe=mage]", "at least one"),
        ("variants: [prior.depth=2]", "names"),
        ("variants: {a: [prior.depth]}", "key=value"),
        ("variants: {a: {trian: [prior.depth=2]}}", "did you mean 'train'"),
        ("variants: {a: 3}", "a list of text"),
        ("variants: {a: [seed=1]}", "seeds=[0,1,2]"),
        ("base: [run_dir=x]\nvariants: {a: [prior.depth=2]}", "out=DIR"),
        ("variants: {a=1: [prior.depth=2], a/1: [prior.depth=3]}", "different folders"),
        ("variants: {large: [prior.depth=2]}\nreference: lrage", "did you mean 'large'"),
        ("variants: {a: []}\nseeds: [0, 0]", "different integers"),
        ("variants: {a: []}\nseeds: [-1]", "different integers"),
        ("variants: {a: []}\nseeds: []", "at least one"),
        ("variants: {a: []}\nseeds: [a]", "a whole number"),
        ("variants: {a: []}\nequal: [money]", "equal=[steps,time]"),
    ],
)
def test_mistakes_in_a_file_are_told_apart(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_study(write(tmp_path, text))
    assert message in str(caught.value) and caught.value.fix


def test_what_a_variant_sets_cannot_be_set_for_all() -> None:
    study = Study(name="depth", base=("recipe=mage",), variants=TWO)
    assert study.with_overrides(["recipe=flat", "engine.budget=2"]).base == ("recipe=flat", "engine.budget=2")
    with pytest.raises(ConfigError, match=r"'small' has prior\.depth=2"):
        study.with_overrides(["prior.depth=4"])


def test_an_option_of_a_component_that_variants_name_cannot_be_set_for_all() -> None:
    study = Study(name="heads", variants={"latent": Variant(("action=latent",)), "none": Variant(("~critic",))})
    assert study.with_overrides(["prior.depth=4", "data.horizon=8"]).base == ("prior.depth=4", "data.horizon=8")
    for word in ("action.width=32", "critic.width=32"):
        with pytest.raises(ConfigError, match=r"has (action=latent|~critic)"):
            study.with_overrides([word])
    cold = Study(name="cold", variants={"greedy": Variant(evaluate=("sampler=greedy",))})
    with pytest.raises(ConfigError, match="'greedy' has sampler=greedy"):
        cold.with_overrides(["sampler.temperature=0.5"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "num_scales"),
        (["study=num_scale"], "did you mean 'num_scales'"),
        (["study=nowhere/mine.yaml"], "cannot be read"),
        (["study=num_scales", "seeds=[zero]"], "seeds"),
        (["study=num_scales", "seeds=[1,1]"], "seeds=[0,1,2]"),
        (["study=num_scales", "reference=K=3"], "did you mean 'K="),
        (["study=num_scales", "schedule.scales=2"], "What a study varies"),
        (["study=num_scales", "seed=1"], "seeds=[0,1,2]"),
        (["study=num_scales", "resume=true"], "resumes by itself"),
        (["study=num_scales", "workers=0"], "workers=1"),
        (["study=num_scales", "equal=[cost]"], "equal=[steps,time]"),
        (["study=num_scales", "hydra/launcher=joblib"], "executor=loky"),
        (["study=num_scales", "executor=lokky"], "did you mean 'loky'"),
        (["num_scales"], "key=value"),
        (["axis=[prior.depth=2,4]", "probe=9"], "equal=[time]"),
        (["axis=[]"], "at least one"),
        (["axis=[prior.depth=2,4]", "task=adroit"], "study=paper_table"),
        (["axis=[prior.dept=2,4]"], "did you mean 'depth'"),
        (["axis=[recipe=mgae]"], "did you mean"),
        (["axis=[device=cpu,auto]"], "computed on one device"),
    ],
)
def test_the_command_line_refuses(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("study", *words) == 1
    error = capsys.readouterr().err
    assert message in error and ("fix:" in error or "expected:" in error)
    assert not list(tmp_path.iterdir())
