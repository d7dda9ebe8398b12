"""What a study asks: its variants, their reference and the seeds, from a file or from axes on the command line."""

from __future__ import annotations

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
from trajgen.experiments.studies.published import Published, chosen_task, read_published

EQUALITIES = ("steps", "time")
OWN_WORDS = {
    "seed": "seeds=[0,1,2] gives the seeds of a study",
    "run_dir": "out=DIR gives the folder of a study",
    "resume": "a study goes on by itself",
}
"""Options of a single run that a study sets for each of its cells."""


@dataclass(frozen=True)
class Variant:
    """One answer that is compared: what it is trained with, and what of its evaluation differs, as overrides."""

    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()

    def __add__(self, other: Variant) -> Variant:
        return Variant(self.train + other.train, self.evaluate + other.evaluate)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, and the grid of runs that answers it.

    Args:
        name: of its folder.
        question: in a line.
        base: overrides that all variants share.
        variants: by name, at least one.
        reference: the variant to which the others are compared; the first if empty.
        seeds: of the trainings.
        equal: what the variants have in common: "steps" as their overrides say, "time" of training, or both in turn.
        published: figures of a paper that stand beside the results; variants are then tasks, and are not compared.

    Raises:
        ConfigError: for anything in it that does not fit.
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
            raise ConfigError(
                "A study compares variants.",
                expected="at least one variant",
                got=f"none in '{self.name}'",
                fix="variants: {small: [prior.depth=2], large: [prior.depth=6]}",
            )
        object.__setattr__(self, "reference", self.reference or next(iter(self.variants)))
        if self.reference not in self.variants:
            raise ConfigError(
                "A study's reference is one of its variants.",
                expected=", ".join(self.variants),
                got=f"reference={self.reference}",
                fix=nearest(self.reference, self.variants),
            )
        if not self.seeds or min(self.seeds) < 0 or len({*self.seeds}) < len(self.seeds):
            raise ConfigError(
                "A study's seeds are different whole numbers from 0 on, at least one.",
                expected="seeds=[0,1,2]",
                got=f"seeds={list(self.seeds)}",
                fix="name each seed once",
            )
        if not self.equal or not {*self.equal} <= {*EQUALITIES}:
            raise ConfigError(
                "Variants are compared at equal steps, at equal time, or both.",
                expected="equal=[steps], equal=[time] or equal=[steps,time]",
                got=f"equal={list(self.equal)}",
                fix="equal=[steps,time]",
            )
        folders = [slug(name) for name in self.variants]
        if twice := {name for name in folders if folders.count(name) > 1}:
            raise ConfigError(
                "Variants have names that make different folders.",
                expected="names that differ in letters and digits",
                got=", ".join(name for name in self.variants if slug(name) in twice),
                fix="rename one of them",
            )
        for word in [*self.base, *(word for v in self.variants.values() for word in (*v.train, *v.evaluate))]:
            if key_of(word) in OWN_WORDS:
                raise ConfigError(
                    "A study sets seed and folder of each cell itself.",
                    got=word,
                    expected="overrides of recipe, data, components, engine, policy and evaluation",
                    fix=OWN_WORDS[key_of(word)],
                )

    def with_words(self, words: Sequence[str]) -> Study:
        """The study with further overrides for all variants.

        Raises:
            ConfigError: if a variant sets one of them itself, so that it would not be heard.
        """
        for name, variant in self.variants.items():
            own = {key_of(word): word for word in (*variant.train, *variant.evaluate)}
            for word in words:
                if key_of(word) in own:
                    raise ConfigError(
                        "What a study varies is not set for all of its variants.",
                        expected="an option that no variant sets; engine.budget=0.1 shortens all trainings",
                        got=f"{word}, but variant '{name}' has {own[key_of(word)]}",
                        fix="leave it out, or change the variants; those of a shipped study in a copy: study=FILE.yaml",
                    )
        return replace(self, base=joined(self.base, words))

    def to_plain(self) -> dict[str, Any]:
        """The definition as plain values."""
        plain = asdict(self)
        plain["variants"] = {
            name: {k: list(words) for k, words in asdict(variant).items()} for name, variant in self.variants.items()
        }
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def key_of(word: str) -> str:
    """The option that an override speaks of: "sampler" of ``~sampler`` and of ``sampler=greedy``."""
    return word.lstrip("+~").partition("=")[0].strip()


def joined(*parts: Iterable[str]) -> tuple[str, ...]:
    """Overrides one after the other; of two that speak of the same option the later one counts.

    A component that a later part names anew takes its options from there alone, as everywhere.
    """
    words: list[str] = []
    for part in map(list, parts):
        swapped = tuple(f"{key_of(word)}." for word in part if key_of(word) in KINDS)
        words = [word for word in words if not key_of(word).startswith(swapped)] + part
    last = {key_of(word): number for number, word in enumerate(words)}
    return tuple(word for number, word in enumerate(words) if last[key_of(word)] == number)


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.+]+", "-", name, flags=re.ASCII).strip("-.") or "variant"


