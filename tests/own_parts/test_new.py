"""``trajgen new``: skeletons of every kind that work as they are."""

from __future__ import annotations

import ast
import importlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trajgen import testing
from trajgen.cli import main
from trajgen.cli.components import RECIPES
from trajgen.config import compose
from trajgen.core import registry
from trajgen.core.errors import ConfigError
from trajgen.core.registry import KINDS
from trajgen.experiments import dry_run

SKELETONS = Path(testing.__file__).parents[1] / "templates"
MAX_LINES = {"tokenizer": 48}
"""Lines of code of a skeleton, where it is more than 40: a tokenizer has eleven methods."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in which commands are given; what is registered from it is removed afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for path in tmp_path.rglob("*.py"):
        module = ".".join(path.relative_to(tmp_path).with_suffix("").parts)
        sys.modules.pop(module, None)
        for key in [key for key, (spec, _) in registry._registered.items() if spec.module == module]:
            del registry._registered[key]


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["new", *words])
    assert ended.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_passes_check_and_the_next_commands_are_true(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["new", kind, "own_part"])
    output = capsys.readouterr().out
    commands = [shlex.split(line)[1:] for line in output.splitlines() if line.startswith("  trajgen")]
    assert [words[0] for words in commands] == ["check", "list", "train"]
    check, listed, train = commands
    main(check)
    assert "contracts that apply are kept" in capsys.readouterr().out
    main(listed)
    assert f"{kind}=own_part" in capsys.readouterr().out
    config = compose(word for word in train[1:])
    assert config.components[kind]["name"] == "own_part" and config.imports == ("own_part",)
    dry_run(config)
    component = registry.component(kind, "own_part")
    assert component.__name__ == ("own_part" if kind == "schedule" else f"OwnPart{kind.title().replace('_', '')}")
    assert "mine" not in (folder / "own_part.py").read_text().lower()


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_is_short_and_commented(kind: str) -> None:
    text = (SKELETONS / f"{kind}.py").read_text(encoding="utf-8")
    not_code = {n for n, line in enumerate(text.splitlines(), 1) if not line.strip() or line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            not_code |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            not_code.add(node.lineno)
    assert len(text.splitlines()) - len(not_code) <= MAX_LINES.get(kind, 40)
    assert "# " in text and "options" in text and f'@register("{kind}", "mine")' in text


def test_guidance_without_dropout_is_refused(folder: Path) -> None:
    main(["new", "conditioner", "own_part"])
    words = ["imports=[own_part]", "conditioner=own_part", "sampler.guidance=1.0"]
    dry_run(compose(words))
    with pytest.raises(ConfigError, match="guidance"):
        dry_run(compose([*words, "conditioner.dropout=0"]))


def test_there_is_a_skeleton_of_every_kind() -> None:
    assert {path.stem for path in SKELETONS.glob("*.py")} - {"__init__"} == set(KINDS)
    assert set(RECIPES) < set(KINDS)


def test_a_file_of_its_own_below_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my_lab").mkdir()
    main(["new", "sampler", "my_draws", "file=my_lab/draws.py"])
    assert "imports=[my_lab.draws]" in capsys.readouterr().out
    assert "class MyDrawsSampler" in (folder / "my_lab" / "draws.py").read_text()
    error = error_of(capsys, "return_target", "other", "file=my_lab/draws.py")
    assert "never overwritten" in error and "file=my_lab/draws_return_target.py" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prior", ""], "lower case"),
        (["pror", "gru"], "did you mean 'prior'"),
        (["prior", "GRU"], "trajgen new prior gru"),
        (["prior", "my-gru"], "trajgen new prior my_gru"),
        (["prior", "class"], "lower case"),
        (["prior", "gpt"], "trajgen new prior my_gpt"),
        (["prior", "gru", "width=3"], "Unknown option 'width'"),
        (["prior", "gru", "file=../gru.py"], "file=my_prior.py"),
        (["prior", "gru", "file=gru.txt"], "file=my_prior.py"),
        (["prior", "gru", "file=no_such/gru.py"], "mkdir -p no_such"),
        (["prior", "torch"], "file=my_torch.py"),
        (["sampler", "random"], "file=my_random.py"),
    ],
)
def test_what_cannot_work_is_refused_with_a_cure(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(capsys, *words)
    assert not list(folder.rglob("*"))


def test_a_name_that_own_modules_have_taken_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["new", "schedule", "steps"])
    registry.load_imports(["steps"])
    with pytest.raises(ConfigError, match="already"):
        main(["new", "schedule", "steps", "file=more.py", "--debug"])


def test_list_shows_signatures_and_what_options_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["new", "return_target", "wishes"])
    capsys.readouterr()
    main(["list", "return_target", "imports=[wishes]"])
    listed = " ".join(capsys.readouterr().out.split())
    assert "wishes(state_dim, goal_dim, *, offset=0.5, width=128) The mean return of the data" in listed
    main(["list", "return_target/wishes", "imports=[wishes]"])
    one = " ".join(capsys.readouterr().out.split())
    assert "Given by the composition: state_dim, goal_dim" in one and "G; 0 without goals." in one
    assert "return_target.offset" in one and "float" in one and "0.5" in one and "what is added" in one
