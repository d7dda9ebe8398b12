"""The cells of a study: what each variant trains and evaluates, where it lies, and which variants share a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from trajgen.config import Config, compose, merged
from trajgen.core.errors import ConfigError
from trajgen.core.files import read_json
from trajgen.experiments.run_folder import load_config
from trajgen.experiments.studies.definition import Study, joined, slug

ASIDE = ("seed", "run_dir", "resume", "device")
"""Options in which the cells of one variant differ, and that say nothing about it."""
BY_TIME = " (equal time)"


@dataclass(frozen=True)
class Row:
    """A variant as configurations: one row of the table.

    Args:
        name: of the variant, or that and `BY_TIME`.
        variant: its name.
        words: overrides of its training.
        trained: the configuration that they give.
        overrides: what is asked for in its evaluation and differs from its run's, as plain values; mostly nothing.
        run: the name of the row whose run it evaluates: another's, or its own.
    """

    name: str
    variant: str
    words: tuple[str, ...]
    trained: Config
    overrides: dict[str, Any]
    run: str

    @property
    def equal(self) -> str:
        """What it shares with the reference: steps or time."""
        return "time" if self.name.endswith(BY_TIME) else "steps"


@dataclass(frozen=True)
class Cell:
    """One row at one seed, in a folder of the study."""

    row: Row
    seed: int
    folder: Path
    """Of the study."""

    @property
    def name(self) -> str:
        return f"{slug(self.row.name)}-s{self.seed}"

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "cells" / f"{slug(self.row.run)}-s{self.seed}"

    @property
    def out(self) -> Path:
        """Where its evaluation lies."""
        return self.run / "evaluations" / slug(self.row.name) if self.row.overrides else self.run

    @property
    def config(self) -> Config:
        """What is trained."""
        return replace(self.row.trained, seed=self.seed, run_dir=str(self.run), resume=True)

    def trained(self) -> bool:
        """Whether its run has come to its end, its own evaluation included.

        Raises:
            ConfigError: if the folder holds another run.
        """
        path = self.run / "config.json"
        if not path.exists():
            return False
        # Read as a configuration: an option that is newer than the run has its default there.
        found, asked = load_config(self.run)[0].to_plain(), self.config.to_plain()
        differing = [k for k in {*found, *asked} if k not in ASIDE[1:] and found.get(k) != asked.get(k)]
        if differing:
            raise ConfigError(
                "A cell's folder holds the run that the study asks for.",
                expected=f"the configuration in {path}",
                got=f"another {', '.join(sorted(differing))}",
                fix="out=ANOTHER, or move the folder away",
            )
        return (self.run / "evaluation.json").exists()

    def finished(self) -> bool:
        """Whether its evaluation is there, of what is asked."""
        path = self.out / "evaluation.json"
        return self.trained() and path.exists() and read_json(path).get("overrides", {}) == self.row.overrides

    def commands(self, root: str) -> tuple[str, str | None]:
        """The commands that repeat its training, and its evaluation where that is another, under a folder ``root``."""
        run = f"{root}/cells/{self.run.name}"
        train = ["trajgen", "train", *joined(self.row.words, (f"seed={self.seed}", f"run_dir={quoted(run)}"))]
        if not self.row.overrides:
            return shlex.join(train), None
        config = self.row.trained
        extra = [f"imports=[{','.join(config.imports)}]"] if config.imports else []
        extra += [f"device={config.device}"] if config.device != "auto" else []
        words = [f"run={run}", *_words(self.row.overrides), *extra, f"out={run}/evaluations/{self.out.name}"]
        return shlex.join(train), shlex.join(["trajgen", "evaluate", *words])


def rows_of(
    study: Study,
    steps: Mapping[str, Mapping[str, int]] | None = None,
    known: dict[tuple[str, ...], Config] | None = None,
) -> list[Row]:
    """The rows of a study, in its order; those of equal time once their steps are known.

    Args:
        study: its definition.
        steps: for each variant the steps of stages that give it the reference's time; none are known yet if None.
        known: configurations by their overrides; those that are composed here are added.

    Raises:
        ConfigError: if a variant does not compose, or its evaluation changes what is trained.
    """
    known = {} if known is None else known
    rows: list[Row] = []
    pairs: list[tuple[Row, Config]] = []
    for name, variant in study.variants.items():
        words = joined(study.base, variant.train)
        plain, asked = _composed(name, words, variant.evaluate, known)
        if _trains_other(plain, asked):
            raise ConfigError(
                f"What variant '{name}' evaluates needs a training of its own.",
                expected="evaluate: overrides of components that are not trained, policy and evaluation",
                got=", ".join(variant.evaluate),
                fix="put them under train:, or into a plain list",
            )
        if "steps" in study.equal:
            pairs.append((Row(name, name, words, plain, {}, ""), asked))
        twice = name == study.reference and "steps" in study.equal
        if "time" in study.equal and steps is not None and name in steps and not twice:
            found = joined(words, _step_words(plain, steps[name]))
            plain, asked = _composed(name, found, variant.evaluate, known)
            pairs.append((Row(name + BY_TIME, name, found, plain, {}, ""), asked))
    groups: dict[str, list[tuple[Row, Config]]] = {}
    for row, asked in pairs:
        groups.setdefault(json.dumps(row.trained.identity(), sort_keys=True), []).append((row, asked))
    for row, asked in pairs:
        group = groups[json.dumps(row.trained.identity(), sort_keys=True)]
        first = next((r for r, a in group if not difference(r.trained, a)), group[0][0])
        rows.append(
            replace(
                row,
                words=first.words,
                trained=first.trained,
                overrides=difference(first.trained, asked),
                run=first.name,
            )
        )
    return rows


def _composed(
    name: str, words: tuple[str, ...], evaluate: tuple[str, ...], known: dict[tuple[str, ...], Config]
) -> tuple[Config, Config]:
    """What a variant trains, and what it evaluates."""
    pair = words, joined(words, evaluate)
    try:
        for each in pair:
            if each not in known:
                known[each] = compose(each)
        return known[pair[0]], known[pair[1]]
    except ConfigError as error:
        raise ConfigError(
            f"Variant '{name}' of the study: {error.rule}", expected=error.expected, got=error.got, fix=error.fix
        ) from error


def _trains_other(trained: Config, asked: Config) -> bool:
    """Whether more differs than components and what an evaluation may set."""
    one, two = ({k: v for k, v in asdict(c).items() if k != "components"} for c in (trained, asked))
    return any(one[k] != two[k] for k in one if k not in ("policy", "evaluation", "device"))


def difference(trained: Config, asked: Config) -> dict[str, Any]:
    """What of ``asked`` differs, as overrides of an evaluation: whole components, options of policy and protocol."""
    one, two = trained.to_plain(), asked.to_plain()
    changed: dict[str, Any] = {k: two[k] for k in asked.components if one.get(k) != two[k]}
    for section in ("policy", "evaluation"):
        if options := {k: v for k, v in two[section].items() if one[section][k] != v}:
            changed[section] = options
    return changed


def _step_words(config: Config, steps: Mapping[str, int]) -> list[str]:
    """Overrides that give stages these steps; a stage that the recipe does not name is added."""
    return [f"{'' if name in config.engine.stages else '+'}engine.stages.{name}.steps={n}" for name, n in steps.items()]


def _words(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides of an evaluation as its command line writes them."""
    words = []
    for key, options in overrides.items():
        words += [f"{key}={options['name']}"] if "name" in options else []
        words += [f"{key}.{name}={_text(value)}" for name, value in options.items() if name != "name"]
    return words


