"""From a module to a program that torch.export, ONNX Runtime and others can run."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import nn

from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.export.planning import Frozen


def traced(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The program (`torch.export.ExportedProgram`) of a module for inputs of these shapes.

    Raises:
        ConfigError: if what it does depends on values, takes gradients, or cannot be traced for another reason.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(Frozen(module).eval(), inputs, strict=False)
    except TrajgenError:
        raise
    except Exception as error:  # anything that the traced code, which may be a person's own, does
        raise ConfigError(
            "A plan that becomes a program is a function of tensors alone.",
            expected="no gradients while planning, no step that depends on a value",
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}",
            fix="policy.backend=eager; where the sampler is guided by a gradient, sampler.value_scale=0",
        ) from error


def to_onnx(program: Any, inputs: list[str], outputs: list[str]) -> bytes:
    """A program as an ONNX model.

    Args:
        program: as `traced` gives it.
        inputs, outputs: names for them, in order.

    Raises:
        ConfigError: if the packages are missing, or ONNX has no operator for something.
    """
    require_packages("onnx", "onnxscript")
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, dynamo=True, optimize=True, verbose=False, input_names=inputs, output_names=outputs
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ConfigError(
            "A program for ONNX Runtime uses the operators that ONNX has.",
            expected="a composition that torch.onnx can translate",
            got=str(error).strip().splitlines()[0][:200],
            fix="format=torch_export, or policy.backend=eager",
        ) from error
    finally:
        quiet.setLevel(level)
    if made is None:
        raise ConfigError("torch.onnx gave no model.", fix="format=torch_export, or policy.backend=eager")
    data: bytes = made.model_proto.SerializeToString()
    return data


def require_packages(*names: str) -> None:
    """Raises a `ConfigError` if a package that is not always installed is missing."""
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(
            "Programs for ONNX Runtime need packages that are not installed.",
            expected=", ".join(names),
            got=f"no {', '.join(missing)}",
            fix="pip install 'trajgen[onnx]', or do without: policy.backend=eager, and format=torch_export to export",
        )
