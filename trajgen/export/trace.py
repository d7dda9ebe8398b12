"""From a module to a program that torch.export, ONNX Runtime and others can run."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import nn

from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.export.plan_module import FrozenModule


def traced(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The program (`torch.export.ExportedProgram`) of a module for inputs of these shapes.

    Raises:
        ConfigError: if what it does depends on values, takes gradients, or cannot be traced for another reason.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(FrozenModule(module).eval(), inputs, strict=False)
    except TrajgenError:
        raise
    except Exception as error:  # anything that the traced code, which may be a person's own, does
        raise not_traced(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}") from error


def not_traced(reason: str) -> ConfigError:
    """What says that a plan cannot become a program, for this reason."""
    return ConfigError(
        "A compiled or exported plan takes no gradients, and no step of it depends on a value.",
        got=reason,
        fix="policy.backend=eager; where the sampler is guided by a gradient, sampler.value_scale=0 or "
        "sampler.critic_guidance=0",
    )


def to_onnx(program: Any, inputs: list[str], outputs: list[str]) -> bytes:
    """A program as an ONNX model.

    Args:
        program: as `traced` gives it.
        inputs, outputs: names for them, in order.

    Raises:
        ConfigError: if the packages are missing, or ONNX has no operator for something.
    """
    require_packages("onnx", "onnxscript")
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program, dynamo=True, optimize=True, verbose=False, input_names=inputs, output_names=outputs
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ConfigError(
            "torch.onnx cannot translate this composition.",
            got=str(error).strip().splitlines()[0][:200],
            fix="format=torch_export, or policy.backend=eager",
        ) from error
    finally:
        logger.setLevel(level)
    if exported is None:
        raise ConfigError("torch.onnx gave no model.", fix="format=torch_export, or policy.backend=eager")
    data: bytes = exported.model_proto.SerializeToString()
    return data


def require_packages(*names: str) -> None:
    """Raises a `ConfigError` if a package that is not always installed is missing."""
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX needs packages that are not installed: {', '.join(missing)}.",
            fix="pip install 'trajgen[onnx]', or do without: policy.backend=eager, and format=torch_export to export",
        )
