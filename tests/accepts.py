"""Which compositions accept which component, and what the error advises where one is refused.

A cell is ``OK`` where the component is built in the composition and keeps all of its contracts (checked in each of
them nightly, and in those of ``CHECKED`` each time), and otherwise words of the advice with which it is refused.
"""

from __future__ import annotations

import pytest
import tiny
import torch
from not_applicable import not_applicable

from trajgen import testing
from trajgen.assemble import all_stages
from trajgen.core.errors import ConfigError
from trajgen.core.options import values_of
from trajgen.core.registry import names

OK = ""
BUILT = "it is built"
ROW = "schedule=unit"
PYRAMID = "schedule=geometric"
SINGLE = "schedule=single"
TRANSFORMER = "prior=transformer"
DIFFUSION = "prior=diffusion tokenizer=identity schedule=single"
FLOW = "prior=flow tokenizer=identity schedule=single"
DENOISE = "sampler=diffusion"
BEAM = "sampler=beam"
EULER = "sampler=euler"
GREEDY = "sampler=greedy"
IDENTITY = "decoder=identity"
PLAIN = "decoder=plain"
FIELDS = "view=fields"
VALUE = "critic=value"
LATENT = "planner=latent"
EVERY_KIND = "recipe=mage, which has every kind"
ACTIONS = "view.fields=[state,action]"
ACTIONS_FIRST = "view.fields=[action,state]"
OVERLAP = "planner.overlap=true"
NOT_SUBTRACTED = "return_target.subtract_rewards=false"
ALL_FIELDS = "view.fields=[return,state,action]"

SCHEDULES = ("explicit", "geometric", "linear", "single", "two_level", "unit")
VALUES = "tokenizer=identity decoder=identity"
SAMPLED_ACTIONS = "mage action.num_bins=8 action.temperature=1"
GUIDED = "planner.condition_weight=0.1"  # without L_cond nothing trains adapters

