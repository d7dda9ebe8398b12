"""A CUDA device simulated on the CPU: what CUDA refuses is refused, and what the host waits for is recorded.

Tensors have their values on the CPU; the storage of each carries the device that it is said to lie on. A CUDA graph
keeps the operations of its capture and repeats them on replay, so that what Python computed during the capture stays as
it was then, as on a GPU. Operations run at once, so that races between streams are not seen.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from modes import Autocast, Functions, Operations
from placement import HOST, canonical, device_of, pinned, put_on, tensors_in, where
from torch import Tensor

READS = [
    "_local_scalar_dense",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
]
"""Operations whose result the host waits for."""
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
"""Operations that take a host's tensors as indices or value, and copy them."""


class Generator(torch.Generator):
    """A generator on the CPU that is said to lie on a device."""

    simulated: torch.device

    def __new__(cls, device: Any = HOST) -> Generator:
        generator = super().__new__(cls, HOST)
        generator.simulated = canonical(device)
        return generator

    @property
    def device(self) -> torch.device:
        return self.simulated


class Graph:
    """A CUDA graph: the operations of its capture, in order, with the tensors that they read and wrote."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.generators: list[Any] = []

    def register_generator_state(self, generator: Any) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        simulation = SimulatedCuda.current
        assert simulation is not None
        simulation.launches["replay"] += 1
        with simulation.paused(), torch.no_grad():
            for func, args, kwargs, results in self.operations:
                for old, new in zip(results, tensors_in(func(*args, **kwargs)), strict=True):
                    if old is not new:
                        old.copy_(new)

    def reset(self) -> None:
        self.operations.clear()

    def pool(self) -> tuple[int, int]:
        return (0, 0)


class Event:
    """An event of `torch.cuda`; counts on which device it was recorded."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        simulation = SimulatedCuda.current
        assert simulation is not None
        simulation.events[simulation.index if stream is None else stream.device.index] += 1

    def synchronize(self) -> None:
        assert SimulatedCuda.current is not None
        SimulatedCuda.current.wait("Event.synchronize")

    def wait(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Event) -> float:
        return 1.0


