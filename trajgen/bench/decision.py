"""How long a decision takes, by each backend and batch size, and beside a Decision Transformer of the same size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from trajgen import experiments
from trajgen.bench.request import BenchRequest
from trajgen.bench.roofline import count_cost, measure_rates
from trajgen.bench.timing import TIMES, Timing, timed
from trajgen.core.errors import ConfigError
from trajgen.core.planning import PlanFn, plan_step
from trajgen.core.tables import Table
from trajgen.core.types import Cond, Space
from trajgen.experiments.run_folder import load_config
from trajgen.experiments.zoo import local_folder
from trajgen.export.backends import Backend, plan_fn

if TYPE_CHECKING:
    from rich.console import Console

    from trajgen.config import Config

CONTEXT = 20
"""Steps that the Decision Transformer looks back on, as in its paper."""
DT = "DT (transformers)"

Line = tuple[str, int, Timing]
"""Name, batch size and timing."""


def run(request: BenchRequest, console: Console) -> None:
    """Times one plan and its action, and prints the roofline of a single one."""
    planner, space, config, device = _load_planner(request)
    backends = request.options.backends or _available_backends(device)
    with console.status("timing"):
        lines, refusals = time_decisions(planner, space, request.options.batch, backends, request.options.repeats)
        if request.against:
            prior = config.components.get("prior", {})
            sizes = {name: int(prior.get(name, size)) for name, size in (("width", 128), ("depth", 4), ("heads", 4))}
            lines += time_decision_transformer(space, device, request.options.batch, request.options.repeats, **sizes)
        cond = random_conditions(space, 1, device)
        cost, rates = count_cost(lambda: plan_step(planner, cond)), measure_rates(device)
    medians = {batch: timing.median for name, batch, timing in lines if name == DT}
    rows = []
    for name, batch, timing in lines:
        rate = f"{1e3 * batch / timing.median:,.0f}"
        ratio = [f"{timing.median / medians[batch]:.2f}"] if medians else []
        rows.append([name, str(batch), *timing.cells(), rate, *ratio])
    columns = ["decision", "batch", *TIMES, "decisions/s", *(["of DT's"] if medians else [])]
    figures: list[Mapping[str, Any]] = [{"name": n, "batch": b, **timing.to_dict()} for n, b, timing in lines]
    least = cost.roofline(rates)
    figures.append({"name": "roofline", "batch": 1, "milliseconds": least, **vars(cost)})
    title = f"{config.recipe}: one decision that plans"
    figures += [{"name": backend, "refused": reason} for backend, reason in refusals.items()]
    request.report(console, title, Table(columns, rows), figures, device)
    for backend, reason in refusals.items():
        console.print(f"{backend} is not measured: {reason}", highlight=False, markup=False)
    console.print(
        f"roofline at batch 1: {least:.2f} ms, from {cost.operations / 1e6:.0f} million operations at "
        f"{rates.operations / 1e9:.0f} a nanosecond and {cost.bytes / 1e6:.0f} MB of operands at "
        f"{rates.bytes / 1e9:.0f} GB/s; {cost.launches} operations are called one by one (eager)",
        highlight=False,
    )


def _load_planner(request: BenchRequest) -> tuple[Any, Space, Config, torch.device]:
    """The planner of a run, or of a recipe with fresh weights for an environment of 4 states, 2 actions and 2 goals."""
    if request.options.run is not None:
        folder = local_folder(request.options.run)
        eager = {"policy.backend": "eager"}
        policy = experiments.load_policy(folder, device=request.device, imports=request.imports, overrides=eager)
        config, space = load_config(folder)
        return policy.planner, space, config, policy.device
    config, device = request.load()
    space = Space(state_dim=4, action_dim=2, goal_dim=2, agents=2)
    return experiments.build_planner(config, space).eval().to(device), space, config, device


def _available_backends(device: torch.device) -> list[Backend]:
    if device.type == "cuda":
        return ["eager", "cuda_graph"]
    return ["eager", "onnx"] if all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")) else ["eager"]


def time_decisions(
    planner: Any, space: Space, batches: Sequence[int], backends: Sequence[Backend], repeats: int
) -> tuple[list[Line], dict[str, str]]:
    """Times plans by each of the backends: the return target, all scales, the latent, and the action head.

    Returns:
        The timings, and why a backend does not run this planner, by its name.
    """
    device = next(planner.parameters()).device
    lines: list[Line] = []
    refusals: dict[str, str] = {}
    for batch in batches:
        cond = random_conditions(space, batch, device)
        for backend in backends:
            if backend in refusals:
                continue
            try:
                call = partial(_decide, planner, plan_fn(backend, planner), torch.Generator(device), cond)
                lines.append((backend, batch, timed(call, device, repeats)))
            except ConfigError as error:
                if backend == "eager":
                    raise
                refusals[backend] = f"{error.rule} {error.got or ''}".strip()
    return lines, refusals


@torch.inference_mode()
def _decide(planner: Any, plan: PlanFn, rng: torch.Generator, cond: Cond) -> None:
    _, plans = plan(cond, rng)
    planner.action(plans, cond.state.unsqueeze(1), torch.zeros_like(cond.returns, dtype=torch.long).unsqueeze(1))


def random_conditions(space: Space, batch: int, device: torch.device) -> Cond:
    """Conditions for as many plans, in normalized units, their returns left to the return target."""
    goal = torch.randn(batch, space.goal_dim, device=device) if space.goal_dim else None
    state, returns = torch.randn(batch, space.state_dim, device=device), torch.full((batch,), torch.nan, device=device)
    return Cond(state, returns, goal, time=torch.zeros(batch, dtype=torch.long, device=device))


def time_decision_transformer(
    space: Space, device: torch.device, batches: Sequence[int], repeats: int, *, width: int, depth: int, heads: int
) -> Iterator[Line]:
    """Times transformers' DecisionTransformerModel with random weights; raises a ConfigError without the package."""
    try:
        from transformers import DecisionTransformerConfig, DecisionTransformerModel
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigError(
            "The Decision Transformer is that of the package transformers, which is not installed.",
            fix="pip install transformers, or leave out --against",
        ) from error
    logging.set_verbosity_error()
    config = DecisionTransformerConfig(
        state_dim=space.state_dim, act_dim=space.action_dim, hidden_size=width, n_layer=depth, n_head=heads,
        max_ep_len=1000,
    )  # fmt: skip
    model = DecisionTransformerModel(config).eval().to(device)
    for batch in batches:
        inputs = {
            "states": torch.randn(batch, CONTEXT, space.state_dim, device=device),
            "actions": torch.randn(batch, CONTEXT, space.action_dim, device=device),
            "rewards": torch.zeros(batch, CONTEXT, 1, device=device),
            "returns_to_go": torch.randn(batch, CONTEXT, 1, device=device),
            "timesteps": torch.arange(CONTEXT, device=device).expand(batch, -1),
            "attention_mask": torch.ones(batch, CONTEXT, device=device),
        }
        yield DT, batch, timed(torch.inference_mode()(partial(model, **inputs)), device, repeats)
