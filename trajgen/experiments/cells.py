"""The cells of a study: what each variant trains and evaluates, in which folder, and which variants share a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import Config, compose, merged, quoted
from trajgen.core.checks import refuse_idle
from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.core.files import read_json
from trajgen.core.options import value_of
from trajgen.core.tables import number, return_digits
from trajgen.experiments.definition import Study, Variant, merge_overrides, option_of, slug
from trajgen.experiments.jobs import Job
from trajgen.experiments.run_folder import load_config

if TYPE_CHECKING:
    from rich.console import Console

PER_CELL = ("seed", "run_dir", "resume", "device")
"""Options in which the cells of one variant differ, and that are no part of its definition."""
OF_EVALUATION = ("policy", "evaluation")
"""Sections of a configuration without which a training is the same."""
ENV_OPTIONS = ("shift", "resets")
"""Options of the data that an evaluation may set."""
BY_TIME = " (equal time)"


@dataclass(frozen=True)
class Row:
    """A variant with its composed configuration: one row of the table.

    Args:
        name: of the variant, or that and `BY_TIME`.
        variant: its name.
        words: overrides of its training.
        config: the configuration of its training.
        overrides: plain values in which its evaluation differs from its training; mostly empty.
        run: the name of the row whose run it evaluates: another's, or its own.
    """

    name: str
    variant: str
    words: tuple[str, ...]
    config: Config
    overrides: dict[str, Any]
    run: str

    @property
    def equal(self) -> str:
        """What it has in common with the reference: steps or time."""
        return "time" if self.name.endswith(BY_TIME) else "steps"


@dataclass(frozen=True)
class Cell:
    """One row at one seed, in a study's folder."""

    row: Row
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{slug(self.row.name)}-s{self.seed}"

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "cells" / f"{slug(self.row.run)}-s{self.seed}"

    @property
    def out(self) -> Path:
        """The folder of its evaluation."""
        return self.run / "evaluations" / slug(self.row.name) if self.row.overrides else self.run

    @property
    def config(self) -> Config:
        """The configuration of its training."""
        return replace(self.row.config, seed=self.seed, run_dir=str(self.run), resume=True)

    def is_trained(self) -> bool:
        """Whether its run is complete, the run's own evaluation included.

        Raises:
            ConfigError: if the folder holds another run.
        """
        path = self.run / "config.json"
        if not path.exists():
            return False
        # Read as a configuration: an option that is newer than the run has its default there.
        existing, config = load_config(self.run)[0].to_plain(), self.config.to_plain()
        differing = [k for k in {*existing, *config} if k not in PER_CELL[1:] and existing.get(k) != config.get(k)]
        if differing:
            raise ConfigError(
                "A cell's folder holds the run of that cell.",
                expected=f"the configuration in {path}",
                got=f"another {', '.join(sorted(differing))}",
                fix="out=ANOTHER, or move the folder away",
            )
        return (self.run / "evaluation.json").exists()

    def is_finished(self) -> bool:
        """Whether its evaluation is complete, with the row's overrides."""
        path = self.out / "evaluation.json"
        return self.is_trained() and path.exists() and read_json(path).get("overrides", {}) == self.row.overrides

    def commands(self, root: str) -> tuple[str, str | None]:
        """The command of its training, and of its evaluation where that differs, for a folder ``root``."""
        run = f"{root}/cells/{self.run.name}"
        train = ["trajgen", "train", *merge_overrides(self.row.words, (f"seed={self.seed}", f"run_dir={quoted(run)}"))]
        if not self.row.overrides:
            return shlex.join(train), None
        config = self.row.config
        extra = [f"imports=[{','.join(config.imports)}]"] if config.imports else []
        extra += [f"device={config.device}"] if config.device != "auto" else []
        words = [f"run={run}", *_evaluation_words(self.row.overrides), *extra, f"out={run}/evaluations/{self.out.name}"]
        return shlex.join(train), shlex.join(["trajgen", "evaluate", *words])

    def training_job(self) -> Job:
        command = self.commands(f"repeat/{self.folder.name}")[0]
        return Job(self.run.name, train_cell, {"config": self.config.to_plain(), "command": command})

    def evaluation_job(self) -> Job:
        config = self.row.config
        arguments = {"run": self.run, "out": self.out, "overrides": self.row.overrides, "device": config.device}
        return Job(f"{self.name}.evaluation", evaluate_cell, {**arguments, "imports": config.imports})