TABLES: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "encoder": (("bc",), {"conv": (OK,), "identity": (OK,), "timm": (OK,)}),
    "view": (
        ("mage", "tap", "diffuser", "mage view.fields=[action,reward,state]"),
        {"agents": (OK, PYRAMID, FIELDS, OK), "fields": (OK, OK, OK, OK)},
    ),
    "schedule": (
        ("mage", "flat_ar", "diffuser", "tt"),
        {
            "auto": (OK, OK, ROW, ROW),
            "explicit": (OK, OK, ROW, ROW),
            "geometric": (OK, OK, ROW, ROW),
            "linear": (OK, OK, ROW, ROW),
            "single": (OK, OK, OK, OK),
            "two_level": (OK, OK, ROW, ROW),
            "unit": (OK, OK, SINGLE, OK),
        },
    ),
    "tokenizer": (
        (*(f"mage schedule={name}" for name in SCHEDULES), "diffuser", "diffuser schedule=unit", "tt"),
        {
            "bins": (ROW, ROW, ROW, IDENTITY, ROW, IDENTITY, TRANSFORMER, TRANSFORMER, OK),
            "identity": (ROW, ROW, ROW, GREEDY, ROW, GREEDY, OK, SINGLE, "prior.action_weight=1"),
            "multiscale": (OK, OK, OK, OK, OK, OK, TRANSFORMER, TRANSFORMER, "tokenizer.latent_length="),
        },
    ),
    "conditioner": (("mage", "flat_ar", "bc", "mage conditioner.return_scales=1"), {"fields": (OK, OK, OK, OK)}),
    "prior": (
        (
            *(f"mage schedule={name}" for name in SCHEDULES[:5]),
            *("flat_ar", "flat_ar schedule=single", "flat_ar schedule=explicit schedule.lengths=[1,1,2]"),
            *(f"mage schedule=unit {VALUES} sampler=greedy", f"mage schedule=single {VALUES} sampler=greedy"),
            *("diffuser", "tt", "flow"),
        ),
        {
            "diffusion": (*[TRANSFORMER] * 8, SINGLE, DENOISE, OK, TRANSFORMER, DENOISE),
            "flow": (*[TRANSFORMER] * 8, SINGLE, EULER, EULER, TRANSFORMER, OK),
            "gpt": (*[ROW] * 5, OK, ROW, ROW, OK, ROW, ROW, OK, ROW),
            "transformer": (*[OK] * 10, GREEDY, OK, GREEDY),
        },
    ),
    "decoder": (
        ("mage", "flat_ar", f"tap {GUIDED}", f"diffuser {GUIDED}", f"tt planner=latent {GUIDED}"),
        {
            "adapter": (OK, OK, OK, OK, IDENTITY),
            "identity": (PLAIN, PLAIN, PLAIN, OK, OK),
            "plain": (OK, OK, OK, OK, IDENTITY),
            "state_conditioned": (OK, OK, OK, OK, IDENTITY),
        },
    ),
    "action": (
        ("mage", "bc", "carp", "diffuser", "mage decoder=state_conditioned view.fields=[action,state]"),
        {
            "latent": (OK, OK, OK, OK, OK),
            "latent_state": (OK, OK, OK, OK, OK),
            "plan": (ALL_FIELDS, FIELDS, OK, ACTIONS, OK),
            "state": (OK, FIELDS, ACTIONS_FIRST, OK, OK),
        },
    ),
    "critic": (
        ("mage sampler=best_of_n", "tap", "iql", "diffuser sampler=best_of_n sampler.steps=5"),
        {
            "horizon": (OK, VALUE, VALUE, OK),
            "length": (OK, OK, VALUE, OK),
            "return": (OK, OK, VALUE, VALUE),
            "temporal_distance": (OK, OK, VALUE, OK),
            "value": (OK, OK, OK, OK),
        },
    ),
    "sampler": (
        ("mage", "flat_ar", "tap", "tt", "diffuser", f"mage schedule=single {VALUES}", "flow"),
        {
            "beam": (OK, OK, OK, OK, DENOISE, GREEDY, EULER),
            "best_of_n": (OK, OK, OK, BEAM, "sampler.steps=10", GREEDY, VALUE),
            "diffusion": (DIFFUSION, DIFFUSION, DIFFUSION, DIFFUSION, OK, DIFFUSION, EULER),
            "euler": (FLOW, FLOW, FLOW, FLOW, DENOISE, FLOW, OK),
            "greedy": (OK, OK, OK, OK, DENOISE, OK, EULER),
            "temperature": (OK, OK, OK, OK, DENOISE, GREEDY, EULER),
            "top_k": (OK, OK, OK, OK, DENOISE, GREEDY, EULER),
            "top_p": (OK, OK, OK, OK, DENOISE, GREEDY, EULER),
        },
    ),
    "return_target": (
        ("mage", "bc", "dt", "diffuser"),
        {"best": (OK, OK, OK, OK), "constant": (OK, OK, OK, OK), "quantile": (OK, OK, OK, OK)},
    ),
    "subgoal": (
        ("mage", "bc", "diffuser", "hiql", "dt", f"dt {NOT_SUBTRACTED}"),
        {"graph": (OK, OK, OK, OK, NOT_SUBTRACTED, OK)},
    ),
    "planner": (
        (
            *("bc", "carp", "diffuser", "dt", "flat", "flat_ar", "hd", "hierarchy", "mage", "tap", "tt", "two_level"),
            *("flow", "iql data.horizon=32"),
        ),
        {
            "advantage": (
                *(VALUE, FIELDS, FIELDS, EVERY_KIND, VALUE, VALUE, FIELDS),
                *(VALUE, VALUE, FIELDS, FIELDS, VALUE, FIELDS, OK),
            ),
            "continuing": (
                *(EVERY_KIND, LATENT, OK, EVERY_KIND, LATENT, LATENT, OK),
                *(LATENT, LATENT, LATENT, OK, LATENT, OK, EVERY_KIND),
            ),
            "direct": (OK, FIELDS, FIELDS, EVERY_KIND, OK, OK, FIELDS, OK, OK, FIELDS, FIELDS, OK, FIELDS, OK),
            "hierarchy": (
                *(EVERY_KIND, ACTIONS_FIRST, OVERLAP, EVERY_KIND, OK, OK, OK, OK, OK, OK),
                *("data.horizon=32", OK, OVERLAP, EVERY_KIND),
            ),
            "history": (
                *(EVERY_KIND, ACTIONS, ACTIONS, OK, ALL_FIELDS, ALL_FIELDS, ACTIONS),
                *[ALL_FIELDS] * 5,
                *(ACTIONS, EVERY_KIND),
            ),
            "latent": (EVERY_KIND, OK, OK, EVERY_KIND, *[OK] * 9, EVERY_KIND),
            "subgoals": (VALUE, VALUE, VALUE, EVERY_KIND, *[VALUE] * 9, OK),
        },
    ),
}
"""For each kind: the compositions, and a row for each component."""

