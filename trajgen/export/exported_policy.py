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
    """Plans, follows the plan for some steps, and plans again, for B episodes in step; B was chosen at the export.

    Args:
        folder: of the export; the one that holds this file if not given.
        seed: of the plans.
        threads: for the computation; None for as many as the library takes by itself.
    """

    def __init__(self, folder: str | Path | None = None, *, seed: int = 0, threads: int | None = None) -> None:
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
        self._rng = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        """Starts B episodes."""
        self._age = 0
        self._remaining = np.full(self.description["batch"], np.nan, dtype=np.float32)
        self._plan: list[np.ndarray] = []
        self._past = {name: np.zeros(shape, np.float32) for name, shape in self.description.get("past", {}).items()}

    def act(self, state: Any, goal: Any = None, noise: list[np.ndarray] | None = None) -> np.ndarray:
        """Actions (B, A) in the states (B, S) for the goals (B, G), in the environment's units, or (A,) if B is 1.

        Args:
            state: what the model was trained on.
            goal: where it plans for goals.
            noise: what a plan that is due draws, shaped as ``description["noise"]`` says; drawn here if not given.

        Raises:
            ValueError: if states or goals have another shape, or are not finite.
        """
        single = np.ndim(state) == 1
        batch = self.description["batch"]
        states = self._vectors("state", state)
        offset = self._age % self.description["replan_interval"]
        if offset == 0:
            self._replan(states, goal, self.draw() if noise is None else noise)
        (action,) = self._act_program([*self._plan, states, np.full(batch, offset, dtype=np.int64)])
        self._record("past_action", action)
        self._age += 1
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

    def draw(self) -> list[np.ndarray]:
        """The noise of a plan."""
        draws = [getattr(self._rng, draw["kind"])(size=draw["shape"]) for draw in self.description["noise"]]
        return [np.asarray(values, dtype=np.float32) for values in draws]

    def _vectors(self, name: str, values: Any) -> np.ndarray:
        """States or goals (B, n) as the programs take them, without the offsets of the data."""
        array, batch, width = np.asarray(values), self.description["batch"], self.description[f"{name}_dim"]
        if offset := self.description[f"{name}_offset"]:
            array = array.astype(np.float64) - offset
        array = array.astype(np.float32)
        if array.shape not in {(batch, width), *([(width,)] if batch == 1 else [])} or not np.isfinite(array).all():
            raise ValueError(f"There are {batch} x {width} finite numbers in a {name}, not {values!r}.")
        return array.reshape(batch, width)

    def _replan(self, states: np.ndarray, goal: Any, noise: list[np.ndarray]) -> None:
        for points in self._past.values():  # the oldest point is dropped
            points[:, :-1], points[:, -1] = points[:, 1:].copy(), 0
        self._record("past_state", states)
        batch = self.description["batch"]
        inputs = {"state": states, "returns": self._remaining, "time": np.full(batch, self._age, dtype=np.int64)}
        inputs |= self._past
        if "goal" in self.description["inputs"]:
            inputs["goal"] = self._vectors("goal", goal)
        self._plan = self._plan_program([*(inputs[name] for name in self.description["inputs"]), *noise])
        returns = self._plan[self.description["outputs"].index("target_return")]
        self._record("past_returns", returns)
        self._remaining = np.where(np.isnan(self._remaining), returns, self._remaining)

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
    noise = [f"noise_{number}" for number in range(len(description["noise"]))]
    names = {"plan": [*description["inputs"], *noise], "act": [*description["outputs"], "state", "offset"]}[name]
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
    names = description["inputs"] if name == "plan" else description["outputs"]

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        first, rest = dict(zip(names, tensors, strict=False)), tensors[len(names) :]
        with torch.no_grad():
            outputs = program(first, rest) if name == "plan" else program(first, *rest)
        return [value.numpy() for value in (outputs.values() if isinstance(outputs, dict) else [outputs])]

    return run