def train_cell(console: Console, *, config: Mapping[str, Any], command: str) -> tuple[None, str]:
    """The job of a training with its own evaluation."""
    from trajgen import experiments
    from trajgen.engine.loop import StoppedError

    experiments.prepare_imports(tuple(config["imports"]))
    try:
        experiments.train(Config.from_plain(config), console, command)
    except StoppedError:  # Ctrl-C stops the study
        raise KeyboardInterrupt from None
    path = Path(config["run_dir"]) / "evaluation.json"
    return None, "trained; " + _scores(read_json(path)) if path.exists() else "trained"


def evaluate_cell(console: Console, *, run: Path, **options: Any) -> tuple[None, str]:
    """The job of a further evaluation of a run."""
    from trajgen import experiments

    return None, _scores(experiments.evaluate(run, console, **options))


def _scores(figures: Mapping[str, Any]) -> str:
    if error := figures.get("action_error"):
        return f"action error {error['mean']:.3f}"
    ratio, mean = figures.get("ratio_to_controller"), figures["return"]["mean"]
    if mean is None:
        return "all episodes failed"
    text = f"return {number(mean, return_digits([mean]))}"
    return text + (f", {ratio:.3f} of the controller's" if ratio is not None else "")


def make_rows(
    study: Study,
    steps: Mapping[str, Mapping[str, int]] | None = None,
    cache: dict[tuple[str, ...], Config] | None = None,
) -> list[Row]:
    """The rows of a study, in its order; those of equal time only where their steps are given.

    Args:
        study: its definition.
        steps: for each variant the steps of stages that take the reference's time.
        cache: configurations by their overrides, to which those composed here are added.

    Raises:
        ConfigError: if a variant does not compose, or its evaluation changes what is trained.
    """
    cache = {} if cache is None else cache
    pairs: list[tuple[Row, Config]] = []
    for name, variant in study.variants.items():
        words = merge_overrides(study.base, variant.train)
        config, evaluated = _compose_pair(name, words, variant, cache)
        if _trains_other(config, evaluated):
            raise ConfigError(
                f"What variant '{name}' evaluates needs a training of its own.",
                got=", ".join(variant.evaluate),
                fix="under evaluate: untrained components, policy, evaluation, data.shift; the rest under train:",
            )
        if "steps" in study.equal:
            pairs.append((Row(name, name, words, config, {}, ""), evaluated))
        is_reference = name == study.reference and "steps" in study.equal
        if "time" in study.equal and name in (steps or {}) and not is_reference:
            words = merge_overrides(words, _step_words(config, (steps or {})[name]))
            config, evaluated = _compose_pair(name, words, variant, cache)
            pairs.append((Row(name + BY_TIME, name, words, config, {}, ""), evaluated))
    groups: dict[str, list[tuple[Row, Config]]] = {}
    for row, evaluated in pairs:
        groups.setdefault(_training(row.config), []).append((row, evaluated))
    rows = []
    for row, evaluated in pairs:
        group = groups[_training(row.config)]
        first = next((r for r, other in group if not difference(r.config, other)), group[0][0])
        overrides = difference(first.config, evaluated)
        rows.append(replace(row, words=first.words, config=first.config, overrides=overrides, run=first.name))
    return rows


def _compose_pair(
    name: str, words: tuple[str, ...], variant: Variant, cache: dict[tuple[str, ...], Config]
) -> tuple[Config, Config]:
    """The configurations of a variant's training and of its evaluation."""
    try:
        pair = words, merge_overrides(words, variant.evaluate)
        for overrides in pair:
            if overrides not in cache:
                cache[overrides] = compose(overrides)
        refuse_idle(map(option_of, (*variant.train, *variant.evaluate)), cache[pair[1]].policy.revise)
        return cache[pair[0]], cache[pair[1]]
    except ConfigError as error:
        raise ConfigError(
            f"Variant '{name}' of the study: {error.rule}", expected=error.expected, got=error.got, fix=error.fix
        ) from error


