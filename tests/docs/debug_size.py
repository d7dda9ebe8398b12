"""A command's training at debug size: the composition of its words, a step in each stage, one plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import path_figure
import tiny
import torch

from trajgen.assemble import all_stages
from trajgen.config import Config
from trajgen.experiments import build_planner
from trajgen.policies.receding_horizon import RecedingHorizonPolicy

_done: set[str] = set()


def trains_and_acts(config: Config) -> None:
    """Builds the composition of a command, takes a step in each stage on made-up windows, plans, and reads actions.

    One that differs from those before it in numbers alone is built, and not trained again.
    """
    nodes = {kind: {k: v for k, v in node.items() if isinstance(v, bool) or not isinstance(v, (int, float))}
             for kind, node in config.components.items()}  # fmt: skip
    what = repr((nodes, config.data.goals, len(config.data.strides)))
    space = path_figure.space(config)
    if config.components.get("view", {}).get("name") == "agents":
        space = replace(space, agents=2)
    if "encoder" in config.components:
        space = replace(space, image_key="image", image_shape=(16, 16, 3))
    if what in _done:
        build_planner(config, space)
        return
    torch.manual_seed(0)
    planner: Any = build_planner(config, space)
    config.engine.check_batch_sizes(all_stages(planner), 1)
    batch, wide = path_figure.windows(config, 6), replace(space, state_dim=len(planner.normalizer.state.mean))
    if space.image_shape:
        states, chunk = (
            torch.cat([values, torch.randn(*values.shape[:2], wide.state_dim - space.state_dim)], -1)
            for values in (batch.states, batch.chunk_states)
        )
        images = torch.randint(256, (6, 2, *space.image_shape), dtype=torch.uint8)
        batch = replace(batch, states=states, chunk_states=chunk, images=images)
    batch = replace(batch, transitions=tiny.batch(6, space=wide, chunk=config.data.chunk).transitions)
    trained = [stage for stage in all_stages(planner) if stage.parameters]
    assert trained
    for stage in trained:
        stage.begin(planner)
        before = [p.detach().clone() for p in stage.trained]
        total = stage.loss(batch)["total"]
        assert torch.isfinite(total)
        total.backward()
        torch.optim.SGD(stage.trained, 1e-3).step()
        assert any(not torch.equal(old, new) for old, new in zip(before, stage.trained, strict=True))
    planner.eval()
    policy = RecedingHorizonPolicy(
        planner, planner.normalizer, space, config.policy, discount=config.data.discount, chunk=config.data.chunk
    )
    policy.reset(batch=2)
    observation = path_figure.observed(batch, 2)
    if batch.images is not None:
        vectors = observation["observation"][:, : space.state_dim]
        observation |= {"observation": vectors, "image": batch.images[:2, 0].numpy()}
    cond, plan, grown = policy.preview(observation)
    if plan.trajectory is not None:
        assert plan.trajectory.shape[0] == len(cond) == 2 and torch.isfinite(plan.trajectory).all()
        assert grown
    with torch.no_grad():
        actions = planner.action(plan, cond.state.unsqueeze(1), torch.zeros(2, 1, dtype=torch.long))
    assert actions.shape == (2, 1, space.action_dim) and torch.isfinite(actions).all()
    _done.add(what)
