"""What a contract is: a check of one promise, how it is run, and how a violation is reported."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import trajgen
from trajgen.core.errors import ConfigError
from trajgen.core.registry import KINDS
from trajgen.testing.fixture import Fixture

Outcome = Literal["passed", "failed", "not applicable"]
Check = Callable[[Fixture], None]
PACKAGE = Path(trajgen.__file__).parent


class ContractError(Exception):
    """A promise that is not kept.

    Args:
        problem: what is wrong, a sentence.
        expected: what should have been.
        got: the actual value.
        look: where to look, or what to do.
    """

    def __init__(self, problem: str, *, expected: object = None, got: object = None, look: str | None = None) -> None:
        parts = [problem]
        for label, value in (("expected", expected), ("got", got), ("look at", look)):
            if value is not None:
                parts.append(f"  {label + ':':<9} {value}")
        super().__init__("\n".join(parts))


class NotApplicableError(Exception):
    """A promise that does not apply to this component; the message says why."""


@dataclass(frozen=True)
class Contract:
    """A promise that components of some kinds make."""

    promise: str
    kinds: tuple[str, ...]
    check: Check


@dataclass(frozen=True)
class Result:
    """The outcome of one contract."""

    promise: str
    outcome: Outcome
    message: str = ""
    """What is wrong, or why the contract is not applicable."""
    error: BaseException | None = None
    """The exception, if the component raised one."""


CONTRACTS: list[Contract] = []
"""All contracts, in the order in which they are checked."""


def contract(promise: str, *kinds: str) -> Callable[[Check], Check]:
    """Adds a function to the contracts of some kinds; of all kinds, if none is named."""

    def add(check: Check) -> Check:
        CONTRACTS.append(Contract(promise, kinds or tuple(KINDS), check))
        return check

    return add


def attempt(promise: str, check: Callable[[], None], source: Path | None) -> Result:
    """Runs one check and describes its outcome.

    Args:
        promise: what is checked.
        check: raises `ContractError` or `NotApplicableError`, or whatever a component raises.
        source: the file of the component, whose lines are named first when it raises an exception.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            check()
    except NotApplicableError as reason:
        return Result(promise, "not applicable", str(reason))
    except ContractError as violation:
        return Result(promise, "failed", str(violation))
    except Exception as error:  # a component may raise anything
        return Result(promise, "failed", describe_exception(error, source), error)
    return Result(promise, "passed")


def require(ok: object, problem: str, *, expected: object = None, got: object = None, look: str | None = None) -> None:
    """Raises `ContractError` unless ``ok`` is true."""
    if not ok:
        raise ContractError(problem, expected=expected, got=got, look=look)


def require_shape(name: str, value: Any, shape: tuple[int, ...], meaning: str) -> None:
    """Raises `ContractError` unless ``value`` is a tensor of this shape.

    Args:
        name: of the value, as it appears in the message.
        value: the value.
        shape: its expected shape.
        meaning: the shape in letters.
    """
    name = name[:1].upper() + name[1:]
    require(isinstance(value, Tensor), f"{name} should be a tensor {meaning}.", got=type(value).__name__)
    actual, look = tuple(value.shape), None
    if len(actual) == len(shape) and sorted(actual) == sorted(shape):
        look = "the order of the axes: a transpose is missing, or one too many"
    elif [n for n in actual if n != 1] == [n for n in shape if n != 1]:
        look = "axes of length 1: squeeze or unsqueeze"
    require(actual == shape, f"{name} should have the shape {meaning}.", expected=shape, got=actual, look=look)


def require_losses(losses: Any, *, total: bool = True) -> None:
    """Raises `ContractError` unless these are named finite scalars, ``total`` among them if required."""
    require(isinstance(losses, dict), 'Losses are a dictionary {"total": …}.', got=type(losses).__name__, look="loss()")
    require(not total or "total" in losses, 'The engine minimizes losses["total"].', got=", ".join(losses))
    for name, value in losses.items():
        require(isinstance(value, Tensor) and value.ndim == 0, f"The loss '{name}' is not a tensor without axes.")
        require(torch.isfinite(value), f"The loss '{name}' is not finite.", got=value.item())


def describe_exception(error: BaseException, source: Path | None) -> str:
    """What was raised, in which function, and at which line: of the component's own file if it is in the traceback."""
    if isinstance(error, ConfigError):
        return f"it is refused: {error}"
    if isinstance(error, SyntaxError):
        return f"raises {type(error).__name__}: {error.msg}, at {_relative(error.filename or '?')}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    component_frames = [f for f in frames if source is not None and Path(f.filename) == source]
    foreign_frames = [f for f in frames if "site-packages" not in f.filename and not _is_internal(f.filename)]
    package_frames = [f for f in frames if PACKAGE in Path(f.filename).parents]
    frame = (component_frames or foreign_frames or package_frames or list(frames))[-1]
    first_line = (str(error) or "no message").splitlines()[0]
    return (
        f"raises {type(error).__name__} in {frame.name}(): {first_line}, at {_relative(frame.filename)}:{frame.lineno}"
    )


def _is_internal(filename: str) -> bool:
    """Whether a file belongs to this package or to Python itself."""
    path = Path(filename)
    return PACKAGE in path.parents or Path(os.__file__).parent in path.parents or not path.is_absolute()


def _relative(filename: str) -> Path:
    path = Path(filename)
    return path.relative_to(Path.cwd()) if Path.cwd() in path.parents else path
