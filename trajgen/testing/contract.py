"""What a contract is: a check of one promise, in plain words, and how it is tried and reported."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import trajgen
from trajgen.core.errors import ConfigError
from trajgen.core.registry import KINDS
from trajgen.testing.bench import Bench

Outcome = Literal["passed", "failed", "not applicable"]
Trial = Callable[[Bench], None]
PACKAGE = Path(trajgen.__file__).parent


class ContractError(Exception):
    """A promise that is not kept.

    Args:
        wrong: what is wrong, a sentence.
        expected: what should have been.
        got: what was found.
        look: where to look, or what to do.
    """

    def __init__(self, wrong: str, *, expected: object = None, got: object = None, look: str | None = None) -> None:
        parts = [wrong]
        for label, value in (("expected", expected), ("got", got), ("look at", look)):
            if value is not None:
                parts.append(f"  {label + ':':<9} {value}")
        super().__init__("\n".join(parts))


class NotApplicableError(Exception):
    """A promise that this component has no occasion to keep; the message says why."""


@dataclass(frozen=True)
class Contract:
    """A promise that components of some kinds make."""

    words: str
    kinds: tuple[str, ...]
    trial: Trial


@dataclass(frozen=True)
class Result:
    """How one contract was kept."""

    words: str
    outcome: Outcome
    said: str = ""
    """What is wrong, or why it is not applicable."""
    error: BaseException | None = None
    """What the component raised, if that is what is wrong."""


CONTRACTS: list[Contract] = []
"""All contracts, in the order in which they are tried."""


def contract(words: str, *kinds: str) -> Callable[[Trial], Trial]:
    """Adds a function to the contracts of some kinds; of all, if none is named."""

    def add(trial: Trial) -> Trial:
        CONTRACTS.append(Contract(words, kinds or tuple(KINDS), trial))
        return trial

    return add


def attempt(words: str, trial: Callable[[], None], source: Path | None) -> Result:
    """Tries one promise, and puts what goes wrong into words.

    Args:
        words: the promise.
        trial: raises `ContractError` or `NotApplicableError`, or whatever a component raises.
        source: the file of the component, in which errors are placed if they come from there.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            trial()
    except NotApplicableError as reason:
        return Result(words, "not applicable", str(reason))
    except ContractError as broken:
        return Result(words, "failed", str(broken))
    except Exception as error:  # whatever it is, it is the component's
        return Result(words, "failed", raised(error, source), error)
    return Result(words, "passed")


def raised(error: BaseException, source: Path | None) -> str:
    """An exception in words: what, in which function, and at which line of the component's file if it is there."""
    if isinstance(error, ConfigError):
        return f"it is refused: {error}"
    if isinstance(error, SyntaxError):
        return f"raises {type(error).__name__}: {error.msg}, at {_shown(Path(error.filename or '?'))}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if source is not None and Path(f.filename) == source]
    others = [f for f in frames if "site-packages" not in f.filename and not _ours(f.filename)]
    house = [f for f in frames if PACKAGE in Path(f.filename).parents]
    frame = (own or others or house or list(frames))[-1]
    first = (str(error) or "no message").splitlines()[0]
    return f"raises {type(error).__name__} in {frame.name}(): {first}, at {_shown(Path(frame.filename))}:{frame.lineno}"


def _ours(file: str) -> bool:
    """Whether a file is the package's or Python's own."""
    path = Path(file)
    return PACKAGE in path.parents or Path(os.__file__).parent in path.parents or not path.is_absolute()


def _shown(path: Path) -> Path:
    """A path as a person would write it from here."""
    return path.relative_to(Path.cwd()) if Path.cwd() in path.parents else path
