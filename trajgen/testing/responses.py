"""What a component says to a batch, as named tensors with one row per window: what contracts of all kinds compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trajgen.core.types import Batch, Plan
from trajgen.testing.bench import Bench, Known

Responses = dict[str, Tensor]


def respond(bench: Bench, planner: Any, batch: Batch, seed: int = 0) -> Responses:
    """What the component, as it is in ``planner``, says to a batch.

    Args:
        bench: of the component.
        planner: that holds it.
        batch: B windows.
        seed: of the draws of samplers and planners.
    """
    part = bench.of(planner)
    if bench.kind == "planner":
        return _planner(planner, batch, seed)
    known = bench.known(planner, batch)
    if bench.kind == "sampler":
        tokenizer, rng = bench.of(planner, "tokenizer"), torch.Generator().manual_seed(seed)
        known_codes = tokenizer.known_codes(known.cond)
        return {"the codes": part(bench.of(planner, "prior"), tokenizer, known.cond, rng, known_codes).codes}
    return RESPONSES[bench.kind](part, known)


def _view(view: Any, known: Known) -> Responses:
    return {"the features": view(known.batch)}


def _tokenizer(tokenizer: Any, known: Known) -> Responses:
    encoding = tokenizer.encode(known.x)
    return {
        "encode().codes": encoding.codes,
        "encode().inputs": encoding.inputs,
        "encode().latent": encoding.latent,
        "vectors()": tokenizer.vectors(encoding.codes),
    }


def _conditioner(conditioner: Any, known: Known) -> Responses:
    return {"the embedding": conditioner(known.cond)}


def _prior(prior: Any, known: Known) -> Responses:
    if hasattr(prior, "denoise"):
        t = torch.ones_like(known.batch.time if known.batch.time is not None else known.codes[:, 0])
        return {"denoise()": prior.denoise(known.vectors * 0.5 + 0.3, t, known.cond)}
    return {"logits()": prior.logits(known.inputs, known.cond)}


def _decoder(decoder: Any, known: Known) -> Responses:
    return {
        "the trajectory": decoder(known.latent, known.cond),
        "base()": decoder.base(known.latent, known.cond),
    }


def _action(action: Any, known: Known) -> Responses:
    return {"the actions": action(seen(action, known), known.batch.chunk_states, offsets(known))}


def _target(return_target: Any, known: Known) -> Responses:
    remaining = known.batch.rewards[:, 0]
    return {
        "the first return": return_target(known.cond.state, known.cond.goal, remaining * torch.nan),
        "the return that remains": return_target(known.cond.state, known.cond.goal, remaining),
    }


def _planner(planner: Any, batch: Batch, seed: int) -> Responses:
    cond = batch.condition()
    plan = planner.plan(cond, torch.Generator().manual_seed(seed))
    found = {"the latent of plans": plan.latent}
    if plan.trajectory is not None:
        found["the trajectory of plans"] = plan.trajectory
    first = batch.chunk_states[:, :1]
    found["the actions of plans"] = planner.action(plan, first, torch.zeros_like(first[..., 0], dtype=torch.long))
    return found


RESPONSES: dict[str, Callable[[Any, Known], Responses]] = {
    "view": _view,
    "tokenizer": _tokenizer,
    "conditioner": _conditioner,
    "prior": _prior,
    "decoder": _decoder,
    "action": _action,
    "return_target": _target,
}


def seen(action: Any, known: Known) -> Plan:
    """The plan as an action head gets it when acting: decoded only if the head says that it reads the trajectory."""
    return Plan(known.plan.codes, known.plan.latent, known.x if action.reads_trajectory else None)


def offsets(known: Known) -> Tensor:
    """0 to H - 1 for each window, (B, H)."""
    steps = known.batch.chunk_states.shape[1]
    return torch.arange(steps, device=known.x.device).expand(len(known.batch), -1)