MORE: dict[str, tuple[tuple[str, str], ...]] = {
    "encoder": (("timm", "bc encoder.dim=null"), ("timm", "bc encoder.freeze=false"), ("identity", "mage")),
    "tokenizer": tuple(
        ("multiscale", f"mage tokenizer.quantizer={quantizer} schedule={schedule}")
        for quantizer in ("fsq", "lfq", "simvq")
        for schedule in ("geometric", "unit")
    ),
    "prior": (("diffusion", "dd"), ("flow", "dd sampler=euler")),
    "action": (("latent_state", SAMPLED_ACTIONS),),
    "planner": (
        *(("latent", f"mage schedule={name}") for name in ("explicit", "linear", "single", "two_level")),
        ("latent", "flat_ar prior=gpt sampler=beam"),
        ("hierarchy", f"hd {OVERLAP}"),
        ("latent", "diffuser conditioner.fields=[state,return] planner.condition_weight=0.1"),
        ("direct", "bc action=latent return_target=quantile"),
        ("advantage", "iql critic.actions=false"),
        ("latent", "mage_critic"),
        ("latent", "mage_multi"),
        ("latent", "mage_multi tokenizer.joint_scales=0 prior.across_agents=false"),
        ("latent", "dv"),
        ("subgoals", "hiql"),
        ("history", "dt view.fields=[state,action] return_target=constant"),
        ("hierarchy", "hierarchy tokenizer=multiscale schedule=single"),
    ),
}
"""Further compositions that accept a component of the kind."""

CHECKED: dict[str, tuple[str, ...]] = {
    "encoder": ("bc", "bc encoder.dim=null"),
    "view": ("mage", "mage view.fields=[action,reward,state]"),
    "schedule": ("mage",),
    "conditioner": ("mage", "bc", "mage conditioner.return_scales=1"),
    "return_target": ("mage", "dt"),
    "tokenizer": ("mage schedule=geometric", "mage schedule=unit", "diffuser", "tt"),
    "prior": (
        *("mage schedule=geometric", "flat_ar", "diffuser", "flow", "dd", "dd sampler=euler"),
        *(f"mage schedule={schedule} {VALUES} sampler=greedy" for schedule in ("unit", "single")),
    ),
    "decoder": ("mage", f"diffuser {GUIDED}"),
    "action": ("mage", "bc", "diffuser", "mage decoder=state_conditioned view.fields=[action,state]", SAMPLED_ACTIONS),
    "critic": ("mage sampler=best_of_n", "iql", "diffuser sampler=best_of_n sampler.steps=5"),
    "sampler": ("mage", "diffuser", "flow", f"mage schedule=single {VALUES}"),
    "subgoal": ("mage", "bc", "hiql"),
    "planner": (
        "mage",
        "tt",
        "diffuser",
        "flow",
        "mage_critic",
        "bc",
        "dt",
        "iql data.horizon=32",
        "hiql",
        f"hd {OVERLAP}",
    ),
}
"""The compositions in which all contracts are checked each time, one for each mechanism; nightly, in the others too.

The others are always built, and their losses and plans are finite."""


_REST = "mage_paper tap tt two_level"
_MAGE = "mage mage_critic mage_graph mage_multi"
_ALL = f"bc carp dd diffuser dt dv flat flat_ar flow hd hierarchy hiql iql {_MAGE} {_REST}"
_QUANTIZED = f"carp flat flat_ar hierarchy {_MAGE} mage_paper tap two_level"
_DRAWN = "carp flat flat_ar hierarchy mage mage_graph mage_multi mage_paper tap tt two_level"
_AUTOREGRESSIVE = f"{_DRAWN} mage_critic"
_CONVOLUTIONAL = f"carp dd diffuser dv flat flat_ar flow hd hierarchy {_MAGE} mage_paper tap two_level"
_WITH_RETURNS = f"flat flat_ar hierarchy {_MAGE} {_REST}"
_LATENT = f"{_CONVOLUTIONAL} tt"
_CHOOSING = "mage_critic tap tt"

