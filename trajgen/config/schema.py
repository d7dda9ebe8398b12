"""A typed configuration: the sections of options, and the components as nodes with a name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from trajgen.core.checks import check_device, check_range
from trajgen.core.options import refuse_unknown, structure, unknown_option
from trajgen.core.registry import KINDS, complete
from trajgen.core.renamed import new_name
from trajgen.data.options import DataOptions
from trajgen.engine.options import EngineOptions
from trajgen.evaluation.evaluate import EvaluationOptions
from trajgen.policies.options import PolicyOptions


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Low-rank adapters (LoRA, arXiv 2106.09685), which ``train_only=[lora]`` adds to linear layers and trains.

    Raises:
        ConfigError: for a rank below 1.
    """

    rank: int = 4
    """Rank of the update of a weight."""
    modules: tuple[str, ...] = ("prior", "action")
    """Parts of the planner whose linear layers get adapters."""

    def __post_init__(self) -> None:
        check_range("lora.rank", self.rank, 1, usual=4)


SECTIONS: dict[str, Any] = {
    "data": DataOptions,
    "policy": PolicyOptions,
    "engine": EngineOptions,
    "evaluation": EvaluationOptions,
    "lora": LoraOptions,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run depends on."""

    recipe: str
    data: DataOptions
    components: dict[str, dict[str, Any]] = field(default_factory=dict)
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    imports: tuple[str, ...] = ()
    task_options: bool = True
    init: str | None = None
    train_only: tuple[str, ...] = ()
    lora: LoraOptions = field(default_factory=LoraOptions)
    seed: int = 0
    device: str = "auto"
    run_dir: str | None = None
    resume: bool = False

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Config:
        """Checks plain values, each component node against its signature.

        Raises:
            ConfigError: for a key, name or type that is wrong.
        """
        refuse_unknown(plain, TOP, "")
        components = {kind: complete(kind, plain[kind]) for kind in KINDS if plain.get(kind)}
        values = {k: v for k, v in plain.items() if k not in KINDS}
        config = structure(cls, values, "")
        check_range("seed", config.seed, 0, 2**63 - 1, usual=0)
        check_device(config.device)
        for name in (f"engine.stages.{stage}" for stage in config.engine.stages):
            if new_name(name):
                raise unknown_option(name, ())
        return replace(config, components=components)

    def to_plain(self) -> dict[str, Any]:
        """The configuration as plain values, components at the top level; `from_plain` reads it back."""
        values = asdict(self)
        components = values.pop("components")
        plain: dict[str, Any] = json.loads(json.dumps(values | components))
        return plain

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same training: all but where it lies, where it runs, and how it is evaluated."""
        aside = ("run_dir", "resume", "device", "evaluation", "policy")
        plain = {k: v for k, v in self.to_plain().items() if k not in aside}
        plain["engine"] = {k: v for k, v in plain["engine"].items() if k not in ("accumulate", "cuda_graph", "log")}
        return plain


TOP = (*(f.name for f in fields(Config) if f.name != "components"), *KINDS)
"""The keys at the top of a configuration."""


def merged(plain: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with changes laid over them; a component of another name replaces the old one whole."""
    result = dict(plain)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = merged(old, value) if value.get("name", old.get("name")) == old.get("name") else value
        result[key] = value
    return result


def defaults(cls: Any) -> dict[str, Any]:
    """The defaults of an options dataclass, as plain values; what has none is left out."""
    plain = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
    plain |= {f.name: f.default_factory() for f in fields(cls) if f.default_factory is not MISSING}
    return {key: defaults(type(value)) if is_dataclass(value) else value for key, value in plain.items()}
