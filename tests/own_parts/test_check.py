"""``trajgen check``: every mistake is reported by its contract; shipped components keep all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harmful
import harmful_noise
import harmful_state
import harmful_use
import harmful_worth
import mistakes
import pytest
from torch import Tensor, nn

from trajgen import testing
from trajgen.cli import main
from trajgen.core import registry
from trajgen.core.errors import ConfigError
from trajgen.core.registry import KINDS, names


@pytest.fixture(autouse=True)
def _unregister() -> Iterator[None]:
    """Removes what a test registers."""
    before = set(registry._registered)
    yield
    for key in set(registry._registered) - before:
        module = registry._registered[key][0].module
        if not module.startswith("trajgen."):
            del registry._registered[key]
            sys.modules.pop("" if module == "mistakes" or module.startswith("harmful") else module, None)


def message_of(report: testing.Report, promise: str) -> str:
    result = next(result for result in report.results if result.promise == promise)
    assert result.outcome == "failed", str(report)
    return result.message


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_components_keep_their_contracts(kind: str) -> None:
    """In all of their compositions: see tests/contracts."""
    for name in names(kind):
        for check in testing.SIGNATURE_CONTRACTS.values():
            check(kind, name)
    if kind in ("sampler", "schedule"):  # the others there
        report = testing.check(kind, names(kind)[0])
        assert not report.failed, str(report)
        assert sum(result.outcome == "passed" for result in report.results) >= 6
    promises = [contract.promise for contract in testing.CONTRACTS if kind in contract.kinds]
    assert len(promises) == len(set(promises)) >= 3


@pytest.mark.parametrize(
    ("kind", "component", "promise", "words"), mistakes.MISTAKES, ids=[m[1].__name__ for m in mistakes.MISTAKES]
)
def test_a_mistake_is_reported(kind: str, component: Callable[..., Any], promise: str, words: tuple[str, ...]) -> None:
    registry.register(kind, "mistaken")(component)
    contracts = [contract for contract in testing.CONTRACTS if contract.promise == promise and kind in contract.kinds]
    if contracts:  # that one alone, which is quicker
        fixture = testing.find_fixture(kind, "mistaken")
        source = sys.modules[component.__module__].__file__ or ""
        result = testing.attempt(promise, lambda: contracts[0].check(fixture), Path(source))
        assert result.outcome == "failed"
        message = result.message
    else:
        message = message_of(testing.check(kind, "mistaken"), promise)
    assert all(word in message for word in words), message


def test_there_is_a_mistake_of_every_kind() -> None:
    assert {kind for kind, *_ in mistakes.MISTAKES} == set(KINDS)
    silent = {module.__name__ for module in (harmful, harmful_noise, harmful_state, harmful_use, harmful_worth)}
    assert sum(component.__module__ in silent for _, component, *_ in mistakes.MISTAKES) >= 125


def test_a_conditioner_that_withholds_nothing_and_says_so_is_sound() -> None:
    registry.register("conditioner", "sure")(harmful_worth.SureConditioner)
    fixture = testing.find_fixture("conditioner", "sure")
    for each in testing.CONTRACTS:
        if each.kinds == ("conditioner",) and "withheld" in each.promise:
            result = testing.attempt(each.promise, lambda each=each: each.check(fixture), None)
            assert result.outcome == "not applicable" and result.message


def test_a_critic_may_rank_by_normalized_returns() -> None:
    registry.register("critic", "ranking")(harmful_worth.SoundCriticOfNormalizedReturns)
    fixture = testing.find_fixture("critic", "ranking")
    (each,) = (each for each in testing.CONTRACTS if "normalization" in each.promise and each.kinds == ("critic",))
    each.check(fixture)


def test_a_planner_may_learn_its_goals() -> None:
    registry.register("planner", "embedding")(harmful_worth.PlannerOfEmbeddedGoals)
    report = testing.check("planner", "embedding")
    assert not report.failed, str(report)


@pytest.mark.parametrize(
    ("kind", "component"), [("action", harmful_worth.SoundSpectralHead), ("prior", harmful_worth.SoundLSTM)]
)
def test_what_torch_has_of_its_own_is_no_mistake(kind: str, component: Callable[..., Any]) -> None:
    registry.register(kind, "sound")(component)
    report = testing.check(kind, "sound")
    assert not report.failed, str(report)


def test_two_of_a_kind_have_other_weights_in_every_contract() -> None:
    """Loading the state of one into the other would hide what they share."""
    fixture = testing.find_fixture("decoder", "plain")
    for each in testing.CONTRACTS:
        if each.promise == "its state dict is complete":
            each.check(fixture)
    pairs = zip(fixture.part(fixture.other).parameters(), fixture.component.parameters(), strict=True)
    assert not any(bool((first == second).all()) for first, second in pairs)


def test_a_head_that_samples_actions_is_checked_with_a_seed() -> None:
    changes = {"action": {"name": "latent_state", "num_bins": 8, "temperature": 1.0}}
    report = testing.check("action", "latent_state", "bc", changes)
    assert not report.failed, str(report)


def test_all_missing_members_are_listed_at_once() -> None:
    class Bare:
        schedule, code_dim, vocabulary = None, 4, "12"

    missing = testing.registration.missing_members(Bare(), testing.registration.PROTOCOLS["tokenizer"])
    methods = ["encode()", "vectors()", "known_codes()", "loss()", "after_step()", "usage()"]
    assert missing[: len(methods)] == methods
    attributes = {word.partition(":")[0] for word in missing[len(methods) :] if not word.startswith("layout.")}
    assert attributes == {"schedule", "latent_length", "vocabulary"} and "layout.start()" in missing


def test_all_missing_methods_are_listed_where_nothing_could_be_built() -> None:
    @registry.register("prior", "bare")
    class Bare(nn.Module):
        """Has one step of training and one of drawing, and nothing else."""

        def step(self, x: Any, k: int, state: Any) -> Any:
            return state

        def forward(self, codes: Tensor, inputs: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
            return inputs.sum(), inputs

    report = testing.check("prior", "bare")
    assert "expected: logits(), loss(), start()" in message_of(report, "has what its kind promises")
    promises = {result.promise for result in report.failed} - {"it is built in a composition"}
    assert promises == {"has what its kind promises"}


def test_what_is_missing_is_reported_once() -> None:
    @registry.register("decoder", "partial")
    class Partial(mistakes.PlainDecoder):
        """Lacks a method."""

        base = adapter_parameters = None

    report = testing.check("decoder", "partial")
    assert [result.promise for result in report.failed] == ["has what its kind promises"]
    assert "expected: base(), adapter_parameters()" in report.failed[0].message


def test_sizes_are_named_and_options_of_data_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    fixture = testing.find_fixture("schedule", "unit", "mage", {"data": {"horizon": 32, "stride": 2, "chunk": 2}})
    window = fixture.composition.window
    assert (window.horizon, window.stride, window.chunk) == (32, 2, 2)
    assert fixture.batch().states.shape[1] == 32 and "data.horizon=32" in str(fixture.composition)
    main(["check", "schedule/unit", "recipe=mage", "data.horizon=32", "tokenizer.latent_length=8"])
    out = " ".join(capsys.readouterr().out.split())
    assert "recipe=mage data.horizon=32 tokenizer.latent_length=8" in out and "at small sizes:" in out
    assert "tokenizer.width=16" in out and "latent_length=4" not in out
    message = "".join(run_refused(capsys, "check", "schedule/unit", "data.horizn=32"))
    assert "data.horizon" in message


@pytest.mark.parametrize(
    ("options", "goals"),
    [
        ({"goal_radius": None, "goal_state": [2, 3]}, (6, 2)),
        ({"goal_state": [1, 2, 3], "relative_goals": True}, (6, 3)),
        ({"goal_radius": 2.0, "terminate_at_goal": True, "goals": "hindsight"}, (6, 2)),
        ({"goal_state": []}, (6, 2)),
        ({"goals": "none"}, None),
    ],
)
def test_goals_are_those_that_options_of_data_describe(options: dict[str, Any], goals: tuple[int, int] | None) -> None:
    wiring: dict[str, Any] = {}

    @registry.register("conditioner", "recording")
    class Recording(harmful_worth.FieldConditioner):
        """Embeds the fields, and notes what the data are."""

        def __init__(
            self, schedule: Any, state_dim: int, goal_dim: int, goal_state: Any, goal_radius: Any,
            terminate_at_goal: bool, relative_goals: bool, normalizer: Any, *, width: int = 16,
        ) -> None:  # fmt: skip
            window = {"goal_state": list(goal_state), "goal_radius": goal_radius}
            wiring.update(window, terminate_at_goal=terminate_at_goal, relative_goals=relative_goals)
            more: dict[str, Any] = {"goal_state": goal_state, "normalizer": normalizer}
            super().__init__(schedule, state_dim, goal_dim, relative_goals=relative_goals, width=width, **more)

    report = testing.check("conditioner", "recording", changes={"data": options})
    assert not report.failed, str(report)
    batch = testing.find_fixture("conditioner", "recording", changes={"data": options}).batch()
    assert (None if batch.goals is None else tuple(batch.goals.shape)) == goals
    if goals and options.get("goal_state"):
        assert batch.goals is not None and bool((batch.goals == batch.states[:, -1, options["goal_state"]]).all())
    defaults = {"goal_state": [0, 1], "goal_radius": 0.5, "terminate_at_goal": False, "relative_goals": False}
    expected = {**defaults, **({"goal_state": [], "goal_radius": None} if goals is None else {}), **options}
    assert wiring == {name: expected[name] for name in wiring}


PARTS = '''
from torch import nn
from trajgen import register


@register("return_target", "broken")
class Broken(nn.Module):
    """Uses an attribute that it does not have."""

    def __init__(self, state_dim: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, state, goal, remaining):
        return state @ self.weight

    def loss(self, batch):
        return {}
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run_refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """The output and the error of a command that exits with 1."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 1
    output = capsys.readouterr()
    return output.out, output.err