def _training(config: Config) -> str:
    """What variants share that share a run: how a training computes is part of it, since it takes other minutes."""
    aside = (*PER_CELL, *OF_EVALUATION)
    return json.dumps({k: v for k, v in config.to_plain().items() if k not in aside}, sort_keys=True)


def _trains_other(config: Config, evaluated: Config) -> bool:
    """Whether more differs than components and what an evaluation may set."""
    one, two = ({k: v for k, v in asdict(c).items() if k != "components"} for c in (config, evaluated))
    for values in (one, two):
        values["data"] = {k: v for k, v in values["data"].items() if k not in ENV_OPTIONS}
    return any(one[k] != two[k] for k in one if k not in (*OF_EVALUATION, "device"))


def difference(config: Config, evaluated: Config) -> dict[str, Any]:
    """The overrides of an evaluation that lead from one configuration to another: whole components, single options."""
    one, two = config.to_plain(), evaluated.to_plain()
    kinds = {**config.components, **evaluated.components}
    changed: dict[str, Any] = {k: two.get(k) for k in kinds if one.get(k) != two.get(k)}  # None leaves one out
    for section in OF_EVALUATION:
        if options := {k: v for k, v in two[section].items() if one[section][k] != v}:
            changed[section] = options
    if options := {k: two["data"][k] for k in ENV_OPTIONS if one["data"][k] != two["data"][k]}:
        changed["data"] = options
    return changed


def _step_words(config: Config, steps: Mapping[str, int]) -> list[str]:
    """Overrides that give stages these steps; a stage that the recipe does not name is added."""
    return [f"{'' if name in config.engine.stages else '+'}engine.stages.{name}.steps={n}" for name, n in steps.items()]


def _evaluation_words(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides of an evaluation as its command line writes them."""
    words: list[str] = []
    for key, options in overrides.items():
        if options is None:
            words.append(f"{key}=null")
            continue
        words += [f"{key}={options['name']}"] if "name" in options else []
        words += [f"{key}.{name}={_yaml(value)}" for name, value in options.items() if name != "name"]
    return words


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) and value_of(f"={value}") == value else json.dumps(value)


def dry_run_rows(rows: Sequence[Row]) -> dict[str, str]:
    """Builds every composition at made-up dimensions; returns by row why it cannot work.

    Raises:
        TrajgenError: if none can work.
    """
    from trajgen import experiments

    refused: dict[str, str] = {}
    for row in rows:
        try:
            experiments.dry_run(row.config)
            if row.overrides:
                check_evaluation(row)
        except TrajgenError as error:
            refused[row.name] = str(error)
            if len(refused) == len(rows):
                raise
    return refused


def check_evaluation(row: Row) -> None:
    """Raises a `ConfigError` if the weights of a row's run do not fit the components with which it is evaluated."""
    from trajgen import experiments
    from trajgen.experiments.preparation import small_space

    space = small_space(row.config)
    evaluated = Config.from_plain(merged(row.config.to_plain(), row.overrides))
    shapes, trained_shapes = (
        {k: tuple(v.shape) for k, v in experiments.build_planner(config, space).state_dict().items()}
        for config in (evaluated, row.config)
    )
    names = {k: node["name"] for k, node in row.config.components.items()}
    swapped = {k for k, node in evaluated.components.items() if k in names and node["name"] != names[k]}
    if shapes != {k: shape for k, shape in trained_shapes.items() if k.split(".")[0] not in swapped}:
        raise ConfigError(
            f"What variant '{row.variant}' evaluates needs weights of its own.",
            got=", ".join(_evaluation_words(row.overrides)),
            fix="under evaluate: only components without weights, such as a sampler; the rest under train:",
        )


def make_data(configs: Iterable[Config], console: Console) -> None:
    """Makes the data sets that are missing and can be made, before several processes need them at once."""
    from trajgen.experiments.preparation import load_episodes, missing_maker

    for config in configs:
        if missing_maker(config.data) is not None:
            load_episodes(config, console)
