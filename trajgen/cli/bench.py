"""``trajgen bench``: how fast decisions, training and data are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    import torch

    from trajgen.config import Config
    from trajgen.export.backends import Backend

HELP = """trajgen bench decision|train|data [key=value …]

  trajgen bench decision recipe=mage --against dt    one plan and its action, by each way of running it
  trajgen bench train recipe=mage                    where the time of a training step goes, stage by stage
  trajgen bench data data=pointmaze/umaze-dwell      reading a data set, and making batches of it

  run=DIR                  decision: a trained run instead of recipe=…
  --against dt             decision: transformers' DecisionTransformerModel of the same width, layers and heads
  batch=[1,64]             decision and data: sizes that are timed
  backends=[eager,onnx]    decision: all that this machine has if not given; also cuda_graph
  repeats=200              steps or calls that are timed
  threads=2                of the CPU; as many as torch takes if not given
  out=FILE.json            the figures, with the machine and the date
  key=value                any option of 'trajgen train'

Times are in milliseconds: median, 95th percentile, and the distance between the quartiles (spread)."""


@dataclass
class Words:
    """What the words of a bench say."""

    overrides: list[str]
    run: str | None = None
    batch: tuple[int, ...] = (1, 64)
    backends: tuple[Backend, ...] | None = None
    repeats: int = 200
    threads: int | None = None
    out: Path | None = None
    against: str | None = None


def bench(words: list[str]) -> None:
    if not words or "--help" in words or "-h" in words:
        print(HELP)
        return
    kinds = {"decision": _decision, "train": _train, "data": _data}
    if words[0] not in kinds:
        raise ConfigError(
            "There are three benches.",
            expected=", ".join(kinds),
            got=f"trajgen bench {words[0]}",
            fix=nearest(words[0], kinds),
        )
    asked = read(words[1:])
    import torch

    from trajgen.bench.tables import check_out

    check_out(asked.out)
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    kinds[words[0]](asked, "trajgen bench " + " ".join(words))


def read(words: list[str]) -> Words:
    """The words of a bench; those that it does not know are options of the recipe.

    Raises:
        ConfigError: for a value that does not fit.
    """
    from trajgen.cli.words import key_values
    from trajgen.core.options import convert
    from trajgen.export.backends import Backend

    asked = Words([])
    plain = list(words)
    if "--against" in plain:
        place = plain.index("--against")
        asked.against = plain[place + 1] if place + 1 < len(plain) else ""
        del plain[place : place + 2]
        if asked.against != "dt":
            raise ConfigError(
                "Decisions are measured beside one other model.",
                expected="--against dt",
                got=f"--against {asked.against}",
                fix="--against dt",
            )
    types: dict[str, Any] = {"run": str, "batch": tuple[int, ...], "backends": tuple[Backend, ...], "repeats": int}
    types |= {"threads": int, "out": str}
    for word in plain:
        key = word.partition("=")[0]
        if key not in types:
            asked.overrides.append(word)
            continue
        value = convert(key_values([word])[key], types[key], key)
        setattr(asked, key, Path(value) if key == "out" else value)
    for key, least in (
        ("repeats", asked.repeats),
        ("threads", asked.threads or 1),
        ("batch", min(asked.batch, default=0)),
    ):
        if least < 1:
            raise ConfigError("Counts are at least 1.", expected="1 or more", got=f"{key}={least}", fix=f"{key}=1")
    return asked


def _decision(asked: Words, command: str) -> None:
    from rich.console import Console

    from trajgen.bench.decision import decision_transformer, decisions, random_conditions
    from trajgen.bench.floor import counted, measured
    from trajgen.bench.tables import TIMES, keep, show, times
    from trajgen.bench.timing import machine
    from trajgen.core.planning import plan_step

    planner, space, config, device = _planner(asked)
    backends = list(asked.backends or _backends(device))
    console = Console()
    with console.status("timing"):
        lines = list(decisions(planner, space, list(asked.batch), backends, asked.repeats))
        if asked.against:
            shape = _shape(config)
            lines += decision_transformer(space, *shape, device, list(asked.batch), asked.repeats)
        cond = random_conditions(space, 1, device)
        cost, rates = counted(lambda: plan_step(planner, cond)), measured(device)
    own = machine(device)
    reference = {line.batch: line.timing.median for line in lines if line.name.startswith("DT")}
    columns = ["decision", "batch", *TIMES, "decisions/s", *(["of DT's"] if reference else [])]
    rows = []
    for line in lines:
        rate = f"{1e3 * line.batch / line.timing.median:,.0f}"
        ratio = [f"{line.timing.median / reference[line.batch]:.2f}"] if reference else []
        rows.append([line.name, str(line.batch), *times(line.timing), rate, *ratio])
    show(console, f"{config.recipe}: one decision that plans", columns, rows, own)
    floor = cost.floor(rates)
    console.print(
        f"floor at batch 1: {floor:.2f} ms, from {cost.operations / 1e6:.0f} million operations at "
        f"{rates.operations / 1e9:.0f} a nanosecond and {cost.bytes / 1e6:.0f} MB of operands at "
        f"{rates.bytes / 1e9:.0f} GB/s; {cost.launches} operations are called one by one (eager)",
        highlight=False,
    )
    figures = [{"name": line.name, "batch": line.batch, **line.timing.to_dict()} for line in lines]
    extra = {"name": "floor", "batch": 1, "milliseconds": floor, "operations": cost.operations, "bytes": cost.bytes}
    keep(asked.out, command, own, [*figures, {**extra, "launches": cost.launches}])


def _train(asked: Words, command: str) -> None:
    from rich.console import Console

    from trajgen import experiments
    from trajgen.bench.tables import keep, show
    from trajgen.bench.timing import machine
    from trajgen.bench.training import PARTS, stages_timed

    config, device = _config(asked)
    console = Console()
    planner, source, _ = experiments.prepare(config, device, console)
    with console.status("timing"):
        timings = list(stages_timed(planner, source, config.engine, device, asked.repeats))
    own = machine(device)
    columns = ["stage", "batch", *PARTS, "step", "data %", "windows/s"]
    rows = [
        [
            one.name,
            str(one.batch),
            *(f"{one.parts[part].median:.3g}" for part in PARTS),
            f"{one.step:.3g}",
            f"{100 * one.share('data'):.1f}",
            f"{one.windows_per_second:,.0f}",
        ]
        for one in timings
    ]
    show(console, f"{config.recipe} on {config.data.id}: a training step, median ms", columns, rows, own)
    figures = [
        {"name": one.name, "batch": one.batch, "part": part, **one.parts[part].to_dict()}
        for one in timings
        for part in PARTS
    ]
    keep(asked.out, command, own, figures)


def _data(asked: Words, command: str) -> None:
    from rich.console import Console

    from trajgen.bench.data import data_timed
    from trajgen.bench.tables import TIMES, keep, show, times
    from trajgen.bench.timing import machine

    config, device = _config(asked)
    console = Console()
    with console.status("timing"):
        found = data_timed(config, list(asked.batch), asked.repeats, device)
    own = machine(device)
    rows = [
        [f"batch of {size}", *times(timing), f"{1e3 * size / timing.median:,.0f}"]
        for size, timing in found.batches.items()
    ]
    show(console, f"{config.data.id}: {found.steps:,} steps", ["windows", *TIMES, "windows/s"], rows, own)
    console.print(f"loaded in {found.seconds:.2f} s, {found.steps / found.seconds:,.0f} steps/s", highlight=False)
    figures = [{"name": "batch", "batch": size, **timing.to_dict()} for size, timing in found.batches.items()]
    keep(asked.out, command, own, [*figures, {"name": "load", "seconds": found.seconds, "steps": found.steps}])


def _config(asked: Words) -> tuple[Config, torch.device]:
    from trajgen import experiments
    from trajgen.config import compose
    from trajgen.engine.device import choose_device

    config = compose(asked.overrides)
    experiments.prepare_imports(config.imports)
    return config, choose_device(config.device)


def _planner(asked: Words) -> tuple[Any, Any, Config, torch.device]:
    """The planner of a run, or that of a recipe with fresh weights for a world of 4 states, 2 actions and 2 goals."""
    from trajgen import experiments
    from trajgen.core.types import Space
    from trajgen.experiments.run_folder import load_config

    if asked.run is not None:
        if asked.overrides:
            raise ConfigError(
                "A run is measured as it was trained.",
                expected="run=DIR alone",
                got=" ".join(asked.overrides),
                fix="leave out run=…, or the options",
            )
        policy = experiments.load_policy(asked.run)
        config, space = load_config(Path(asked.run))
        return policy.planner, space, config, policy.device
    config, device = _config(asked)
    space = Space(state_dim=4, action_dim=2, goal_dim=2)
    planner: Any = experiments.build_planner(config, space)
    return planner.eval().to(device), space, config, device


def _backends(device: torch.device) -> list[Backend]:
    from importlib.util import find_spec

    if device.type == "cuda":
        return ["eager", "cuda_graph"]
    return ["eager", "onnx"] if all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")) else ["eager"]


def _shape(config: Config) -> tuple[int, int, int]:
    """Width, layers and heads of the prior."""
    prior = config.components.get("prior", {})
    return int(prior.get("width", 128)), int(prior.get("depth", 4)), int(prior.get("heads", 4))
