"""Training that starts from the weights of another run, and of a part of the planner alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.assemble import all_stages
from trajgen.config.schema import Config, LoraOptions
from trajgen.core.errors import CheckpointError, ConfigError, nearest
from trajgen.core.files import read_json
from trajgen.core.options import entry
from trajgen.core.planning import subgoal_of
from trajgen.core.stages import ParameterGroup, Stage
from trajgen.core.types import Space
from trajgen.experiments.zoo import init_folder, local_folder

if TYPE_CHECKING:
    from torch import nn

LORA = "lora"
"""What ``train_only`` calls the low-rank adapters."""
RETURN_TARGET = "return_target"
"""The part that asks for returns."""
SUBGOAL = "subgoal"
"""The part that is built from the data, not trained in a stage: with it alone in ``train_only``, no stage runs."""


def checkpoint_of(run: str) -> Path:
    """The checkpoint of the run from which a training starts.

    Raises:
        CheckpointError: if the folder has none.
    """
    from trajgen.engine.checkpoint import Checkpoints

    return Checkpoints(init_folder(run) / "checkpoints").newest()


def start_from(planner: nn.Module, run: str, train_only: Sequence[str] = ()) -> str:
    """Takes the weights of a run that fit by name and shape, the normalizer among them; returns what was taken.

    Args:
        planner: takes the weights; what does not fit keeps its own.
        run: the folder; its weights alone are read.
        train_only: the parts that will be trained; all if there are none.

    Raises:
        CheckpointError: if the checkpoint cannot be read, or nothing but the normalizer fits.
        ConfigError: if something that does not fit would not be trained.
    """
    from trajgen.engine.checkpoint import read_weights
    from trajgen.nn.low_rank import ADAPTED, merged_weights, plain_name

    path = checkpoint_of(run)
    stored = {name: value for name, value in merged_weights(read_weights(path)).items() if not is_below(name, SUBGOAL)}
    state = {plain_name(name): value for name, value in planner.state_dict().items()}
    state = {name: value for name, value in state.items() if ADAPTED not in name and not is_below(name, SUBGOAL)}
    fitting = {name for name, value in state.items() if name in stored and stored[name].shape == value.shape}
    if all(name.startswith("normalizer.") for name in fitting):
        raise CheckpointError(
            "No weight of the run fits this planner.", got=f"init={run}", fix="the recipe and options of that run"
        )
    if train_only:
        _require_trained(planner, set(state) - fitting, train_only, run)
    for name in fitting:
        state[name].copy_(stored[name])
    text = f"Starts from {path}: {len(fitting)} of {len(state)} tensors"
    if fresh := outermost(set(state) - fitting, fitting):
        text += f"; fresh, since they are not there or of another shape: {', '.join(fresh)}"
    unused = outermost(set(stored) - set(state), set(state))
    return text + (f"; not used: {', '.join(unused)}" if unused else "")


def _require_trained(planner: nn.Module, fresh: set[str], train_only: Sequence[str], run: str) -> None:
    """Raises a `ConfigError` if fresh weights or codes, which a stage would train, lie outside of ``train_only``."""
    from trajgen.nn.low_rank import ADAPTED, plain_name

    trained = {id(p) for stage in all_stages(planner) for p in stage.trained}
    names = {plain_name(name) for name, p in planner.named_parameters() if id(p) in trained}
    weights = {name for name in names if ADAPTED not in name}
    codes = {  # which no optimizer trains
        f"{module}.{name}"
        for module, part in planner.named_modules()
        if hasattr(part, "codebook")
        for name, buffer in part.named_buffers()
        if buffer.is_floating_point()
    }
    untrained = {n for n in fresh & (weights | codes) if not any(is_below(n, part) for part in train_only)}
    if not untrained:
        return

    def trained_part(part: str) -> str:
        """The part, or that around a codebook which has weights."""
        return next((p for p in reversed(_with_modules(part)) if any(is_below(name, p) for name in weights)), part)

    parts = outermost(untrained, (weights | codes) - untrained)
    further = dict.fromkeys(map(trained_part, parts))
    raise ConfigError(
        "train_only leaves out what the run has not in this shape, which would stay untrained.",
        got=f"{', '.join(parts)} with train_only={','.join(train_only)} and init={run}",
        fix=f"'train_only=[{','.join((*train_only, *further))}]', or the options of that run",
    )


def outermost(names: set[str], others: set[str]) -> list[str]:
    """The fewest modules or tensors below which all of ``names`` lie and none of ``others``."""
    above_others = {path for name in others for path in _with_modules(name)}
    return list(dict.fromkeys(next(p for p in _with_modules(n) if p not in above_others) for n in sorted(names)))


def _with_modules(name: str) -> list[str]:
    """The modules in which a tensor lies, the outermost first, and the tensor."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def require_same_offsets(run: str, space: Space) -> None:
    """Raises a `ConfigError` if the data of a run were centered by other offsets, which its weights are used to."""
    stored = read_json(local_folder(run) / "config.json").get("space")
    for name in ("state_offset", "goal_offset"):
        offset = list(stored.get(name) or ()) if isinstance(stored, dict) else []
        if offset != list(getattr(space, name)):
            raise ConfigError(
                "The data have other large offsets than those of the run, which are subtracted from them.",
                expected=f"{name}: {offset}",
                got=list(getattr(space, name)),
                fix="leave init out, or subtract the same offset from both data sets",
            )


