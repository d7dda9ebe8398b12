"""A prior and a sampler that need each other, in a way that the package knows nothing of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.cli import main
from trajgen.core import registry
from trajgen.core.errors import ConfigError
from trajgen.core.pairing import check_pair
from trajgen.core.registry import register
from trajgen.core.types import Cond, Plan


@pytest.fixture(autouse=True)
def pair() -> Iterator[None]:
    """Registers prior=scored and sampler=langevin for one test."""

    @register("prior", "scored")
    class Scored(torch.nn.Module):
        """A prior that is drawn in a way of its own."""

        goes_with = ("tokenizer=identity", "schedule=single")

        def __init__(self, schedule: Any, code_dim: int, conditioner: Any) -> None:
            super().__init__()
            self.conditioner = conditioner
            self.network = torch.nn.Linear(code_dim + conditioner.width, code_dim)

        def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
            prediction = codes + self.score(codes + torch.randn_like(codes), cond)
            return (prediction - codes).square().mean(), prediction

        def score(self, x: Tensor, cond: Cond) -> Tensor:
            x = x + x.mean(1, keepdim=True)
            return self.network(torch.cat([x, self.conditioner(cond).expand(-1, x.shape[1], -1)], dim=-1))

    @register("sampler", "langevin")
    class Langevin:
        """Needs a score."""

        needs = ("score",)

        @torch.no_grad()
        def __call__(self, prior: Any, tokenizer: Any, cond: Cond, rng: Any = None, known_codes: Any = None) -> Plan:
            shape = (len(cond), tokenizer.schedule.tokens, tokenizer.code_dim)
            x = torch.randn(shape, generator=rng, device=cond.state.device)
            for _ in range(2):
                x = x if known_codes is None else known_codes.into(x)
                x = x + prior.score(x, cond)
            x = x if known_codes is None else known_codes.into(x)
            return Plan(x, tokenizer.layout.latent(x))

    yield
    del registry._registered["prior", "scored"], registry._registered["sampler", "langevin"]


def test_a_sampler_is_refused_with_pairs_that_work_also_of_a_new_kind() -> None:
    model = tiny.planner(
        view={"fields": ("state",)}, tokenizer="identity", schedule="single", decoder="identity", action="state",
        prior="scored", sampler="langevin",
    )  # fmt: skip
    assert model.plan(tiny.cond(3)).codes.shape == (3, tiny.HORIZON, 4)
    with pytest.raises(ConfigError) as caught:
        check_pair("euler", model.prior, "scored", discrete=False)
    assert caught.value.fix == "sampler=langevin, or prior=flow tokenizer=identity schedule=single"
    with pytest.raises(ConfigError) as caught:
        check_pair("langevin", tiny.planner().prior, "transformer", discrete=True)
    fix = "sampler=temperature, or prior=scored tokenizer=identity schedule=single"
    assert caught.value.fix == fix and "score" in str(caught.value.expected)


def test_parts_that_need_each_other_are_checked_together(capsys: pytest.CaptureFixture[str]) -> None:
    """No recipe has either of them."""
    words = ["check", "prior/scored", "sampler/langevin", "recipe=diffuser"]
    main(words)
    shown = capsys.readouterr().out
    assert shown.count("contracts that apply are kept") == 2
    assert "prior/scored in recipe=diffuser" in shown and "sampler/langevin in recipe=diffuser" in shown
