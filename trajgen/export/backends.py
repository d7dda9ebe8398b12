"""Ways to run a planning step: eagerly, by ONNX Runtime, or as a CUDA graph; the same noise gives the same plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from trajgen.core.capture import captured
from trajgen.core.errors import ConfigError, is_out_of_memory
from trajgen.core.planning import Misfit, PlanFn, ReviseFn, plan_step, revision_step
from trajgen.core.types import Cond, FollowedPlan, Plan, Space
from trajgen.export.plan_module import (
    MISFIT,
    PlanModule,
    RevisionModule,
    Tensors,
    cond_tensors,
    followed_tensors,
    plan_from,
    required_noise,
)
from trajgen.export.randomness import Draw, RecordDraws
from trajgen.export.trace import not_traced, require_packages, to_onnx, traced

Backend = Literal["eager", "onnx", "cuda_graph"]
Program = Callable[[Tensors, list[Tensor]], Tensors]
"""A `PlanModule` for one batch size."""
T = TypeVar("T", Tensors, list[Tensor])

MAX_BATCH = 256
"""Plans that are made at once; more are made in turn."""


def plan_fn(backend: Backend, planner: Any) -> PlanFn:
    """The planning step of a planner on a backend.

    Args:
        backend: ``eager``; ``onnx`` for ONNX Runtime on the CPU; ``cuda_graph`` for one launch on a CUDA device. The
            latter two prepare a program for each batch size, rounded up to a power of two, when it is first met: with
            ``onnx`` that takes seconds.
        planner: satisfies `trajgen.core.planning.Planner`.

    Raises:
        ConfigError: if the packages or the device for it are missing.
    """
    if backend == "eager":
        return partial(plan_step, planner)
    programs = _programs(backend, PlanModule(planner))

    def plan(cond: Cond, rng: Generator | None) -> tuple[Tensor, Plan]:
        return plan_from(programs(cond_tensors(cond), rng))

    return plan


def revise_fn(backend: Backend, planner: Any, first: int, misfit: Misfit) -> ReviseFn:
    """The revision of a planner's plans on a backend, from scale number ``first`` on: see `plan_fn`."""
    if backend == "eager":
        return partial(revision_step, planner, first, misfit)
    programs = _programs(backend, RevisionModule(planner, first, misfit))

    def revise(cond: Cond, followed: FollowedPlan, rng: Generator | None) -> tuple[Tensor, Plan, Tensor]:
        outputs = programs(cond_tensors(cond) | followed_tensors(followed), rng)
        return *plan_from(outputs), outputs[MISFIT]

    return revise


def check_backend(backend: Backend, planner: Any, space: Space, device: torch.device | None) -> None:
    """Raises a `ConfigError` if a backend cannot run the plans of a planner, which is tried with the weights it has.

    Args:
        backend: as in `plan_fn`.
        planner: satisfies `trajgen.core.planning.Planner`; is in evaluation mode afterwards.
        space: of the planner.
        device: on which it will plan; None where another machine may do so, whose devices and packages are not known.
    """
    if backend == "eager":
        return
    if device is not None:
        _require(backend, device.type)
    goal = torch.zeros(1, space.goal_dim) if space.goal_dim else None
    cond = Cond(torch.zeros(1, space.state_dim), torch.full((1,), torch.nan), goal, time=torch.zeros(1).long())
    with torch.no_grad(), RecordDraws() as recorder:
        plan_step(planner.eval(), cond)
    if recorder.takes_gradients and backend == "onnx":
        raise not_traced("torch.autograd.grad")


def _programs(backend: Backend, module: PlanModule) -> Programs:
    _require(backend, next(module.parameters()).device.type)
    return Programs(module.eval(), OnnxProgram if backend == "onnx" else GraphProgram)


def _require(backend: Backend, device: str) -> None:
    """Raises a `ConfigError` unless there are the packages for a backend, and it runs on devices of this type."""
    if backend == "onnx":
        require_packages("onnx", "onnxscript", "onnxruntime")
    required = {"onnx": "cpu", "cuda_graph": "cuda"}[backend]
    if device != required:
        raise ConfigError(
            f"policy.backend={backend} needs device={required}.",
            got=f"a model on {device}",
            fix=f"device={required}, or policy.backend=eager",
        )