RECIPES: dict[str, dict[str, str]] = {
    "encoder": dict.fromkeys(  # without those whose plans end at rest: features of images have no rest
        ("conv", "identity", "timm"), " ".join(name for name in _ALL.split() if name not in ("diffuser", "flow", "hd"))
    ),
    "view": {
        "agents": "flat mage mage_critic mage_graph mage_multi mage_paper two_level",
        "fields": f"dd diffuser dv flat flat_ar flow hd hierarchy {_MAGE} mage_paper two_level",
    },
    "schedule": {
        **dict.fromkeys(("explicit", "geometric", "linear", "two_level"), _QUANTIZED),
        "auto": _QUANTIZED.replace(" mage_multi", ""),
        "single": _LATENT.replace("mage_critic ", ""),  # which compares plans after two scales
        "unit": f"dt {_AUTOREGRESSIVE}".replace(" mage_multi", ""),
    },
    "tokenizer": {"bins": "tt", "identity": "dd diffuser dv flow hd", "multiscale": _QUANTIZED},
    "conditioner": {"fields": _ALL},
    "prior": {
        "diffusion": "dd diffuser dv hd",
        "flow": "dv flow",
        "gpt": "dt flat_ar tap tt",
        "transformer": f"dt {_AUTOREGRESSIVE}",
    },
    "decoder": {
        **dict.fromkeys(("adapter", "plain", "state_conditioned"), _CONVOLUTIONAL),
        "identity": "dd diffuser dv flow hd tt",
    },
    "action": {
        **dict.fromkeys(("latent", "latent_state"), f"bc hiql iql {_CONVOLUTIONAL}".replace(" dd ", " ")),
        "plan": "carp tap tt",
        "state": _LATENT.replace("carp ", ""),
    },
    "critic": {
        **dict.fromkeys(("length", "temporal_distance"), f"dv {_CHOOSING}"),
        "horizon": "dv mage_critic",  # of whole plans
        "return": _CHOOSING,
        "value": f"dv hiql iql {_CHOOSING}",
    },
    "sampler": {
        "beam": _WITH_RETURNS,
        "best_of_n": _WITH_RETURNS.replace(" tt", ""),  # whose returns are drawn
        **dict.fromkeys(("greedy", "temperature", "top_k", "top_p"), _DRAWN),
        "diffusion": "dd diffuser hd",
        "euler": "flow",
    },
    "return_target": dict.fromkeys(("best", "constant", "quantile"), _ALL),
    "subgoal": {"graph": _ALL},
    "planner": {
        "advantage": "hiql iql",
        "continuing": "dd diffuser dv flow hd tt",
        "direct": "bc",
        "hierarchy": f"dd dv flat flat_ar hierarchy mage mage_critic mage_graph {_REST}",
        "history": "dt",
        "latent": _LATENT,
        "subgoals": "hiql iql",
    },
}
"""The recipes that accept a component with its default options, nothing else changed."""


def cells(kind: str) -> pytest.MarkDecorator:
    """A parametrization over ``name``, ``words`` and ``advice`` of a kind's table, which must have all components."""
    compositions, rows = TABLES[kind]
    if set(rows) != set(names(kind)) or not all(OK in row for row in rows.values()):
        raise ValueError(f"the table of kind '{kind}' needs a row, with a composition that accepts it, for each of: "
                         f"{', '.join(names(kind))}")  # fmt: skip
    table = [(name, words, cell) for name in rows for words, cell in zip(compositions, rows[name], strict=True)]
    table += [(name, words, OK) for name, words in MORE.get(kind, ())]
    checked = CHECKED[kind]
    if {name for name, words, cell in table if cell == OK and words in checked} != set(rows):
        raise ValueError(f"each component of kind '{kind}' needs a composition in CHECKED")
    params = []
    for name, words, cell in table:
        label = f"{name}-{words.replace(' ', '-')}"
        if cell == OK and words not in checked:
            params.append(pytest.param(name, words, BUILT, id=f"{label}-built"))
            params.append(pytest.param(name, words, OK, id=label, marks=pytest.mark.nightly))
        else:
            params.append(pytest.param(name, words, cell, id=label))
    return pytest.mark.parametrize(("name", "words", "advice"), params)


def check_cell(kind: str, name: str, words: str, advice: str) -> None:
    """Checks all contracts of a component in a composition, that it trains and plans, or its refusal's advice."""
    if advice == OK:
        results = testing.run_contracts(fixture_of(kind, name, words))
        broken = [f"{result.promise}: {result.message}" for result in results if result.outcome == "failed"]
        assert not broken, "\n".join(broken)
        if words in CHECKED[kind]:
            absent = {result.promise for result in results if result.outcome == "not applicable"}
            assert absent == not_applicable(f"{kind}/{name}", words), (
                "tests/not_applicable.py names what does not apply"
            )
        assert sum(result.outcome == "passed" for result in results) >= 3
    elif advice == BUILT:
        check_built(fixture_of(kind, name, words))
    else:
        with pytest.raises(ConfigError) as caught:
            fixture_of(kind, name, words)
        tiny.check_cure(caught.value)
        assert advice in str(caught.value.fix)


def check_built(fixture: testing.Fixture) -> None:
    """Every stage has a finite loss, which reaches weights, and a plan is finite."""
    planner = fixture.build()
    for stage in (stage for stage in all_stages(planner) if stage.parameters):
        stage.begin(planner)
        total = stage.loss(fixture.batch())["total"]
        total.backward()
        assert total.isfinite() and any(weight.grad is not None for weight in stage.trained)
    plan = planner.eval().plan(fixture.cond())
    assert all(value.isfinite().all() for value in vars(plan).values() if isinstance(value, torch.Tensor))


def fixture_of(kind: str, name: str, words: str) -> testing.Fixture:
    """A component in a composition, as ``mage schedule=single sampler.k=3``."""
    recipe, *changes = words.split()
    return testing.find_fixture(kind, name, recipe, values_of(changes))
