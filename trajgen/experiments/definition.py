"""The definition of a study: variants, reference and seeds, from a file or from axes on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from trajgen.config import read_yaml
from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import convert, refuse_unknown
from trajgen.core.registry import KINDS
from trajgen.experiments.published import Published, read_published, select_task

CELL_OPTIONS = {
    "seed": "seeds=[0,1,2] gives the seeds of a study",
    "run_dir": "out=DIR gives the folder of a study",
    "resume": "a study resumes by itself",
}
"""Options of a single run that a study sets for each of its cells, and what to write instead."""
EXAMPLE = "variants: {small: [prior.depth=2], large: [prior.depth=6]}"


@dataclass(frozen=True)
class Variant:
    """Overrides of the training, and further ones of the evaluation alone."""

    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()

    def __add__(self, other: Variant) -> Variant:
        return Variant(self.train + other.train, self.evaluate + other.evaluate)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants that are trained with the same seeds and compared.

    Args:
        name: of its folder.
        question: one line.
        base: overrides that all variants share.
        variants: by name, at least one.
        reference: the variant to which the others are compared; the first if empty.
        seeds: of the trainings.
        equal: what the variants have in common: "steps" as their overrides say, "time" of training, or both in turn.
        published: a paper's scores beside the results; variants are then tasks, and are not compared.

    Raises:
        ConfigError: if one of them is invalid.
    """

    name: str
    question: str = ""
    base: tuple[str, ...] = ()
    variants: Mapping[str, Variant] = field(default_factory=dict)
    reference: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    equal: tuple[str, ...] = ("steps",)
    published: tuple[Published, ...] = ()

    def __post_init__(self) -> None:
        if not self.variants:
            raise ConfigError("A study compares variants, at least one.", got=f"none in '{self.name}'", fix=EXAMPLE)
        object.__setattr__(self, "reference", self.reference or next(iter(self.variants)))
        if self.reference not in self.variants:
            raise ConfigError(
                "A study's reference is one of its variants.",
                expected=", ".join(self.variants),
                got=f"reference={self.reference}",
                fix=nearest(self.reference, self.variants),
            )
        check_seeds(self.seeds)
        if not self.equal or not {*self.equal} <= {"steps", "time"}:
            raise ConfigError(
                "Variants are compared at equal steps, at equal time, or both.",
                got=f"equal={list(self.equal)}",
                fix="equal=[steps], equal=[time] or equal=[steps,time]",
            )
        slugs = [slug(name) for name in self.variants]
        if same := [name for name in self.variants if slugs.count(slug(name)) > 1]:
            raise ConfigError(
                "Variants have names that make different folders.", got=", ".join(same), fix="rename one of them"
            )
        varied = [word for v in self.variants.values() for word in (*v.train, *v.evaluate)]
        refuse_cell_options([*self.base, *varied])
        if devices := [word for word in varied if option_of(word) == "device"]:
            raise ConfigError(
                "All variants of a study are computed on one device.",
                got=f"a variant with {devices[0]}",
                fix=f"{devices[0]} for all of them, or a study for each device",
            )

    def with_overrides(self, overrides: Sequence[str]) -> Study:
        """The study with further overrides for all variants.

        Raises:
            ConfigError: if a variant sets one of them itself or names its component, so that it would have no effect.
        """
        for name, variant in self.variants.items():
            varied = {option_of(word): word for word in (*variant.train, *variant.evaluate)}
            for word in overrides:
                if replacing := [varied[option] for option in deciding_options(word) if option in varied]:
                    raise ConfigError(
                        "What a study varies is not set for all of its variants.",
                        got=f"{word}, but variant '{name}' has {replacing[0]}",
                        fix="leave it out, or change the variants; those of a shipped study in a copy: study=FILE.yaml",
                    )
        return replace(self, base=merge_overrides(self.base, overrides))

    def to_plain(self) -> dict[str, Any]:
        """The definition as plain values of JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises a `ConfigError` unless there is a seed, and all are different integers from 0 on."""
    if not seeds or min(seeds) < 0 or len({*seeds}) < len(seeds):
        raise ConfigError(
            "Seeds are different integers from 0 on, at least one.", got=f"seeds={list(seeds)}", fix="seeds=[0,1,2]"
        )


def refuse_cell_options(overrides: Iterable[str]) -> None:
    """Raises a `ConfigError` for an override of seed or folder, which each cell gets by itself."""
    for word in overrides:
        if option_of(word) in CELL_OPTIONS:
            raise ConfigError(
                "Seed and folder of each cell are set by the study.", got=word, fix=CELL_OPTIONS[option_of(word)]
            )


def option_of(override: str) -> str:
    """The option that an override sets: "sampler" of ``~sampler`` and of ``sampler=greedy``."""
    return override.lstrip("+~").partition("=")[0].strip()


def deciding_options(override: str) -> tuple[str, ...]:
    """The options whose later override undoes this one: what it sets, and the component of which that is an option."""
    option = option_of(override)
    kind = option.partition(".")[0]
    return (option, kind) if kind in KINDS else (option,)


def merge_overrides(*parts: Iterable[str]) -> tuple[str, ...]:
    """Overrides one after the other; of two that set the same option the later one counts.

    Where a later part names a component, options of that component in earlier parts are dropped.
    """
    words: list[str] = []
    for part in map(list, parts):
        swapped = tuple(f"{option_of(word)}." for word in part if option_of(word) in KINDS)
        words = [word for word in words if not option_of(word).startswith(swapped)] + part
    last = {option_of(word): number for number, word in enumerate(words)}
    return tuple(word for number, word in enumerate(words) if last[option_of(word)] == number)


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.+]+", "-", name, flags=re.ASCII).strip("-.") or "variant"