class Programs:
    """Plans any number of conditions by programs for few batch sizes.

    Rows that fill up a batch repeat its last one, and nothing is drawn for them: the plans are those of `PlanModule`.

    Args:
        module: the planning step.
        compile: from it, inputs and noise of a batch size to a program for that size.
    """

    def __init__(self, module: PlanModule, compile: Callable[[PlanModule, Tensors, list[Tensor]], Program]) -> None:
        self._module, self._compile = module, compile
        self._programs: dict[int, Program] = {}
        self._draws: dict[int, list[Draw]] = {}

    def __call__(self, inputs: Tensors, rng: Generator | None) -> Tensors:
        batch = len(inputs["state"])
        parts = [
            self._run({name: value[i : i + MAX_BATCH] for name, value in inputs.items()}, rng)
            for i in range(0, batch, MAX_BATCH)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _run(self, inputs: Tensors, rng: Generator | None) -> Tensors:
        batch, device = len(inputs["state"]), inputs["state"].device
        if batch not in self._draws:
            self._draws[batch] = required_noise(self._module, inputs)
        size = 1 << (batch - 1).bit_length()
        noise = [pad_rows(draw.sample(rng, device), batch, size) for draw in self._draws[batch]]
        inputs = {name: pad_rows(value, batch, size) for name, value in inputs.items()}
        if size not in self._programs:
            self._programs[size] = self._compile(self._module, copies(inputs), copies(noise))
        outputs = self._programs[size](inputs, noise)
        return {name: value[:batch] for name, value in outputs.items()}


def pad_rows(values: Tensor, batch: int, size: int) -> Tensor:
    """Values (B·m, …) of a batch of B with the last row repeated up to a batch of ``size``, (size·m, …)."""
    missing = len(values) // batch * (size - batch)
    return torch.cat([values, values[-1:].expand(missing, *values.shape[1:])]) if missing else values


class OnnxProgram:
    """Plans for one batch size, by ONNX Runtime on as many threads as torch has.

    Args:
        module: the planning step.
        inputs: of the batch size.
        noise: for them.
    """

    def __init__(self, module: PlanModule, inputs: Tensors, noise: list[Tensor]) -> None:
        import onnxruntime

        self._outputs = list(module.sample(inputs))
        self._inputs = [*inputs, *(f"noise_{number}" for number in range(len(noise)))]
        model = to_onnx(traced(module, (inputs, noise)), self._inputs, self._outputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._used = {node.name for node in self._session.get_inputs()}  # a constant return target uses no input

    def __call__(self, inputs: Tensors, noise: list[Tensor]) -> Tensors:
        values = zip(self._inputs, [*inputs.values(), *noise], strict=True)
        feed = {name: value.numpy() for name, value in values if name in self._used}
        outputs = self._session.run(self._outputs, feed)
        return {name: torch.from_numpy(value) for name, value in zip(self._outputs, outputs, strict=True)}


class GraphProgram:
    """Plans for one batch size, captured once as a CUDA graph: a plan is one launch, and nothing waits for the host.

    Args:
        module: the planning step, on a CUDA device.
        inputs: of the batch size.
        noise: for them.

    Raises:
        ConfigError: if the planner copies something from or to the host while it plans.
    """

    def __init__(self, module: PlanModule, inputs: Tensors, noise: list[Tensor]) -> None:
        self._inputs, self._noise = inputs, noise
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs["state"].device):  # streams are those of the current device
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # kernels are chosen and loaded before the capture
                for _ in range(3):
                    module(inputs, noise)
            torch.cuda.current_stream().wait_stream(stream)
            try:
                with captured(self._graph, stream):
                    self._outputs = module(inputs, noise)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                raise ConfigError(
                    "This plan cannot be captured as a CUDA graph.",
                    got=str(error).split("\n")[0][:200],
                    fix="policy.backend=eager",
                ) from error

    def __call__(self, inputs: Tensors, noise: list[Tensor]) -> Tensors:
        for name, value in inputs.items():
            self._inputs[name].copy_(value)
        for buffer, value in zip(self._noise, noise, strict=True):
            buffer.copy_(value)
        self._graph.replay()
        return copies(self._outputs)


def copies(tensors: T) -> T:
    """Copies that nothing else writes into, and that were not made in inference mode."""
    with torch.inference_mode(False):
        result: T = tree_map(Tensor.clone, tensors)
        return result
