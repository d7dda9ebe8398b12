"""Every registered sampler; what top-k and top-p keep, guidance, and the value of plans, by hand."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from accepts import cells, check_cell, fixture_of
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.pairing import check_pair
from trajgen.core.registry import build
from trajgen.core.types import Cond, KnownCodes
from trajgen.critics.plans import PlannedReturn
from trajgen.samplers.autoregressive import AutoregressiveSampler, draw, keep_top_k, keep_top_p
from trajgen.views import FieldView

RANDOM = ["temperature", "top_k", "top_p", "best_of_n", "beam"]
"""Samplers that draw from the distribution of discrete codes."""


@cells("sampler")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("sampler", name, words, advice)


@pytest.fixture(scope="module")
def model() -> Any:
    """A planner with perturbed weights and codes in use."""
    planner = tiny.ready_planner()
    planner.prior = tiny.shake(tiny.planner().prior, 0.5)
    return planner.eval()


def wiring(model: Any, **changes: Any) -> dict[str, Any]:
    parts = {name: getattr(model, name) for name in ("prior", "tokenizer", "decoder", "view", "normalizer")}
    critic = PlannedReturn(parts["normalizer"], 0.9, (tiny.STRIDE,))
    further = {
        "vocabulary": model.tokenizer.vocabulary,
        "critic": critic,
        "strides": (tiny.STRIDE,),
        "horizon": tiny.HORIZON,
    }
    return {**parts, **further, **changes}


def make(name: str, model: Any, parts: dict[str, Any] | None = None, **options: Any) -> Any:
    return build("sampler", tiny.node("sampler", name, **options), **(parts or wiring(model)))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(
    name: str, model: Any, cond: Cond, seed: int = 0, known_codes: KnownCodes | None = None, **options: Any
) -> Tensor:
    codes: Tensor = make(name, model, **options)(model.prior, model.tokenizer, cond, rng(seed), known_codes).codes
    return codes


def return_of(model: Any, codes: Tensor, cond: Cond) -> Tensor:
    """The returns-to-go (B,) at the first point of decoded codes."""
    decoded = model.decoder(model.tokenizer.layout.latent(model.tokenizer.vectors(codes)), cond)
    returns: Tensor = model.view.read(decoded, "return")[:, 0, 0]
    return returns


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_samples_other_codes(name: str, model: Any) -> None:
    cond = tiny.cond(32)
    assert not torch.equal(sample(name, model, cond, seed=0), sample(name, model, cond, seed=1))


@pytest.mark.parametrize("name", ["greedy", *RANDOM])
def test_where_no_code_is_known_all_are_drawn_as_ever(name: str, model: Any) -> None:
    cond = tiny.cond(32)
    free = sample(name, model, cond)
    nothing = KnownCodes(torch.zeros_like(free), torch.zeros_like(free, dtype=torch.bool))
    assert torch.equal(sample(name, model, cond, known_codes=nothing), free)


def test_greedy_takes_the_likeliest_code_and_is_the_limit_of_the_others(model: Any) -> None:
    cond = tiny.cond(8)
    codes = make("greedy", model)(model.prior, model.tokenizer, cond, None).codes
    logits = model.prior.logits(model.tokenizer.layout.inputs(model.tokenizer.vectors(codes)), cond)
    assert torch.equal(codes, logits.argmax(-1))
    limits: dict[str, dict[str, Any]] = {
        "top_k": {"k": 1},
        "temperature": {"temperature": 1e-4},
        "top_p": {"p": 1e-4},
        "beam": {"beam_width": 1, "expansions": 1, "temperature": None},
        "best_of_n": {"temperature": 1e-4},
    }
    for name, options in limits.items():
        assert torch.equal(codes, sample(name, model, cond, **options)), name


def finite_ids(logits: Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits.flatten(0, -2)]


def test_top_k_keeps_the_k_largest() -> None:
    logits = torch.tensor([[[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 4.0, 6.0]]])
    assert finite_ids(keep_top_k(logits, 2)) == [[0, 2], [1, 3]]
    assert torch.equal(keep_top_k(logits, 4), logits) and torch.equal(keep_top_k(logits, 9), logits)


@pytest.mark.parametrize(
    ("p", "ids"),
    [
        (0.05, [[0], [2]]),  # always at least the likeliest
        (0.45, [[0], [1, 2]]),  # 0.5 reaches 0.45; 0.4 does not
        (0.6, [[0, 2], [1, 2]]),  # 0.5 + 0.3
        (0.9, [[0, 1, 2], [0, 1, 2]]),
        (1.0, [[0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, ids: list[list[int]]) -> None:
    probabilities = torch.tensor([[[0.5, 0.15, 0.3, 0.05], [0.2, 0.39, 0.4, 0.01]]])
    assert finite_ids(keep_top_p(probabilities.log(), p)) == ids


def test_draws_are_distributed_as_softmax_of_the_logits_over_the_temperature(model: Any) -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    ids = draw(logits.expand(1, 40_000, 4), rng())
    frequencies = torch.bincount(ids.flatten(), minlength=4) / 40_000
    assert (frequencies - logits.softmax(0)).abs().max() < 0.01  # 4 standard errors
    ids = make("temperature", model, temperature=0.5).sample_fn(logits.expand(1, 40_000, 4), rng())
    frequencies = torch.bincount(ids.flatten(), minlength=4) / 40_000
    assert (frequencies - (2 * logits).softmax(0)).abs().max() < 0.01


@pytest.mark.parametrize("weight", [0.0, 1.5, -1.0])
def test_guidance_is_its_formula_over_two_plain_passes(weight: float, model: Any) -> None:
    cond, step_logits = tiny.cond(5), list[Tensor]()

    def argmax(logits: Tensor, _: Any) -> Tensor:
        step_logits.append(logits)
        return logits.argmax(-1)

    codes = AutoregressiveSampler(argmax, weight)(model.prior, model.tokenizer, cond, None).codes
    inputs = model.tokenizer.layout.inputs(model.tokenizer.vectors(codes))
    conditional, unconditional = (model.prior.logits(inputs, each) for each in (cond, cond.unconditional()))
    assert (conditional - unconditional).abs().max() > 0.01
    expected = conditional + weight * (conditional - unconditional)
    torch.testing.assert_close(torch.cat(step_logits, 1), expected, atol=1e-4, rtol=1e-4)


class Lengths:
    """A tokenizer and layout of continuous codes whose scales see how many tokens came before."""

    schedule, vocabulary = tiny.schedule("geometric"), None

    @property
    def layout(self) -> Any:
        return self

    def start(self, batch: int) -> Tensor:
        return torch.zeros(batch, 0, 3)

    def scale_input(self, partial_latent: Tensor, k: int) -> Tensor:
        tokens = torch.full((len(partial_latent), self.schedule.lengths[k], 3), float(partial_latent.shape[1]))
        return tokens + partial_latent.sum() * 0.01

    def vectors(self, codes: Tensor) -> Tensor:
        return codes

    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        return torch.cat([partial_latent, vectors], 1)


ECHO = SimpleNamespace(start=len, step=lambda x, k, batch: torch.zeros(batch, 1, 3) if x is None else x)
"""A prior that predicts its input."""


def test_features_of_continuous_codes_are_known_one_by_one(model: Any, cond: Cond) -> None:
    tokens, spans = Lengths.schedule.tokens, Lengths.schedule.spans
    mask = torch.rand(6, tokens, 3, generator=rng()) < 0.3
    mask[:, 0, 1] = True
    known_codes = KnownCodes(torch.full((6, tokens, 3), 9.0), mask)
    greedy = AutoregressiveSampler(lambda logits, _: logits)
    free, codes = (greedy(ECHO, Lengths(), cond, None, prompt).codes for prompt in (None, known_codes))
    assert (free[:, spans[1]] == 1).all()  # one token before, which was zero
    assert (codes[mask] == 9).all() and (codes[~mask] < 9).all()
    assert (codes - free)[~mask].abs().sum() > 0  # the others have seen them


OUT_OF_RANGE: dict[str, list[tuple[str, Any]]] = {
    "temperature": [("temperature", 0.0)],
    "top_k": [("k", 0), ("temperature", -1.0)],
    "top_p": [("p", 0.0), ("p", 1.1), ("temperature", 0.0)],
    "best_of_n": [
        ("n", 0),
        ("temperature", 0.0),
        ("likely_fraction", 0.0),
        ("likely_fraction", 1.5),
        ("compare_after", 9),
    ],
    "beam": [
        *(("beam_width", 0), ("expansions", 0), ("temperature", 0.0), ("top_k", 0), ("select_every", 0)),
        *(("prob_threshold", 1.0), ("prob_threshold", 0.0), ("prob_weight", 0.0)),
    ],
}


@pytest.mark.parametrize(
    ("name", "option", "value"), [(name, *option) for name, options in OUT_OF_RANGE.items() for option in options]
)
def test_options_out_of_range_are_refused(name: str, option: str, value: Any, model: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        make(name, model, **{option: value})
    assert option in str(caught.value.got)
    tiny.check_cure(caught.value)


@pytest.mark.parametrize("name", ["greedy", *RANDOM])
def test_a_prior_that_does_not_step_is_refused(name: str, model: Any) -> None:
    prior = torch.nn.Linear(1, 1)
    refuse: Any = partial(check_pair, name, prior, "linear", discrete=True)
    if name == "best_of_n":  # which needs what the sampler needs by which it draws
        refuse = partial(make, name, model, wiring(model, prior=prior))
    with pytest.raises(ConfigError, match="prior=transformer") as caught:
        refuse()
    assert "Linear" in str(caught.value.got)
    tiny.check_cure(caught.value)


@pytest.mark.parametrize("name", ["best_of_n", "beam"])
def test_a_view_without_returns_is_refused_where_plans_are_compared(name: str, model: Any) -> None:
    parts = wiring(model, view=FieldView(4, 2, (tiny.STRIDE,), fields=("state", "action")))
    with pytest.raises(ConfigError, match=r"view\.fields=\[return,state,action\]") as caught:
        make(name, model, parts)
    tiny.check_cure(caught.value)
    assert make("beam", model, parts, score="likelihood").critic is None


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_the_best_of_n_is_the_best_of_n(guidance: float, model: Any) -> None:
    cond, n, options = tiny.cond(7), 5, {"temperature": 10.0, "guidance": guidance}
    codes = sample("best_of_n", model, cond, n=n, **options)
    greedy = sample("best_of_n", model, cond, n=n, draws="top_k", temperature=1e-4)
    assert torch.equal(greedy, sample("greedy", model, cond))
    repeated = cond.map(lambda values: values.repeat_interleave(n, 0))
    candidates = sample("temperature", model, repeated, **options)
    returns = return_of(model, candidates, repeated).view(7, n)
    assert (returns.std(1) > 0.01).sum() > 3
    assert torch.equal(codes, candidates.view(7, n, -1)[torch.arange(7), returns.argmax(1)])


@pytest.mark.parametrize("selectable", [True, False])
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_candidates_that_are_compared_early_share_the_other_scales(
    guidance: float, selectable: bool, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cond, n, options = tiny.cond(7), 5, {"temperature": 10.0, "guidance": guidance}
    repeated = cond.map(lambda values: values.repeat_interleave(n, 0))
    layout, spans, vectors = model.tokenizer.layout, model.tokenizer.schedule.spans, model.tokenizer.vectors
    candidates, latent = sample("temperature", model, repeated, **options), layout.start(7 * n)
    for k in (0, 1):
        latent = layout.extend(latent, vectors(candidates[:, spans[k]]), k)
    best = model.view.read(model.decoder(latent, repeated), "return")[:, 0, 0].view(7, n).argmax(1)

    step, predictions = model.prior.step, []
    monkeypatch.setattr(model.prior, "step", lambda *args: predictions.append(step(*args)) or predictions[-1])
    if not selectable:
        start = model.prior.start
        monkeypatch.setattr(model.prior, "start", lambda cond: SimpleNamespace(**vars(start(cond))))
    codes = sample("best_of_n", model, cond, n=n, compare_after=2, **options)
    assert torch.equal(codes[:, : spans[1].stop], candidates.view(7, n, -1)[torch.arange(7), best, : spans[1].stop])
    of_all = model.prior.logits(layout.inputs(vectors(codes)), cond)
    assert torch.allclose(predictions[-1][:7], of_all[:, spans[2]], atol=1e-5)
    if selectable:  # otherwise steps are repeated for the rows that go on
        assert [len(prediction) for prediction in predictions] == [(1 + (guidance > 0)) * r for r in (7, 35, 7)]


def test_a_beam_for_the_return_promises_more_than_one_for_likelihood(model: Any) -> None:
    cond, options = tiny.cond(16), {"expansions": 4, "prob_threshold": None}
    by_return, by_likelihood = (
        return_of(model, sample("beam", model, cond, score=score, **options), cond).mean()
        for score in ("critic", "likelihood")
    )
    assert by_return > by_likelihood


def test_candidates_that_are_unlikely_are_not_chosen(model: Any) -> None:
    """With likely_fraction, the best of the likeliest candidates, by the log likelihood of all codes."""
    cond, n = tiny.cond(7), 6
    codes = sample("best_of_n", model, cond, n=n, temperature=10.0, likely_fraction=1 / 3)
    repeated = cond.map(lambda values: values.repeat_interleave(n, 0))
    candidates = sample("temperature", model, repeated, temperature=10.0)
    vectors = model.tokenizer.vectors(candidates)
    logits = model.prior.logits(model.tokenizer.layout.inputs(vectors), repeated)
    likelihood = logits.log_softmax(-1).gather(-1, candidates.unsqueeze(-1)).sum((1, 2)).view(7, n)
    likely = likelihood >= likelihood.sort(1).values[:, -2:-1]
    returns = return_of(model, candidates, repeated).view(7, n)
    best = returns.masked_fill(~likely, -torch.inf).argmax(1)
    assert (best != returns.argmax(1)).any()
    assert torch.equal(codes, candidates.view(7, n, -1)[torch.arange(7), best])


def test_a_critic_guides_what_is_denoised_and_nothing_else(model: Any) -> None:
    parts: dict[str, Any] = {"view": {"fields": ("return", "state")}, "tokenizer": {"name": "identity", "inpaint": ()}}
    parts |= {"schedule": "single", "decoder": "identity", "action": "state", "prior": "diffusion", "critic": "return"}
    cond, returns = tiny.cond(16), []
    for weight in (0.0, 1.0, 3.0):
        built = tiny.planner(
            **parts, sampler={"name": "best_of_n", "n": 1, "steps": 5, "critic_guidance": weight}
        ).eval()
        with torch.inference_mode():  # as policies act
            plan = built.plan(cond, rng())
        returns.append(float(built.view.read(plan.trajectory, "return")[:, 0].mean()))
    assert returns[0] + 0.05 < returns[1] < returns[2] - 0.05  # of an untrained prior, which forgets the early steps
    with pytest.raises(ConfigError, match=r"sampler\.critic_guidance=0 .*recipe=dv"):
        make("best_of_n", model, critic_guidance=1.0)
    with pytest.raises(ConfigError, match=r"sampler\.compare_after=null"):
        tiny.planner(**parts, sampler={"name": "best_of_n", "steps": 5, "compare_after": 1})


def test_a_comparison_before_a_point_is_decided_is_refused() -> None:
    words = "tt critic=value sampler=best_of_n sampler.compare_after="
    least = fixture_of("sampler", "best_of_n", f"{words}null").planner.tokenizer.period
    fixture_of("sampler", "best_of_n", f"{words}{least}")
    with pytest.raises(ConfigError, match=f"from {least}, the first after which a point is decided"):
        fixture_of("sampler", "best_of_n", f"{words}{least - 1}")


def test_drawn_returns_are_not_what_the_best_is_chosen_by() -> None:
    with pytest.raises(ConfigError, match=r"(?s)tokens of return, reward.*sampler=beam"):
        fixture_of("sampler", "best_of_n", "tt sampler=best_of_n")


def test_plans_that_continue_a_history_are_compared_by_what_lies_ahead() -> None:
    words = "tt critic=value data.horizon=4 planner.past=3 sampler=best_of_n sampler.n=4"
    period = fixture_of("sampler", "best_of_n", words).planner.tokenizer.period
    fixture = fixture_of("sampler", "best_of_n", f"{words} sampler.compare_after={period}")
    sampler, compared = fixture.planner.sampler, []
    score = sampler.score
    sampler.score = lambda *arguments: (compared.append(arguments[2]), score(*arguments))[1]
    plan = fixture.planner.plan(fixture.cond(3), rng())
    assert compared == [3] and plan.worth.isfinite().all()


def test_candidates_that_differ_in_their_state_differ_in_their_worth() -> None:
    """Also where a scale holds all numbers of a point: rewards are expected ones, states those that were drawn."""
    features = 1 + tiny.SPACE.state_dim
    planner = tiny.planner(
        tokenizer={"name": "bins", "num_bins": 8},
        schedule={"name": "explicit", "lengths": (features,) * tiny.HORIZON},
        decoder="identity",
        sampler={"name": "beam", "beam_width": 2, "expansions": 4},
        critic="value",
    )
    beam, scored = planner.sampler, []
    of_plans = beam._scores
    beam._scores = lambda *arguments: (scored.append(of_plans(*arguments)), scored[-1])[1]
    planner.eval().plan(tiny.cond(1), rng())
    assert len(scored[0].unique()) > 1
