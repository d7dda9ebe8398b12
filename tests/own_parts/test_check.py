"""``trajgen check``: every mistake is caught by its contract, in words; what is shipped keeps all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mistakes
import pytest

from trajgen import testing
from trajgen.cli import main
from trajgen.core import registry
from trajgen.core.errors import ConfigError
from trajgen.core.registry import KINDS, names

IN_CONTRACTS = set(KINDS) - {"tokenizer", "sampler"}
"""Kinds whose components tests/contracts tries in many compositions; one of each is tried here."""
SHIPPED = [(kind, name) for kind in KINDS for name in (names(kind)[:1] if kind in IN_CONTRACTS else names(kind))]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What a test registers is forgotten afterwards."""
    before = dict(registry._own)
    yield
    for key in set(registry._own) - set(before):
        module = registry._own[key][0].module
        if not module.startswith("trajgen."):
            del registry._own[key]
            sys.modules.pop(module if module != "mistakes" else "", None)


def said(report: testing.Report, contract: str) -> str:
    found = {result.words: result for result in report.results}
    assert found[contract].outcome == "failed", str(report)
    return found[contract].said


@pytest.mark.parametrize(("kind", "name"), SHIPPED, ids=str)
def test_what_is_shipped_keeps_its_contracts(kind: str, name: str) -> None:
    report = testing.check(kind, name)
    assert not report.failed, str(report)
    assert sum(result.outcome == "passed" for result in report.results) >= 6


@pytest.mark.parametrize(
    ("kind", "component", "contract", "words"), mistakes.MISTAKES, ids=[m[1].__name__ for m in mistakes.MISTAKES]
)
def test_a_mistake_is_caught_and_said(
    kind: str, component: Callable[..., Any], contract: str, words: tuple[str, ...]
) -> None:
    registry.register(kind, "mistaken")(component)
    behaviour = [each for each in testing.CONTRACTS if each.words == contract and kind in each.kinds]
    if behaviour:  # that one alone, which is quicker
        bench = testing.find(kind, "mistaken")
        result = testing.attempt(contract, lambda: behaviour[0].trial(bench), Path(mistakes.__file__))
        assert result.outcome == "failed"
        told = result.said
    else:
        told = said(testing.check(kind, "mistaken"), contract)
    assert all(word in told for word in words), told


def test_there_is_a_mistake_of_every_kind() -> None:
    assert {kind for kind, *_ in mistakes.MISTAKES} == set(KINDS)


def test_every_contract_has_a_word_for_every_kind() -> None:
    for kind in KINDS:
        own = [each.words for each in testing.CONTRACTS if kind in each.kinds]
        assert len(own) == len(set(own)) >= 3


LAB = '''
from torch import nn
from trajgen import register


@register("return_target", "hopeless")
class Hopeless(nn.Module):
    """Asks for too much."""

    def __init__(self, state_dim: int, *, much: float = 1.0) -> None:
        super().__init__()
        self.much = much

    def forward(self, state, goal, remaining):
        return state @ self.more

    def loss(self, batch):
        return {}
'''


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 1
    told = capsys.readouterr()
    return told.out, told.err


def test_an_exception_becomes_a_failed_check_with_file_and_line(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lab / "hopes.py").write_text(LAB)
    out, err = fails(capsys, "check", "return_target/hopeless", "imports=[hopes]")
    line = LAB.splitlines().index("        return state @ self.more") + 1
    assert f"raises AttributeError in forward(): 'Hopeless' object has no attribute 'more', at hopes.py:{line}" in out
    assert "one return for each state" in out and "Traceback" not in out + err
    assert err.startswith("Error: return_target 'hopeless' breaks ") and "--debug" in err


def test_debug_gives_the_traceback(lab: Path) -> None:
    (lab / "hopes_again.py").write_text(LAB.replace("hopeless", "hopeless_again"))
    with pytest.raises(Exception, match="hopeless_again") as raised:
        main(["check", "return_target/hopeless_again", "imports=[hopes_again]", "--debug"])
    assert isinstance(raised.value.__cause__, AttributeError)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def (:\n", "raises SyntaxError: invalid syntax, at broken_parts.py:1"),
        ("import torch\ntorch.no_such()\n", "raises AttributeError in <module>(): "),
        (
            "from trajgen import register\n@register('sampler', 'bare')\ndef bare(*, sides: int):\n    'Bare.'\n",
            "Option 'sides' of sampler 'bare' has no default",
        ),
        ("import no_such_package\n", "No module named 'no_such_package'"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(
    text: str, words: str, lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(__import__("sys").modules, "broken_parts", raising=False)
    (lab / "broken_parts.py").write_text(text)
    _, err = fails(capsys, "check", "sampler/bare", "imports=[broken_parts]")
    assert words in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check"], "Which component is to be checked?"),
        (["check", "prior"], "trajgen check KIND/NAME"),
        (["check", "prior/gp"], "did you mean 'gpt'"),
        (["check", "pror/gpt"], "did you mean 'prior'"),
        (["check", "prior/gpt", "recipe=mag"], "did you mean 'mage'"),
        (["check", "prior/gpt", "steps=3"], "Only components can be changed here"),
        (["check", "prior/transformer", "recipe=diffuser", "prior.heads=3"], "prior.heads=3"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = fails(capsys, *words)
    assert told in out + err


def test_where_and_with_which_options_is_chosen_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "prior/transformer", "tokenizer=multiscale", "schedule=unit", "prior.width=8", "recipe=flat"])
    out = capsys.readouterr().out
    assert "prior/transformer in recipe=flat tokenizer=multiscale schedule=unit prior.width=8" in out
    assert "not applicable" in out and "contracts that apply are kept" in out


@pytest.mark.parametrize("command", ["check", "new"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"trajgen {command} KIND")


def test_a_component_that_no_recipe_takes_tells_the_first_refusal() -> None:
    @registry.register("prior", "fussy")
    def fussy(schedule: Any) -> None:
        """Wants what there is not."""
        raise ConfigError("A fussy prior wants nothing.", expected="nothing", got="something", fix="leave it")

    told = said(testing.check("prior", "fussy"), "it is built in a composition")
    assert "it is refused: A fussy prior wants nothing." in told
