"""What the registration of a component promises: its docstring, its options, and the members of its kind."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any, Protocol

from torch import nn

from trajgen.core import critics, planning, protocols
from trajgen.core.errors import ConfigError
from trajgen.core.registry import complete, component, spec
from trajgen.testing.contract import ContractError, NotApplicableError, contract, require
from trajgen.testing.fixture import Fixture

PROTOCOLS: dict[str, type] = {
    "encoder": planning.Encoder,
    "view": protocols.View,
    "tokenizer": protocols.Tokenizer,
    "conditioner": protocols.Conditioner,
    "prior": protocols.Prior,
    "decoder": protocols.Decoder,
    "action": protocols.ActionHead,
    "sampler": protocols.Sampler,
    "critic": critics.Critic,
    "return_target": planning.ReturnTarget,
    "subgoal": planning.Subgoal,
    "planner": planning.Planner,
}
"""What each kind that computes must have; a schedule is a `ScaleSchedule`."""
MEMBERS = "has what its kind promises"
DRAWN_BY = (protocols.Autoregressive, protocols.Denoising, protocols.HasVelocity)
"""The ways in which the package's own samplers draw from a prior."""
_ABSENT = object()


def check_docstring(kind: str, name: str) -> None:
    """The first paragraph of the docstring ends like a sentence."""
    paragraph = " ".join(inspect.cleandoc(component(kind, name).__doc__ or "").split("\n\n")[0].split())
    require(
        paragraph.endswith((".", "!")),
        "'trajgen list' shows the first sentence of the docstring, and there is none.",
        got=repr(paragraph) if paragraph else "no docstring",
        look=f"the docstring of {spec(kind, name).attribute}",
    )


def check_options(kind: str, name: str) -> None:
    """Every option has a type and a default of that type; all arguments can be given by name."""
    described, target = spec(kind, name), component(kind, name)
    look = f"the signature of {described.attribute}"
    inherited = inspect.isclass(target) and target.__init__ is nn.Module.__init__  # neither wiring nor options
    for p in () if inherited else inspect.signature(target).parameters.values():
        by_name = p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        require(by_name, f"The argument '{p}' cannot be given by name.", look=look)
    for option in described.options:
        require(
            option.annotation,
            f"Option '{option.name}' has no type.",
            expected=f"{option.name}: {type(option.default).__name__} = {option.default!r}",
            look=look,
        )
    try:
        complete(kind, described.defaults())
    except ConfigError as error:
        raise ContractError(
            "The default of an option is not of the option's own type.", expected=error.expected, got=error.got
        ) from error


def check_unknown_option(kind: str, name: str) -> None:
    """An option that it does not have is refused, not swallowed."""
    try:
        complete(kind, {**spec(kind, name).defaults(), "no_such_option": 1})
    except ConfigError:
        return
    raise ContractError("An option that it does not have is accepted.", expected="a refusal", got="no_such_option=1")


@contract(MEMBERS, *PROTOCOLS)
def has_members(fixture: Fixture) -> None:
    _require_members(fixture.kind, type(fixture.component).__name__, _missing(fixture.kind, fixture.component))


def check_methods(kind: str, name: str) -> None:
    """The class of a component that could not be built has the methods of its kind."""
    target = component(kind, name)
    if kind not in PROTOCOLS or not inspect.isclass(target):
        raise NotApplicableError("it could not be built")
    missing = _missing(kind, target)
    _require_members(kind, target.__name__, [member for member in missing if member.endswith("()")])


def _missing(kind: str, value: Any) -> list[str]:
    missing = missing_members(value, PROTOCOLS[kind])
    if kind == "prior":  # of the ways in which it may be drawn from, that of which it has most; or one of its own
        lacking = [missing_members(value, capability) for capability in DRAWN_BY]
        present = [len(missing_members(None, c)) - len(lacks) for c, lacks in zip(DRAWN_BY, lacking, strict=True)]
        if max(present):
            missing += lacking[present.index(max(present))]
    return missing


def _require_members(kind: str, owner: str, missing: list[str]) -> None:
    require(
        not missing,
        f"A {kind} lacks what its kind promises.",
        expected=", ".join(missing),
        got=f"{owner} without them",
        look=f"{PROTOCOLS[kind].__name__} in {PROTOCOLS[kind].__module__}",
    )


def missing_members(value: Any, protocol: type) -> list[str]:
    """The members of a protocol that are absent or of another type, such as ``encode()`` or ``layout.start()``."""
    missing = []
    for base in reversed(protocol.__mro__[:-1]):
        for name, member in vars(base).items():
            if inspect.isfunction(member) and (name == "__call__" or not name.startswith("_")):
                missing += [] if callable(getattr(value, name, None)) else [f"{name}()"]
    for name, hint in typing.get_type_hints(protocol).items():
        attribute = getattr(value, name, _ABSENT)
        concrete = hint if isinstance(hint, types.UnionType) else typing.get_origin(hint) or hint
        if hint in PROTOCOLS.values():  # a part, which has contracts of its own; a planner may act by a method
            missing += [] if callable(attribute) else [f"{name}()"]
        elif isinstance(hint, type) and Protocol in hint.__mro__:
            missing += [f"{name}.{member}" for member in missing_members(attribute, hint)]
        elif attribute is _ABSENT or (hint is not Any and not isinstance(attribute, concrete)):
            missing.append(f"{name}: {getattr(hint, '__name__', hint)}")
    return missing
