"""What stands between torch and the operations of a simulated CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from placement import HOST, canonical, device_of, where
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

COMPOSITE = "CompositeImplicitAutograd"


class Operations(TorchDispatchMode):
    """Runs each operation on the device of its tensors."""

    def __init__(self, simulation: Any) -> None:
        super().__init__()
        self.simulation = simulation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled() and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
            with self:  # in inference mode, operations that consist of others come here too
                return func._op_dk(getattr(torch._C.DispatchKey, COMPOSITE), *args, **(kwargs or {}))
        return self.simulation.run(func, args, kwargs)


class Functions(TorchFunctionMode):
    """What does not reach the operations: where a tensor lies, how it is moved, and reading it as numpy or a list."""

    def __init__(self, simulation: Any) -> None:
        super().__init__()
        self.simulation = simulation

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") == "__get__" and isinstance(args[0], Tensor):
            attribute = getattr(getattr(func, "__self__", None), "__name__", "")
            if attribute == "device":
                return device_of(args[0])
            if attribute in ("is_cuda", "is_cpu"):
                return device_of(args[0]).type == attribute.removeprefix("is_")
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, *args, **kwargs)
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__) and device_of(args[0]) != HOST:
            if func is not Tensor.tolist:
                raise TypeError(f"can't convert {device_of(args[0])} device type tensor to numpy at {where()}")
            self.simulation.wait("tolist")
        if kwargs.get("device") is not None:
            kwargs["device"] = canonical(kwargs["device"])
            if func in (torch.tensor, torch.as_tensor, torch.asarray):
                device = kwargs.pop("device")
                return self._moved(Tensor.to, func(*args, **kwargs), device)
        return func(*args, **kwargs)

    def _moved(self, func: Any, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        if func is not Tensor.to:
            requested = kwargs.pop("device", args[0] if args else None)
            args = ("cpu" if func is Tensor.cpu else requested or "cuda", *args[1:])
        if args and isinstance(args[0], Tensor):
            args = (device_of(args[0]), args[0].dtype, *args[1:])
        copy = copy or bool(kwargs.pop("copy", False))
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        device = device_of(tensor) if device is None else canonical(device)
        dtype = dtype or tensor.dtype
        if (device, dtype) == (device_of(tensor), tensor.dtype) and not copy:
            return tensor
        self.simulation._target = device
        try:
            moved: Tensor = torch.ops.aten._to_copy(tensor, dtype=dtype, non_blocking=non_blocking)
            return moved
        finally:
            self.simulation._target = None


class Autocast(torch.autocast):
    """Autocasting on the CPU for both devices."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)