def _text(value: Any) -> str:
    return value if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)


def quoted(text: str) -> str:
    """A text as Hydra reads it, with quotes where it needs them."""
    if all(letter.isascii() and (letter.isalnum() or letter in "/_-+.") for letter in text):
        return text
    return "'" + text.replace("'", "\\'") + "'"


def check_evaluation(row: Row, build: Callable[[Config], Any]) -> None:
    """Whether the weights of a run fit the parts with which it is evaluated.

    Args:
        row: with overrides.
        build: the planner of a configuration.

    Raises:
        ConfigError: if a part needs weights that the run does not train, or leaves out some that it has.
    """
    asked = Config.from_plain(merged(row.trained.to_plain(), row.overrides))
    own = {k: tuple(v.shape) for k, v in build(asked).state_dict().items()}
    old = {k: tuple(v.shape) for k, v in build(row.trained).state_dict().items()}
    names = {k: node["name"] for k, node in row.trained.components.items()}
    swapped = {k for k, node in asked.components.items() if k in names and node["name"] != names[k]}
    if own != {k: shape for k, shape in old.items() if k.split(".")[0] not in swapped}:
        raise ConfigError(
            f"What variant '{row.variant}' evaluates needs weights of its own.",
            expected="evaluate: parts without weights, such as a sampler",
            got=", ".join(_words(row.overrides)),
            fix="put them under train:, or into a plain list",
        )
