"""A policy that was exported by trajgen; it needs numpy, and ONNX Runtime or torch, and nothing of trajgen.

from policy import Policy            # this file, in the folder of the export
policy = Policy()
policy.reset()
action = policy.act(state, goal)     # at every step of the environment
policy.observe(reward)               # after it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 2
"""That of trajgen.core.formats, which is not there where this file runs."""


class Policy:
    """Plans, follows or revises the plan for some steps, and plans again, for B episodes; B was chosen at the export.

    Args:
        folder: of the export; the one that holds this file if not given.
        seed: of the plans; that of the policy that was exported if not given.
        threads: for the computation; None for as many as the library takes by itself.
    """

    def __init__(
        self, folder: str | Path | None = None, *, seed: int | None = None, threads: int | None = None
    ) -> None:
        self.folder = Path(folder) if folder is not None else Path(__file__).parent
        self.description: dict[str, Any] = json.loads((self.folder / "policy.json").read_text(encoding="utf-8"))
        if self.description["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"{self.folder} has format {self.description['format_version']}, and this file reads up to "
                f"{FORMAT_VERSION}: use the policy.py of that folder."
            )
        load = _onnx if self.description["format"] == "onnx" else _torch
        self._plan_program = load(self.folder, "plan", threads)
        self._act_program = load(self.folder, "act", threads)
        self._revision: dict[str, Any] = self.description.get("revision") or {}
        self._revise_program: Any = load(self.folder, "revise", threads) if self._revision else None
        self._rng = np.random.default_rng(self.description["seed"] if seed is None else seed)
        self.reset()

    def reset(self) -> None:
        """Starts B episodes."""
        batch = self.description["batch"]
        self._age = 0
        self._plan_age = np.full(batch, self.description["replan_interval"])  # steps since a plan was made as a whole
        self._offset = np.zeros(batch, dtype=np.int64)  # steps since it was made or revised
        self._drawn_in = np.zeros((batch, self.description["state_dim"]), dtype=np.float32)  # the state then
        self._misfits = np.zeros(batch, dtype=bool)  # whose plan no longer fits: they get a new one
        self._remaining = np.full(batch, np.nan, dtype=np.float32)
        self._plan: dict[str, np.ndarray] = {}
        self._goals: np.ndarray | None = None  # of the last step
        self._past = {name: np.zeros(shape, np.float32) for name, shape in self.description.get("past", {}).items()}

    def act(
        self,
        state: Any,
        goal: Any = None,
        noise: list[np.ndarray] | None = None,
        revision_noise: list[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Actions (B, A) in the states (B, S) for the goals (B, G), in the environment's units, or (A,) if B is 1.

        Discrete ones are the numbers of choices, (B,) or (B, parts).

        Args:
            state: what the model was trained on.
            goal: where it plans for goals.
            noise: what a plan that is due draws, shaped as ``description["noise"]`` says; drawn here if not given.
            revision_noise: what a revision draws, as ``description["revision"]["noise"]`` says.

        Raises:
            ValueError: if states or goals have another shape, or are not finite; or if an action is not.
        """
        single = np.ndim(state) == 1
        states, plan_is_due = self._vectors("state", state), self._plan_age >= self.description["replan_interval"]
        inputs = {"state": states, "returns": self._remaining, "time": np.full(len(states), self._age, dtype=np.int64)}
        if "goal" in self.description["inputs"]:
            inputs["goal"] = self._vectors("goal", goal)
            if self.description.get("replan_on_new_goal"):
                if self._goals is not None:
                    plan_is_due = plan_is_due | (inputs["goal"] != self._goals).any(1)
                self._goals = inputs["goal"].copy()
        for points in self._past.values():  # the oldest point is dropped
            points[:, :-1], points[:, -1] = points[:, 1:].copy(), 0
        self._record("past_state", states)
        if plan_is_due.any():
            self._replan(inputs, plan_is_due, self.draw() if noise is None else noise)
        if self._revision:
            is_due = ~plan_is_due & (self._offset >= self._revision["interval"])
            if is_due.any():
                draws = self._revision["noise"]
                self._revise(inputs, is_due, self.draw(draws) if revision_noise is None else revision_noise)
        plan = [self._plan[name] for name in self.description["outputs"]]
        (action,) = self._act_program([*plan, states, self._offset])
        if not np.isfinite(action).all():
            raise ValueError(f"The program gives an action that is not finite: {action}.")
        self._record("past_action", action)
        self._age, self._plan_age, self._offset = self._age + 1, self._plan_age + 1, self._offset + 1
        self._plan_age[self._misfits] = self.description["replan_interval"]
        self._misfits[:] = False
        action = self._numbers(action)
        return action[0] if single else action

    def observe(self, reward: Any) -> None:
        """Takes the rewards (B,) off what remains of the target return.

        Raises:
            ValueError: if there is not one finite reward for each episode.
        """
        rewards = np.asarray(reward, dtype=np.float32)
        batch = self.description["batch"]
        if rewards.shape not in {(batch,), (batch, 1), *([()] if batch == 1 else [])} or not np.isfinite(rewards).all():
            raise ValueError(f"There is a finite reward for each of {batch} episodes, not {rewards}.")
        rewards = rewards.reshape(batch)
        self._record("past_reward", rewards)
        self._remaining = ((self._remaining - rewards) / self.description["discount"]).astype(np.float32)

    def draw(self, draws: list[dict[str, Any]] | None = None) -> list[np.ndarray]:
        """The noise of a plan, or of other draws."""
        draws = self.description["noise"] if draws is None else draws
        values = [getattr(self._rng, draw["kind"])(size=draw["shape"]) for draw in draws]
        return [np.asarray(value, dtype=np.float32) for value in values]

    def _numbers(self, action: np.ndarray) -> np.ndarray:
        """The numbers of one-hot choices; other actions as they are."""
        if not (choices := self.description.get("choices")):
            return action
        parts = np.split(action, np.cumsum(choices)[:-1], axis=-1)
        numbers = np.stack([part.argmax(-1) for part in parts], axis=-1)
        return numbers[:, 0] if len(choices) == 1 else numbers

    def _vectors(self, name: str, values: Any) -> np.ndarray:
        """States or goals (B, n) as the programs take them, without the offsets of the data."""
        array, batch, width = np.asarray(values), self.description["batch"], self.description[f"{name}_dim"]
        if offset := self.description[f"{name}_offset"]:
            array = array.astype(np.float64) - offset
        array = array.astype(np.float32)
        if array.shape not in {(batch, width), *([(width,)] if batch == 1 else [])} or not np.isfinite(array).all():
            raise ValueError(f"There are {batch} x {width} finite numbers in a {name}, not {values!r}.")
        return array.reshape(batch, width)

    def _replan(self, inputs: dict[str, np.ndarray], is_due: np.ndarray, noise: list[np.ndarray]) -> None:
        values = inputs | self._past
        outputs = self._plan_program([*(values[name] for name in self.description["inputs"]), *noise])
        plan = dict(zip(self.description["outputs"], outputs, strict=True))
        self._record("past_returns", plan["target_return"])
        self._remaining = np.where(np.isnan(self._remaining), plan["target_return"], self._remaining)
        self._plan_age[is_due] = 0
        self._put(plan, is_due, inputs["state"])

    def _revise(self, inputs: dict[str, np.ndarray], is_due: np.ndarray, noise: list[np.ndarray]) -> None:
        """Draws the finer scales of plans anew."""
        values: dict[str, Any] = inputs | {
            "followed_codes": self._plan["plan_codes"],
            "followed_state": self._drawn_in,
            "followed_offset": self._offset,
            "followed_worth": self._plan.get("plan_worth"),  # of plans that a critic chose
        }
        outputs = self._revise_program([*(values[name] for name in self._revision["inputs"]), *noise])
        plan = dict(zip(self._revision["outputs"], outputs, strict=True))
        if self._revision["threshold"] is not None:
            self._misfits = is_due & (plan["misfit"] > self._revision["threshold"])
        self._put(plan, is_due, inputs["state"])

    def _put(self, plan: dict[str, np.ndarray], is_due: np.ndarray, states: np.ndarray) -> None:
        """Gives the episodes that are due (B,) these plans, drawn in these states (B, S)."""
        for name in self.description["outputs"]:
            previous = self._plan.get(name, plan[name])
            rows = is_due.reshape(-1, *[1] * (previous.ndim - 1))
            self._plan[name] = np.where(rows, plan[name], previous)
        self._offset[is_due], self._drawn_in[is_due] = 0, states[is_due]

    def _record(self, name: str, values: np.ndarray) -> None:
        """Sets a value of the newest point, if the planner continues a history."""
        if name in self._past:
            self._past[name][:, -1] = values


def _onnx(folder: Path, name: str, threads: int | None) -> Any:
    """A program as a function from arrays to arrays, by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    path = str(folder / f"{name}.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    description = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    names = [*description["outputs"], "state", "offset"]
    if name != "act":
        program = description["revision"] if name == "revise" else description
        names = [*program["inputs"], *(f"noise_{n}" for n in range(len(program["noise"])))]
    used = {node.name for node in session.get_inputs()}

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        feed = {key: value for key, value in zip(names, arrays, strict=True) if key in used}
        return list(session.run(None, feed))

    return run


def _torch(folder: Path, name: str, threads: int | None) -> Any:
    """The same, by torch."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    program = torch.export.load(folder / f"{name}.pt2").module()
    description = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    inputs = {"plan": description["inputs"], "revise": (description.get("revision") or {}).get("inputs")}
    names = inputs.get(name, description["outputs"])

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        first, rest = dict(zip(names, tensors, strict=False)), tensors[len(names) :]
        with torch.no_grad():
            outputs = program(first, rest) if name in inputs else program(first, *rest)
        return [value.numpy() for value in (outputs.values() if isinstance(outputs, dict) else [outputs])]

    return run
