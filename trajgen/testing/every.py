"""What components of all kinds promise: how they are registered, and how they behave in a composition."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.registry import Option, complete, component, spec
from trajgen.testing.bench import Bench, rows
from trajgen.testing.contract import ContractError, NotApplicableError, contract
from trajgen.testing.responses import respond

KINDS_THAT_COMPUTE = (
    "view",
    "tokenizer",
    "conditioner",
    "prior",
    "decoder",
    "action",
    "sampler",
    "return_target",
    "planner",
)
TOLERANCE = 1e-4


def check_docstring(kind: str, name: str) -> None:
    """The first paragraph of the docstring is one sentence or two, and ends like one."""
    text = inspect.cleandoc(component(kind, name).__doc__ or "")
    first = " ".join(text.split("\n\n")[0].split())
    if not first.endswith((".", "!")):
        raise ContractError(
            "'trajgen list' shows the first line of the docstring, and here is none to show.",
            expected="a sentence that says what it is, with a full stop",
            got=repr(first) if first else "no docstring",
            look=f"the docstring of {spec(kind, name).attribute}",
        )


def check_options(kind: str, name: str) -> None:
    """Every option has a type and a literal default of that type; arguments are asked for by name."""
    found, made = spec(kind, name), component(kind, name)
    inherited = inspect.isclass(made) and made.__init__ is nn.Module.__init__  # it has neither wiring nor options
    for p in () if inherited else inspect.signature(made).parameters.values():
        if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise ContractError(
                f"The argument '{p}' cannot be given by name.",
                expected="wiring before the '*', options after it, all with names",
                got=str(p),
                look=f"the signature of {found.attribute}",
            )
    for option in found.options:
        _check_literal(found.attribute, option)
        if not option.annotation:
            raise ContractError(
                f"Option '{option.name}' has no type.",
                expected=f"{option.name}: {type(option.default).__name__} = {option.default!r}",
                got=f"{option.name}={option.default!r}",
                look=f"the signature of {found.attribute}",
            )
    try:
        complete(kind, found.defaults())
    except ConfigError as error:
        raise ContractError(
            "The default of an option is not of the option's own type.", expected=error.expected, got=error.got
        ) from error


def _check_literal(attribute: str, option: Option) -> None:
    try:
        same = ast.literal_eval(repr(option.default)) == option.default
    except (ValueError, SyntaxError):
        same = False
    if not same:
        raise ContractError(
            f"The default of option '{option.name}' cannot be written into a recipe.",
            expected="a number, a text, true, false, None, or a tuple of those",
            got=repr(option.default),
            look=f"the signature of {attribute}; what follows from other parts belongs before the '*'",
        )


def check_unknown_option(kind: str, name: str) -> None:
    """An option that it does not have is refused, not swallowed."""
    try:
        complete(kind, {**spec(kind, name).defaults(), "no_such_option": 1})
    except ConfigError:
        return
    raise ContractError("An option that it does not have is accepted.", expected="a refusal", got="no_such_option=1")


@contract("finite float32 in evaluation", *KINDS_THAT_COMPUTE)
def finite(bench: Bench) -> None:
    for what, value in _answers(bench).items():
        if not value.is_floating_point():
            continue
        if value.dtype != torch.float32:
            raise ContractError(
                f"{what} is not in single precision, though weights and data are.",
                expected="torch.float32",
                got=value.dtype,
                look="numbers that come from numpy, and tensors that are made with another dtype",
            )
        if not torch.isfinite(value).all():
            raise ContractError(f"{what} has values that are not finite.", expected="numbers", got="NaN or infinity")


@contract("the same twice in evaluation", *KINDS_THAT_COMPUTE)
def same_twice(bench: Bench) -> None:
    torch.manual_seed(1)
    first = _answers(bench)
    torch.manual_seed(2)
    _compare(
        first,
        _answers(bench),
        "{what} differs by {by} when it is asked for again with the same seed.",
        look="random numbers that are drawn without rng (or with dropout in evaluation), and state that is left over",
    )


@contract("acting without gradients (torch.inference_mode)", *KINDS_THAT_COMPUTE)
def inference_mode(bench: Bench) -> None:
    usual = _answers(bench)
    with torch.inference_mode():
        inferred = respond(bench, bench.planner, bench.batch())
    _compare(usual, inferred, "{what} differs by {by} under torch.inference_mode, as policies act.")


@contract("what it draws carries no gradient", "sampler", "planner")
def no_gradient(bench: Bench) -> None:
    for what, value in respond(bench, bench.planner, bench.batch()).items():
        if "actions" not in what and value.requires_grad:
            raise ContractError(
                f"{what} carries a gradient: plans would hold on to memory.",
                expected="no gradient",
                got="requires_grad",
                look="@torch.no_grad()",
            )


@contract("one window does not depend on the others of its batch", *KINDS_THAT_COMPUTE)
def independent_of_the_batch(bench: Bench) -> None:
    if bench.kind in ("sampler", "planner") and _is_drawn(bench):
        raise NotApplicableError("what is drawn at random differs with its place in the batch")
    batch = bench.batch()
    together = {k: v[2:3] for k, v in _answers(bench).items()}
    with torch.no_grad():
        alone = respond(bench, bench.planner, rows(batch, slice(2, 3)))
    _compare(
        together,
        alone,
        "{what} of the third window is another, by {by}, when it is asked for alone.",
        look="sums, means and normalizations over the batch axis, and shapes that take B for granted",
    )


@contract("works for data without goals", "conditioner", "prior", "decoder", "return_target", "planner")
def without_goals(bench: Bench) -> None:
    try:
        planner = bench.ready(goals=False)
    except ConfigError as refusal:
        raise NotApplicableError(f"it is refused: {refusal.rule}") from refusal
    with torch.no_grad():
        respond(bench, planner, bench.batch(goals=False))


@contract("no hidden tensors: it moves to another device as a whole")
def hidden_tensors(bench: Bench) -> None:
    known = {id(t) for t in (*bench.planner.parameters(), *bench.planner.buffers())}
    for owner in _owners(bench.component):
        for attribute, value in vars(owner).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            for tensor in _tensors(value):
                if id(tensor) not in known:
                    raise ContractError(
                        f"The tensor in '{attribute}' of {type(owner).__name__} is neither a parameter nor a buffer: "
                        "it stays behind on another device, and is not in the checkpoint.",
                        expected=f'self.register_buffer("{attribute}", …), nn.Parameter, or an nn.ModuleList',
                        got=f"an attribute of shape {tuple(tensor.shape)}",
                        look=f"where {type(owner).__name__} sets self.{attribute}",
                    )


@contract("makes its tensors on the device of its inputs", *KINDS_THAT_COMPUTE)
def device_of_inputs(bench: Bench) -> None:
    usual, batch = _answers(bench), bench.batch()
    try:
        with torch.no_grad(), torch.device("meta"):  # a device that is not the inputs', where nothing can be read
            found = respond(bench, bench.planner, batch)
    except RuntimeError as error:
        if "meta" not in str(error).lower() and "device" not in str(error).lower():
            raise
        raise _elsewhere() from error
    for what, value in found.items():
        if value.device != usual[what].device:
            raise _elsewhere()


def _elsewhere() -> ContractError:
    return ContractError(
        "A tensor is made without saying on which device: on a GPU this fails.",
        expected="device=x.device, x.new_zeros(…), torch.zeros_like(x), or a buffer",
        got="a tensor on the default device",
        look="torch.zeros, torch.arange, torch.tensor and their like in what is called at every step",
    )


@contract("its state dict is complete", *KINDS_THAT_COMPUTE)
def complete_state(bench: Bench) -> None:
    other = bench.ready(seed=5)
    try:
        other.load_state_dict(bench.planner.state_dict())
    except RuntimeError as error:
        raise ContractError(
            "A planner that is built anew does not take the state of a trained one.",
            expected="the same names and shapes in both",
            got=" ".join(str(error).split()),
            look="weights whose shape or presence depends on data or on the number of calls",
        ) from error
    with torch.no_grad():
        loaded = respond(bench, other, bench.batch())
    _compare(
        _answers(bench),
        loaded,
        "{what} differs by {by} once the state is loaded into a planner that is built anew.",
        look="attributes that change in training, or are drawn when it is built: register them as buffers",
    )


@contract("training reaches all of its weights", *KINDS_THAT_COMPUTE)
def weights_are_trained(bench: Bench) -> None:
    planner = bench.ready()
    part = bench.of(planner)
    own = dict(part.named_parameters()) if isinstance(part, nn.Module) else {}
    if not own:
        raise NotApplicableError("it has no weights")
    left = dict(own)
    for stage in planner.stages():
        if stage.trained:
            stage.begin(planner)
            stage.loss(bench.batch(32))["total"].backward()
            mine = {id(p) for p in stage.trained}
            left = {k: p for k, p in left.items() if p.grad is None or id(p) not in mine}
    usual = respond(bench, planner.eval(), bench.batch()) if left else {}
    for name, p in left.items():
        if _matters(bench, planner, p, usual):  # an option can leave a weight without a use, which does no harm
            raise ContractError(
                f"The weight '{name}' changes what it says, and no stage of training reaches it.",
                expected="a gradient in a stage that lists it",
                got="none",
                look="detach() and no_grad() on the way to the loss, and the parameters that stages(), "
                "base_parameters() and adapter_parameters() list",
            )


@torch.no_grad()
def _matters(bench: Bench, planner: Any, parameter: Tensor, usual: Mapping[str, Tensor]) -> bool:
    """Whether what is said changes with a weight."""
    kept = parameter.clone()
    parameter.add_(torch.randn_like(parameter))
    other = respond(bench, planner, bench.batch())
    parameter.copy_(kept)
    return any(not torch.equal(usual[what], other[what]) for what in usual)


def _is_drawn(bench: Bench) -> bool:
    with torch.no_grad():
        first, second = (respond(bench, bench.planner, bench.batch(), seed=seed) for seed in (0, 1))
    return any(not torch.equal(first[k], second[k]) for k in first)


def _answers(bench: Bench) -> dict[str, Tensor]:
    with torch.no_grad():
        return respond(bench, bench.planner, bench.batch())


def _compare(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], wrong: str, *, look: str | None = None) -> None:
    for what, value in expected.items():
        if got[what].shape != value.shape:
            raise ContractError(
                wrong.format(what=what, by="its shape"), expected=tuple(value.shape), got=tuple(got[what].shape)
            )
        if not torch.allclose(value.float(), got[what].float(), atol=TOLERANCE, rtol=TOLERANCE, equal_nan=True):
            by = f"{float((value.float() - got[what].float()).abs().max()):.2g}"
            raise ContractError(wrong.format(what=what, by=by), expected="equal values", look=look)


def _owners(part: Any) -> Iterator[Any]:
    """What could hold a hidden tensor: the component, and its submodules if it is a module."""
    if isinstance(part, nn.Module):
        yield from part.modules()
    elif hasattr(part, "__dict__"):
        yield part


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, in containers, and in modules within containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple, set)):
        for each in value:
            yield from _tensors(each)