def test_an_exception_is_reported_with_file_and_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken_target.py").write_text(PARTS)
    out, err = run_refused(capsys, "check", "return_target/broken", "imports=[broken_target]")
    line = PARTS.splitlines().index("        return state @ self.weight") + 1
    message = "raises AttributeError in forward(): 'Broken' object has no attribute 'weight', at broken_target.py"
    assert f"{message}:{line}" in out
    assert "one return for each state" in out and "Traceback" not in out + err
    assert err.startswith("Error: return_target 'broken' breaks ") and "--debug" in err


def test_debug_gives_the_traceback(folder: Path) -> None:
    (folder / "broken_again.py").write_text(PARTS.replace('"broken"', '"broken_again"'))
    with pytest.raises(Exception, match="broken_again") as raised:
        main(["check", "return_target/broken_again", "imports=[broken_again]", "--debug"])
    assert isinstance(raised.value.__cause__, AttributeError)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def (:\n", "SyntaxError: invalid syntax (broken_parts.py, line 1)"),
        ("import torch\ntorch.no_such()\n", "AttributeError: module 'torch' has no attribute 'no_such'"),
        (
            "from trajgen import register\n@register('sampler', 'bare')\ndef bare(*, sides: int):\n    'Bare.'\n",
            "Option 'sides' of sampler 'bare' has no default",
        ),
        ("import no_such_package\n", "No module named 'no_such_package'"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(
    text: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "broken_parts", raising=False)
    (folder / "broken_parts.py").write_text(text)
    _, err = run_refused(capsys, "check", "sampler/bare", "imports=[broken_parts]")
    assert words in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prior", "KIND/NAME"),
        ("gpt", "trajgen check prior/gpt"),
        ("prior/gpt imports=[my_lab/parts.py]", "imports=[my_lab.parts]"),
        ("prior/gpt imports=[parts.py]", "imports=[parts]"),
        ("prior/gp", "did you mean 'gpt'"),
        ("pror/gpt", "did you mean 'prior'"),
        ("prior/gpt recipe=mag", "did you mean 'mage'"),
        ("prior/gpt steps=3", "Unknown option 'steps'"),
        ("prior/transformer recipe=diffuser prior.heads=3", "prior.heads=3"),
        ("prior/gpt data.terminate_at_goal=true data.goal_radius=null", "data.goal_radius"),
        ("prior/gpt data.relative_goals=2", "data.relative_goals"),
        ("prior/gpt data.goal_state=[5]", "indices from 0 to 3"),
        ("prior/gpt data.goal_key=goal", "data.goal_key does not shape a window"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in "".join(run_refused(capsys, "check", *words.split()))


def test_composition_and_options_are_chosen_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "prior/transformer", "tokenizer=multiscale", "schedule=unit", "prior.width=8", "recipe=flat"])
    out = capsys.readouterr().out
    assert "prior/transformer in recipe=flat tokenizer=multiscale schedule=unit prior.width=8" in out
    assert "not applicable" in out and "contracts that apply are kept" in out


@pytest.mark.parametrize("command", ["check", "new"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"Usage: trajgen {command} [OPTIONS] {{KIND")


def test_a_component_that_no_recipe_accepts_reports_the_first_refusal() -> None:
    @registry.register("prior", "fussy")
    def fussy(schedule: Any) -> None:
        """Refuses everything."""
        raise ConfigError("A fussy prior wants nothing.", expected="nothing", got="something", fix="leave it")

    message = message_of(testing.check("prior", "fussy"), "it is built in a composition")
    assert "it is refused: A fussy prior wants nothing." in message