class Stream:
    """A stream of `torch.cuda`; operations run at once on any of them."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.device = canonical("cuda" if device is None else device)

    def wait_stream(self, _: Stream) -> None:
        pass

    wait_event = record_event = wait_stream

    def is_capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def synchronize(self) -> None:
        assert SimulatedCuda.current is not None
        SimulatedCuda.current.wait("Stream.synchronize")


class SimulatedCuda:
    """A context in which torch finds CUDA devices.

    Args:
        devices: how many.
        memory: free bytes of each.

    Attributes:
        waits: what the host waited for the device for, by place in the code; also copies that block it.
        launches: operations on the device by name; the operations of a graph are one, ``replay``.
        events, captures: by number of the device, how many were recorded.
    """

    current: SimulatedCuda | None = None

    def __init__(self, devices: int = 1, memory: int = 2**40) -> None:
        self.devices, self.memory, self.index = devices, memory, 0
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.events: Counter[int] = Counter()
        self.captures: Counter[int] = Counter()
        self.debug = "default"
        self._target: torch.device | None = None  # of a copy that Tensor.to makes
        self._graph: Graph | None = None
        self._stream: Stream | None = None  # torch's own for captures, which it makes once for the process
        self._is_spoilt = False  # the capture, by an operation that is not permitted
        self._captured = HOST  # the device on whose stream operations are captured
        self._before: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> SimulatedCuda:
        self._stack = ExitStack()
        self._stack.enter_context(patch.multiple(torch.cuda, **self._replacements()))
        self._stack.enter_context(patch.object(torch, "Generator", Generator))
        self._stack.enter_context(patch.object(Tensor, "pin_memory", pinned))  # in all threads
        self._stack.enter_context(patch.object(SimulatedCuda, "current", self))
        self._stack.enter_context(patch.object(torch, "autocast", Autocast))
        self._stack.enter_context(patch.object(torch.accelerator, "current_stream", Stream))
        self._stack.enter_context(patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped))
        self._stack.enter_context(Functions(self))
        self._stack.enter_context(Operations(self))
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Operations within it are the host's own."""
        with torch._C._DisableTorchDispatch():
            yield

    def wait(self, what: str) -> None:
        """Notes that the host waits; refuses it during a capture, as CUDA does."""
        place = where()
        if self._graph is not None:
            self._is_spoilt = True
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {what} at {place}")
        self.waits[f"{what} at {place}"] += 1
        if self.debug == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation: {what} at {place}")
        if self.debug == "warn":
            warnings.warn(f"called a synchronizing CUDA operation: {what} at {place}", stacklevel=2)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operation on its device."""
        kwargs, name = dict(kwargs or {}), func._schema.name.removeprefix("aten::")
        inputs = tensors_in((args, kwargs))
        places = [device_of(tensor) for tensor in inputs]
        on_cuda = next((place for place in places if place.type == "cuda"), HOST)
        wanted = canonical(kwargs.get("device"))
        target = self._target or (wanted if wanted is not None and wanted.type == "cuda" else on_cuda)
        if wanted is not None and wanted.type == "cuda":
            kwargs["device"] = HOST
        if target.type == "cuda" or on_cuda.type == "cuda":
            self._check(name, args, kwargs, inputs, places, target)
        graph = self._graph if target in (HOST, self._captured) else None  # what else runs is on no captured stream
        if graph is not None:
            self._keep(func, args, kwargs)
        result = func(*args, **kwargs)
        inputs_storage = {tensor.untyped_storage()._cdata for tensor in inputs} if name != "_to_copy" else set()
        if target.type == "cuda":
            for leaf in tensors_in(result):
                if leaf.untyped_storage()._cdata not in inputs_storage:
                    put_on(leaf, target)
        if target.type == "cuda" and not func.is_view:
            if graph is None:
                self.launches[name] += 1
            else:
                graph.operations.append((func, args, kwargs, tensors_in(result)))
        return result

    def _check(
        self, name: str, args: Any, kwargs: Any, inputs: list[Tensor], places: list[torch.device], target: torch.device
    ) -> None:
        """Refuses mixed devices, and notes what the host waits for."""
        if name in ("_to_copy", "copy_"):
            other = places[0] if name == "_to_copy" else places[1]
            here = target if name == "_to_copy" else places[0]
            if HOST in (here, other) and here != other:
                pinned = all(getattr(t.untyped_storage(), "pinned", False) for t in inputs if device_of(t) == HOST)
                non_blocking = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
                if not (non_blocking and (pinned or here == HOST)):
                    self.wait(f"{name} {'to' if here == HOST else 'from'} the host {tuple(inputs[-1].shape)}")
            return
        if name in INDEXED:
            scalar = name.startswith("index_put") and inputs[-1].ndim == 0
            if any(i.dtype == torch.bool and not scalar for i in inputs[1 : len(inputs) - name.count("put")]):
                self.wait(f"{name} by a mask")
            is_mask = any(i.dtype == torch.bool for i in inputs[1:])
            if HOST in places[1 : None if not (scalar and is_mask) else -1]:
                self.wait(f"{name} by a host's tensor")
            return
        if name in READS:
            self.wait(name)
        cuda = {place for place in places if place != HOST}
        mixed = len(cuda) > 1 or any(p == HOST and t.ndim for p, t in zip(places, inputs, strict=True))
        if cuda and mixed:
            listing = ", ".join(f"{p} {tuple(t.shape)}" for p, t in zip(places, inputs, strict=True))
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {listing} at {where()}")
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator) and generator.device != target:
            raise RuntimeError(f"Expected a generator on {target} but found {generator.device}: {name} at {where()}")

    # --- graphs -----------------------------------------------------------------------------------------------------

    @contextmanager
    def capture(self, graph: Graph, *, stream: Stream | None = None, **_: Any) -> Iterator[None]:
        """Keeps the operations within it; what they change is as before at its end, since a capture runs nothing.

        Operations on another device than that of the stream are not captured; they run at once.
        """
        if stream is None:
            stream = self._stream = self._stream or Stream()
        self._graph, self._captured, self._before = graph, stream.device, []
        self.captures[stream.device.index] += 1
        state = torch.default_generator.get_state()
        generators = [(generator, generator.get_state()) for generator in graph.generators]
        try:
            yield
        finally:
            self._graph = None
            with self.paused(), torch.no_grad():
                for tensor, value in reversed(self._before):
                    tensor.copy_(value)
            torch.default_generator.set_state(state)
            for generator, before in generators:
                generator.set_state(before)
            is_spoilt, self._is_spoilt = self._is_spoilt, False
            if is_spoilt:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def _keep(self, func: Any, args: Any, kwargs: Any) -> None:
        """Copies what an operation of a capture is about to change."""
        assert self._graph is not None
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator) and generator not in self._graph.generators:
            raise RuntimeError(f"A generator must be registered with the graph: {func} at {where()}")
        named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        with self.paused(), torch.no_grad():
            for leaf in tensors_in([named.get(name) for name in written]):
                self._before.append((leaf.detach(), leaf.detach().clone()))

    def _replacements(self) -> dict[str, Any]:
        """What stands in for the functions of `torch.cuda`."""

        def set_device(device: Any) -> None:
            index = device if isinstance(device, int) else torch.device(device).index
            if index is None:
                raise ValueError(f"Expected a torch.device with a specified index or an integer, but got: {device}")
            if not 0 <= index < self.devices:
                raise RuntimeError("CUDA error: invalid device ordinal")
            self.index = index

        def set_sync_debug_mode(mode: str) -> None:
            if mode != "default":
                warnings.warn("Synchronization debug mode is a prototype feature.", stacklevel=2)
            self.debug = mode

        @contextmanager
        def device(which: Any) -> Iterator[None]:
            before = self.index
            set_device(self.index if torch.device(which).index is None else which)
            try:
                yield
            finally:
                self.index = before

        return {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: self.devices,
            "current_device": lambda: self.index,
            "set_device": set_device,
            "device": device,
            "is_bf16_supported": lambda *_, **__: True,
            "get_device_name": lambda which=None: f"Simulated {canonical('cuda' if which is None else which).index}",
            "get_device_capability": lambda _=None: (9, 0),
            "mem_get_info": lambda _=None: (self.memory, self.memory),
            "set_sync_debug_mode": set_sync_debug_mode,
            "synchronize": lambda _=None: self.wait("synchronize"),
            "manual_seed_all": lambda _: None,
            "is_current_stream_capturing": lambda: self._graph is not None,
            "Event": Event,
            "Stream": Stream,
            "stream": lambda _: nullcontext(),
            "current_stream": Stream,
            "CUDAGraph": Graph,
            "graph": self.capture,
        }


_group = torch._C._group_tensors_by_device_and_dtype


def _grouped(lists: list[list[Tensor]], *args: Any) -> dict[Any, Any]:
    """Groups of tensors by device, of which there is one, and type."""
    device = next((device_of(tensor) for tensor in tensors_in(lists)), HOST)
    return {(device, dtype): group for (_, dtype), group in _group(lists, *args).items()}