def read_study(path: Path, task: str | None = None) -> Study:
    """The study of a file.

    Args:
        path: of the file.
        task: one of those under its key ``tasks``, whose values stand beside the file's own.

    Raises:
        ConfigError: for a key that studies do not have, a value of another type, or a task that it does not have.
    """
    plain = chosen_task(read_yaml(path), task, path)
    known = ("base", "variants", "reference", "seeds", "equal", "published")
    refuse_unknown(plain, dict.fromkeys(known), "")
    variants = plain.pop("variants", None) or {}
    if not isinstance(variants, Mapping):
        raise ConfigError(
            "The variants of a study have names.",
            expected="variants: {name: [overrides], …}",
            got=f"{path}: variants: {variants!r}",
            fix="variants: {small: [prior.depth=2], large: [prior.depth=6]}",
        )
    return Study(
        name=path.stem if task is None else f"{path.stem}-{slug(task)}",
        question=question_of(path),
        base=words_of(plain.get("base", []), "base"),
        variants={str(name): _variant(value, f"variants.{name}") for name, value in variants.items()},
        reference=str(plain.get("reference", "")),
        seeds=convert(plain.get("seeds", [0, 1, 2]), tuple[int, ...], "seeds"),
        equal=convert(plain.get("equal", ["steps"]), tuple[str, ...], "equal"),
        published=read_published(convert(plain.get("published", {}), dict[str, Any], "published"), "published"),
    )


def _variant(value: Any, where: str) -> Variant:
    if not isinstance(value, Mapping):
        return Variant(words_of(value or [], where))
    refuse_unknown(value, dict.fromkeys(("train", "evaluate")), where)
    return Variant(*(words_of(value.get(key) or [], f"{where}.{key}") for key in ("train", "evaluate")))


def question_of(path: Path) -> str:
    """What the first line of a file asks, if it is a comment."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def words_of(value: Any, where: str) -> tuple[str, ...]:
    """Overrides from plain values; ``where`` is their place in the file, for messages.

    Raises:
        ConfigError: if one of them is not written as on the command line.
    """
    words: tuple[str, ...] = convert(value, tuple[str, ...], where)
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(
                "Overrides are written key=value, as on the command line.",
                expected="for example [prior.depth=2, sampler=greedy]",
                got=f"{where}: {word!r}",
                fix="one text for each override; quotes around one that holds a comma: 'view.fields=[state,action]'",
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
        ConfigError: if there is nothing in it, or it is not such a list.
    """
    word = f"{'evaluate' if evaluate else 'axis'}={text}"
    parts = _split(text.strip()[1:-1]) if text.strip()[:1] == "[" and text.strip()[-1:] == "]" else []
    if not parts:
        raise ConfigError(
            "An axis is a list of overrides, at least one.",
            expected="for example 'axis=[prior.depth=2,prior.depth=4]'",
            got=word,
            fix="write the variants between the brackets, and put the whole into quotes",
        )
    variants: dict[str, Variant] = {}
    key = ""
    for part in parts:
        if "=" not in part and not part.startswith("~"):
            if not key:
                raise ConfigError(
                    "The first variant of an axis says which option it sets.",
                    expected="for example 'axis=[prior.depth=2,4]'",
                    got=word,
                    fix=f"KEY={part} in place of {part}",
                )
            part = f"{key}={part}"
        key = part.partition("=")[0] if " " not in part else ""
        if part in variants:
            raise ConfigError(
                "The variants of an axis differ.",
                expected="each of them once",
                got=f"{word}, with {part} twice",
                fix=f"leave one {part} out",
            )
        words = tuple(part.split())
        variants[part] = Variant(evaluate=words) if evaluate else Variant(train=words)
    return variants


def _split(text: str) -> list[str]:
    """Parts between commas, those within brackets, braces or quotes aside."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "[({") - (letter in "])}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [" ".join(part.split()) for part in parts if part.strip()]


def grid(axes: Sequence[Mapping[str, Variant]]) -> dict[str, Variant]:
    """Every combination of one variant of each axis."""
    combined = {}
    for names in product(*axes):
        parts = [axis[name] for axis, name in zip(axes, names, strict=True)]
        combined[", ".join(names)] = sum(parts[1:], start=parts[0])
    return combined


def name_of(axes: Sequence[Mapping[str, Variant]]) -> str:
    """A name for a study that has none: the options along its axes."""
    keys = [key_of(word) for axis in axes for v in axis.values() for word in (*v.train, *v.evaluate)]
    return slug("-".join(dict.fromkeys(keys)))
