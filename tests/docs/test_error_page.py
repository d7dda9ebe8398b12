"""The page of errors: it says what the code says, and its messages are those that are met."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import error_page
import pytest
from pages import PAGES, refusals

from trajgen.core import errors
from trajgen.core.errors import ConfigError, TrainingError
from trajgen.core.files import file_lock
from trajgen.core.options import convert
from trajgen.core.registry import spec
from trajgen.core.schedule import ScaleSchedule


def test_the_page_says_what_the_code_says() -> None:
    text = error_page.PAGE.read_text(encoding="utf-8")
    assert text == error_page.page(), "stale: python tests/docs/error_page.py writes the page anew"


def test_every_class_of_errors_has_a_section() -> None:
    defined = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    sections = dict(re.findall(r"^## (\w+)\n\n(.+)$", error_page.PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert {*defined} <= {*sections} and all(when.strip() for when in sections.values())


def patterns() -> list[re.Pattern[str]]:
    """The messages that are read from the code, each as what it can look like when it is met."""
    texts = [str(message).splitlines() for message in error_page.all_messages()]
    lines = [[error_page.HOLE if " | " in line else line for line in text] for text in texts]
    texts = ["\n".join(re.escape(line) for line in each) for each in lines]
    return [re.compile(text.replace(error_page.HOLE, "(?s:.*)")) for text in texts if text != error_page.HOLE]


def met() -> list[str]:
    """Messages that are really said, from several rooms."""
    shown = [text.removeprefix("Error: ").strip() for path in PAGES.values() for _, text in refusals(path)]
    with pytest.raises(ConfigError) as unknown:
        spec("prior", "transfomer")
    with pytest.raises(ConfigError) as mistyped:
        convert("four", int, "prior.depth")
    with pytest.raises(ConfigError) as empty:
        ScaleSchedule(())
    return [*shown, *(str(each.value) for each in (unknown, mistyped, empty))]


def test_a_message_that_is_met_is_read_from_the_code() -> None:
    expected = patterns()
    for text in met():
        assert any(pattern.fullmatch(text) for pattern in expected), text


def test_the_page_has_what_is_raised_with_its_fix(tmp_path: Path) -> None:
    listed = error_page.PAGE.read_text(encoding="utf-8")
    with file_lock(tmp_path / "lock"), pytest.raises(TrainingError) as busy, file_lock(tmp_path / "lock"):
        pass
    section = listed.partition("## TrainingError\n")[2].partition("\n## ")[0]
    assert f"{busy.value.rule}\n  fix: {busy.value.fix}" in section


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("'as it is'", "as it is"),
        ("f'the {name} of {place.there[0]}'", "the … of …"),
        ("f'{a}, {b}'", "…"),
        ("f'give {LEAST}'", "give 1 or more"),
        ("'one ' + other", "one …"),
        ("', '.join(f'{k}={v}' for k, v in values)", "…=…"),
        ("'no run' if run is None else f'run={run}'", "no run | run=…"),
        ("found or 'nothing'", "… | nothing"),
        ("nearest(name, names)", "did you mean …?"),
        ("describe(annotation)", "…"),
    ],
)
def test_an_expression_is_read_as_it_is_met(expression: str, expected: str) -> None:
    constants = {"LEAST": ast.Constant("1 or more")}
    assert error_page.rendered(ast.parse(expression, mode="eval").body, constants) == expected


def test_another_message_makes_the_page_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_page, "PACKAGE", tmp_path)
    for name in ("classes", "all_messages"):  # which remember those of the package
        monkeypatch.setattr(error_page, name, getattr(error_page, name).__wrapped__)
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "errors.py").write_text(
        'class TrajgenError(Exception):\n    """A mistake."""\n\n\nclass TrainingError(TrajgenError):\n    """Hot."""\n'
    )
    (tmp_path / "oven.py").write_text('"""Bakes."""\n\nraise TrainingError("It is hot.", got=f"{heat}", fix="wait")\n')
    text = error_page.page()
    assert "## TrajgenError\n\nA mistake.\n" in text
    assert "## TrainingError\n\nHot.\n\n```text\nIt is hot.\n  fix: wait\n" in text
