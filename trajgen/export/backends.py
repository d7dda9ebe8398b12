"""Ways to run a plan: as it is written, by ONNX Runtime, or as a CUDA graph; the same noise gives the same plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from trajgen.core.errors import ConfigError
from trajgen.export.noise import Draw
from trajgen.export.planning import Planning, Tensors, draws_of
from trajgen.export.trace import require_packages, to_onnx, traced

Backend = Literal["eager", "onnx", "cuda_graph"]
Plans = Callable[[Tensors, Generator | None], Tensors]
"""From the tensors of conditions to those of plans; see `trajgen.export.planning.Planning`."""
Program = Callable[[Tensors, list[Tensor]], Tensors]
"""The same with the noise given, for one batch size."""
T = TypeVar("T", Tensors, list[Tensor])

LARGEST = 256
"""Plans that are made at once; more are made in turn."""


def plans_by(backend: Backend, planner: Any) -> Plans:
    """What makes plans in this way.

    Args:
        backend: ``eager`` runs the planner as it is written, ``onnx`` by ONNX Runtime on the CPU, ``cuda_graph`` as one
            launch on a CUDA device. The latter two prepare a program for each batch size, rounded up to a power of two,
            when it is first met: for ``onnx`` that takes seconds.
        planner: satisfies `trajgen.core.protocols.Planner`.

    Raises:
        ConfigError: if the packages or the device for it are missing.
    """
    planning = Planning(planner).eval()
    device = next(planner.parameters()).device.type
    if backend == "eager":
        return planning.draw
    if backend == "onnx":
        require_packages("onnx", "onnxscript", "onnxruntime")
    needed = {"onnx": "cpu", "cuda_graph": "cuda"}[backend]
    if device != needed:
        raise ConfigError(
            "Each backend has its own kind of device.",
            expected=f"device={needed} for policy.backend={backend}",
            got=f"a model on {device}",
            fix=f"device={needed}, or policy.backend=eager",
        )
    return Programs(planning, OnnxProgram if backend == "onnx" else GraphProgram)


class Programs:
    """Makes plans for any number of conditions by programs for few sizes.

    Rows that fill up a batch repeat its last, and nothing is drawn for them: the plans are those of `Planning`.

    Args:
        planning: the planner.
        prepare: from it, conditions and noise of a size to a program for that size.
    """

    def __init__(self, planning: Planning, prepare: Callable[[Planning, Tensors, list[Tensor]], Program]) -> None:
        self._planning, self._prepare = planning, prepare
        self._programs: dict[int, Program] = {}
        self._draws: dict[int, list[Draw]] = {}

    def __call__(self, known: Tensors, rng: Generator | None) -> Tensors:
        batch = len(known["state"])
        if batch > LARGEST:
            parts = [self({k: v[i : i + LARGEST] for k, v in known.items()}, rng) for i in range(0, batch, LARGEST)]
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if batch not in self._draws:
            self._draws[batch] = draws_of(self._planning, known)
        size = 1 << (batch - 1).bit_length()
        noise = [filled(draw.sample(rng, known["state"].device), batch, size) for draw in self._draws[batch]]
        known = {name: filled(value, batch, size) for name, value in known.items()}
        if size not in self._programs:
            self._programs[size] = self._prepare(self._planning, copied(known), copied(noise))
        made = self._programs[size](known, noise)
        return {name: value[:batch] for name, value in made.items()}


def filled(values: Tensor, batch: int, size: int) -> Tensor:
    """Values (B·m, …) of a batch of B with the last repeated for ``size`` of them, (size·m, …)."""
    missing = len(values) // batch * (size - batch)
    return torch.cat([values, values[-1:].expand(missing, *values.shape[1:])]) if missing else values


class OnnxProgram:
    """Plans for one batch size, by ONNX Runtime on as many threads as torch has.

    Args:
        planning: the planner.
        known: conditions of the size.
        noise: for them.
    """

    def __init__(self, planning: Planning, known: Tensors, noise: list[Tensor]) -> None:
        import onnxruntime

        self._outputs = list(planning.draw(known))
        self._inputs = [*known, *(f"noise_{number}" for number in range(len(noise)))]
        model = to_onnx(traced(planning, (known, noise)), self._inputs, self._outputs)
        self._session = session(onnxruntime, model, torch.get_num_threads())
        self._used = {given.name for given in self._session.get_inputs()}  # a constant target looks at nothing

    def __call__(self, known: Tensors, noise: list[Tensor]) -> Tensors:
        values = zip(self._inputs, [*known.values(), *noise], strict=True)
        feed = {name: value.numpy() for name, value in values if name in self._used}
        made = self._session.run(self._outputs, feed)
        return {name: torch.from_numpy(value) for name, value in zip(self._outputs, made, strict=True)}


class GraphProgram:
    """Plans for one batch size, captured once as a CUDA graph: a plan is one launch, and nothing waits for the host.

    Args:
        planning: the planner, on a CUDA device.
        known: conditions of the size.
        noise: for them.
    """

    def __init__(self, planning: Planning, known: Tensors, noise: list[Tensor]) -> None:
        self._known, self._noise = known, noise
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are chosen and loaded before the capture, not in it
            for _ in range(3):
                planning(known, noise)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._made = planning(known, noise)

    def __call__(self, known: Tensors, noise: list[Tensor]) -> Tensors:
        for name, value in known.items():
            self._known[name].copy_(value)
        for own, value in zip(self._noise, noise, strict=True):
            own.copy_(value)
        self._graph.replay()
        return copied(self._made)


def copied(tensors: T) -> T:
    """Copies that nothing else writes into, and that were not made in inference mode."""
    with torch.inference_mode(False):
        copies: T = tree_map(Tensor.clone, tensors)
        return copies


def session(onnxruntime: Any, model: bytes, threads: int) -> Any:
    """A session of ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