def require_same_windows(config: Config, planner: Any) -> None:
    """Raises a `ConfigError` if the run of ``config.init`` read its data otherwise than what is kept of it allows.

    The mean and scale of its normalizer are those of returns to its power. Its return target asks for returns of its
    discount, and plans with points as far apart as its own: both are free where that is trained anew.

    Args:
        config: of the training.
        planner: to be trained.
    """
    stored, present = read_json(local_folder(str(config.init)) / "config.json"), config.to_plain()
    target = {name: id(p) for name, p in planner.named_parameters() if RETURN_TARGET in name.split(".")}
    trained = {id(parameter) for stage in stages_of(planner, config.train_only) for parameter in stage.trained}
    rules = {"return_power": ("The run normalizes the returns to another power.", "")}
    if target and trained.isdisjoint(target.values()):
        part = next(iter(target)).partition(RETURN_TARGET)[0] + RETURN_TARGET
        anew = f", or train the return target too: 'train_only=[{','.join((*config.train_only, part))}]'"
        rules["discount"] = ("train_only keeps the return target of the run, of returns with another discount.", anew)
        rules["stride"] = ("train_only keeps the return target of the run, of plans with another stride.", anew)
    for name, (rule, anew) in rules.items():
        value = entry(stored, ("data", name))
        if value not in (None, present["data"][name]):
            raise ConfigError(
                rule,
                got=f"data.{name}={present['data'][name]} with init={config.init}",
                fix=f"data.{name}={value}".replace(" ", "") + anew,
            )


def add_lora(planner: nn.Module, config: Config) -> None:
    """Adds the low-rank adapters of a configuration, if it has some, to a planner.

    Raises:
        ConfigError: if the planner has no such part, or there is no linear layer in it; or if there are options of
            adapters without them.
    """
    from trajgen.nn.low_rank import adaptable, add_adapters

    if LORA not in config.train_only:
        if config.lora != LoraOptions():
            raise ConfigError(
                "Adapters are added where train_only names them.", got="options of lora", fix="train_only=[lora]"
            )
        return
    modules = dict(planner.named_modules())
    for name in config.lora.modules:
        if name not in modules or not add_adapters(modules[name], config.lora.rank):
            parts = [name for name, part in planner.named_children() if adaptable(part)]
            raise ConfigError(
                "lora.modules names parts of the planner with linear layers.",
                expected=", ".join(parts),
                got=f"lora.modules={name}",
                fix=nearest(name, parts),
            )


def trained_weights(planner: Any, train_only: Sequence[str]) -> tuple[int, int]:
    """How many weights are trained, and how many there are."""
    trained = {id(p): p.numel() for stage in stages_of(planner, train_only) for p in stage.trained}
    return sum(trained.values()), sum(p.numel() for p in planner.parameters())


def stages_of(planner: Any, train_only: Sequence[str]) -> list[Stage]:
    """The stages of a planner, of which only the parameters below these modules are trained; all if none is named.

    The other modules stay in evaluation mode, in which a codebook collects no vectors and none moves.

    Args:
        planner: satisfies `trajgen.core.planning.Planner`.
        train_only: modules or parameters by their path in the planner: ``prior``, ``prior.blocks.3``; ``lora`` for all
            low-rank adapters.

    Raises:
        ConfigError: if a name is that of no parameter that a stage trains.
    """
    stages: list[Stage] = all_stages(planner)
    if not train_only:
        return stages
    from trajgen.nn.low_rank import LowRank, adapter_parameters, plain_name

    names = {id(parameter): plain_name(name) for name, parameter in planner.named_parameters()}
    names |= {id(parameter): LORA for parameter in adapter_parameters(planner)}
    trained = [names[id(parameter)] for stage in stages for parameter in stage.trained]
    trained += [SUBGOAL] if subgoal_of(planner) is not None else []
    for part in train_only:
        if not any(is_below(name, part) for name in trained):
            modules = list(dict.fromkeys([*(name.partition(".")[0] for name in trained), LORA]))
            raise ConfigError(
                f"train_only names a part of the planner that is trained; '{part}' is none.",
                expected=", ".join(modules),
                got=f"train_only={part}",
                fix=nearest(part, modules),
            )

    submodules = dict(planner.named_modules())
    parts = [*train_only, *(name for name, m in submodules.items() if LORA in train_only and isinstance(m, LowRank))]
    frozen = [
        module
        for name, module in submodules.items()  # what has no state, as a dropout, belongs to what is around it
        if name and not any(is_below(name, part) or is_below(part, name) for part in parts) and module.state_dict()
    ]

    def restricted(stage: Stage) -> Stage:
        groups = [
            ParameterGroup(
                [p for p in group.parameters if any(is_below(names[id(p)], part) for part in train_only)],
                group.lr_scale,
            )
            for group in stage.groups
        ]
        return replace(
            stage, parameters=[group for group in groups if group.parameters], frozen=[*stage.frozen, *frozen]
        )

    return [restricted(stage) for stage in stages]


def is_below(name: str, part: str) -> bool:
    """Whether a parameter's name is ``part``, or that of a parameter of the module ``part``."""
    return name == part or name.startswith(f"{part}.")
