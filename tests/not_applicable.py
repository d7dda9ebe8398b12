"""Which contracts do not apply to which component: one that stops to apply fails as one that is broken."""

from __future__ import annotations

NEVER: dict[str, str] = {
    "training reaches all of its weights": (
        "encoder/identity view/agents view/fields tokenizer/bins tokenizer/identity decoder/identity "
        "action/plan critic/length critic/return sampler/beam sampler/best_of_n sampler/diffusion "
        "sampler/euler sampler/greedy sampler/temperature sampler/top_k sampler/top_p "
        "return_target/best return_target/constant subgoal/graph"
    ),
    "training does not make all features alike": "encoder/identity",
    "one-hot codes have the vectors of their ids": "tokenizer/identity",
    "known codes are those of such windows": "tokenizer/multiscale",
    "a latent that is a trajectory can be read and written": "tokenizer/multiscale",
    "it has a velocity at every time, in the shape of the codes": "prior/diffusion prior/gpt prior/transformer",
    "the loss pulls every prediction to its code": "prior/diffusion prior/flow",
    "the rows of its state can be selected": "prior/diffusion prior/flow",
    "teacher-forced predictions equal the stepwise ones": "prior/diffusion prior/flow",
    "no scale sees the inputs of finer ones": "prior/diffusion prior/flow",
    "it denoises at every noise level, in the shape of the codes": "prior/flow prior/gpt prior/transformer",
    "the loss pulls what it predicts from noise to the codes": "prior/gpt prior/transformer",
    "it is drawn towards the codes that it learns": "prior/gpt prior/transformer",
    "works for data without goals": ("critic/length critic/temporal_distance planner/subgoals"),
    "adapters start without effect, and are left out of base()": (
        "decoder/identity decoder/plain decoder/state_conditioned"
    ),
    "noise of actions is drawn with rng": "action/latent action/plan action/state",
    "it learns in a few steps": "action/plan",
    "targets follow the weights that are trained": (
        "critic/horizon critic/length critic/return critic/temporal_distance"
    ),
    "what a step leads to, brings and ends changes the loss": (
        "critic/horizon critic/length critic/return critic/temporal_distance"
    ),
    "the advantage of what was done": "critic/horizon critic/length critic/return critic/temporal_distance",
    "the same in any normalization of the data": "critic/horizon critic/temporal_distance critic/value",
    "scores rise with what was earned": "critic/length critic/return critic/temporal_distance",
    "one window does not depend on the others of its batch": (
        "sampler/beam sampler/best_of_n sampler/diffusion sampler/euler sampler/temperature sampler/top_k "
        "sampler/top_p planner/continuing planner/hierarchy planner/latent"
    ),
    "a scale is drawn from those before it": "sampler/beam sampler/best_of_n sampler/diffusion sampler/euler",
    "it learns the return-to-go of a window's first point": "return_target/best return_target/constant",
    "L_cond reaches the prior": "planner/advantage planner/continuing planner/direct planner/history planner/subgoals",
    "plans take the codes that follow from their condition": (
        "planner/advantage planner/continuing planner/direct planner/history planner/subgoals"
    ),
}
"""Promise to components to which it applies in none of the compositions that are checked each time."""

NOT_IN: dict[str, tuple[str, ...]] = {
    "training reaches all of its weights": ("encoder/timm bc encoder.dim=null",),
    "training does not make all features alike": ("encoder/timm bc encoder.dim=null",),
    "what is withheld is not looked at": ("conditioner/fields bc",),
    "conditions are withheld in training": ("conditioner/fields bc",),
    "the condition reaches every scale": (
        "prior/diffusion diffuser",
        "prior/flow flow",
    ),
    "no scale sees the inputs of finer ones": (
        "prior/transformer mage schedule=single tokenizer=identity decoder=identity sampler=greedy",
    ),
    "noise of actions is drawn with rng": (
        "action/latent_state mage",
        "action/latent_state bc",
        "action/latent_state diffuser",
        "action/latent_state mage decoder=state_conditioned view.fields=[action,state]",
    ),
    "what is drawn follows from known codes": (
        "sampler/greedy mage schedule=single tokenizer=identity decoder=identity",
    ),
    "L_cond reaches the prior": (
        "planner/latent diffuser",
        "planner/latent tt",
        "planner/latent flow",
        "planner/continuing diffuser",
        "planner/continuing flow",
        "planner/hierarchy hd planner.overlap=true",
    ),
}
"""Promise to components in compositions, as ``prior/diffusion diffuser``, to which it does not apply there."""


def not_applicable(component: str, words: str) -> set[str]:
    """The promises that do not apply to a component, as ``prior/flow``, in a composition that is checked each time."""
    never = {promise for promise, components in NEVER.items() if component in components.split()}
    return never | {promise for promise, cells in NOT_IN.items() if f"{component} {words}" in cells}