def read_study(path: Path, task: str | None = None) -> Study:
    """The study of a file.

    Args:
        path: of the file.
        task: one of those under its key ``tasks``, whose values replace those of the file.

    Raises:
        ConfigError: for an unknown key, a value of the wrong type, or an unknown task.
    """
    plain = select_task(read_yaml(path), task, path)
    refuse_unknown(plain, dict.fromkeys(("base", "variants", "reference", "seeds", "equal", "published")), "")
    variants = plain.get("variants") or {}
    if not isinstance(variants, Mapping):
        raise ConfigError("The variants of a study have names.", got=f"{path}: variants: {variants!r}", fix=EXAMPLE)
    return Study(
        name=path.stem if task is None else f"{path.stem}-{slug(task)}",
        question=read_question(path),
        base=read_overrides(plain.get("base", []), "base"),
        variants={str(name): _read_variant(value, f"variants.{name}") for name, value in variants.items()},
        reference=str(plain.get("reference", "")),
        seeds=convert(plain.get("seeds", [0, 1, 2]), tuple[int, ...], "seeds"),
        equal=convert(plain.get("equal", ["steps"]), tuple[str, ...], "equal"),
        published=read_published(convert(plain.get("published", {}), dict[str, Any], "published")),
    )


def _read_variant(value: Any, where: str) -> Variant:
    if not isinstance(value, Mapping):
        return Variant(read_overrides(value or [], where))
    refuse_unknown(value, dict.fromkeys(("train", "evaluate")), where)
    return Variant(*(read_overrides(value.get(key) or [], f"{where}.{key}") for key in ("train", "evaluate")))


def read_question(path: Path) -> str:
    """The first line of a file, if it is a comment."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def read_overrides(value: Any, where: str) -> tuple[str, ...]:
    """Overrides from plain values; ``where`` is their position in the file, for messages.

    Raises:
        ConfigError: if one of them is not written as on the command line.
    """
    words: tuple[str, ...] = convert(value, tuple[str, ...], where)
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(
                "Overrides are written key=value, as on the command line.",
                got=f"{where}: {word!r}",
                fix="for example [prior.depth=2, sampler=greedy]; quotes around what holds a comma: "
                "'view.fields=[state,action]'",
            )
    return words


def read_axis(text: str, *, evaluate: bool = False) -> dict[str, Variant]:
    """The variants of ``[prior.depth=2, prior.depth=4]``, by name.

    Blanks separate several overrides of one variant, and a value alone takes the key before it:
    ``[prior.depth=2,4]``.

    Args:
        text: a list in brackets.
        evaluate: whether the overrides are those of an evaluation, without a new training.

    Raises:
        ConfigError: if the list is empty or not a list of overrides.
    """
    word = f"{'evaluate' if evaluate else 'axis'}={text}"
    parts = _split(text.strip()[1:-1], ",") if text.strip()[:1] == "[" and text.strip()[-1:] == "]" else []
    variants: dict[str, Variant] = {}
    key = ""
    for part in parts:
        words = _split(part, " ")
        if "=" not in part and not part.startswith("~"):
            if not key:
                raise _not_an_axis(f"{word}, whose value {part} follows no single option")
            words = [f"{key}={part}"]
        key = words[0].partition("=")[0] if len(words) == 1 else ""
        name = " ".join(words)
        if name in variants:
            raise _not_an_axis(f"{word}, with {name} twice")
        variants[name] = Variant(evaluate=tuple(words)) if evaluate else Variant(train=tuple(words))
    if not variants:
        raise _not_an_axis(word)
    return variants


def _not_an_axis(got: str) -> ConfigError:
    return ConfigError(
        "An axis is a list of different overrides, at least one.",
        got=got,
        fix="for example 'axis=[prior.depth=2,4]' or 'axis=[schedule=single, schedule=linear schedule.scales=3]'",
    )


def _split(text: str, separator: str) -> list[str]:
    """Parts between separators, those within brackets, braces or quotes aside."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "[({") - (letter in "])}")
        if letter == separator and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def grid(axes: Sequence[Mapping[str, Variant]]) -> dict[str, Variant]:
    """Every combination of one variant of each axis.

    Raises:
        ConfigError: if one of its axes takes the effect of another's override.
    """
    combined = {}
    for names in product(*axes):
        parts = [axis[name] for axis, name in zip(axes, names, strict=True)]
        cell = sum(parts[1:], start=parts[0])
        effective = merge_overrides(cell.train, cell.evaluate)
        words = [word for part in parts for word in merge_overrides(part.train, part.evaluate)]
        if lost := [word for word in words if word not in effective]:
            raise ConfigError(
                "Each option is varied by one axis.",
                got=f"'{', '.join(names)}', where {lost[0]} has no effect",
                fix="one list of the values that are compared, such as 'axis=[prior.depth=2,4,6]'",
            )
        combined[", ".join(names)] = cell
    return combined


def grid_name(axes: Sequence[Mapping[str, Variant]]) -> str:
    """A name for a study that has none: the options along its axes."""
    options = [option_of(word) for axis in axes for v in axis.values() for word in (*v.train, *v.evaluate)]
    return slug("-".join(dict.fromkeys(options)))
