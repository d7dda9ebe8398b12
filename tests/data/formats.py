"""The same episodes, written in each of the formats that can be imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

LENGTHS = (5, 4, 6)
TERMINATED = (False, True, False)
"""Of each episode: whether the task ended it."""


def episodes() -> list[dict[str, Any]]:
    """Episodes with n+1 observations of three numbers, the first two of them a place, and goals."""
    random = np.random.default_rng(0)
    recorded = []
    for steps, terminated in zip(LENGTHS, TERMINATED, strict=True):
        recorded.append(
            {
                "observations": random.normal(size=(steps + 1, 3)).astype(np.float32),
                "actions": random.uniform(-1, 1, (steps, 2)).astype(np.float32),
                "rewards": random.normal(size=steps).astype(np.float32),
                "goals": np.repeat(random.normal(size=(1, 2)), steps + 1, 0).astype(np.float32),
                "terminated": terminated,
            }
        )
    return recorded


def ends(name: str) -> np.ndarray:
    """Flags of all rows: where episodes end by the task, by a timeout, or at all."""
    kind = {"terminal": lambda t: t, "timeout": lambda t: not t, "any": lambda t: True}[name]
    return np.concatenate([(np.arange(n) == n - 1) & kind(t) for n, t in zip(LENGTHS, TERMINATED, strict=True)])


def table(*, final: bool) -> dict[str, np.ndarray]:
    """All episodes end to end, a row for each step, as D4RL's; with ``final`` the next observations too."""
    recorded = episodes()
    arrays = {
        "observations": np.concatenate([e["observations"][:-1] for e in recorded]),
        "actions": np.concatenate([e["actions"] for e in recorded]),
        "rewards": np.concatenate([e["rewards"] for e in recorded]),
        "terminals": ends("terminal"),
        "timeouts": ends("timeout"),
        "infos/goal": np.concatenate([e["goals"][:-1] for e in recorded]),
    }
    if final:
        arrays["next_observations"] = np.concatenate([e["observations"][1:] for e in recorded])
    return arrays


def write_hdf5(path: Path, arrays: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def d4rl(folder: Path, *, final: bool = True, **changes: Any) -> Path:
    arrays = table(final=final) | changes
    return write_hdf5(folder / "d4rl.hdf5", {name: values for name, values in arrays.items() if values is not None})


def robomimic(folder: Path, *, final: bool = True) -> Path:
    """Observations in two entries, and an image; eleven demonstrations would be sorted by number."""
    path = folder / "robomimic.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift"})
        for number, episode in enumerate(episodes()):
            demo, steps = data.create_group(f"demo_{number}"), len(episode["actions"])
            demo.attrs["num_samples"] = steps
            rows = {"obs": episode["observations"][:-1]} | ({"next_obs": episode["observations"][1:]} if final else {})
            for group, values in rows.items():
                demo[f"{group}/a_place"], demo[f"{group}/object"] = values[:, :2], values[:, 2]
                demo[f"{group}/camera"] = np.zeros((steps, 4, 4, 3), np.uint8)
            demo["actions"], demo["rewards"] = episode["actions"], episode["rewards"]
            demo["dones"] = ((np.arange(steps) == steps - 1) & episode["terminated"]).astype(np.int64)
            demo["states"] = np.zeros((steps, 30))
        file["mask/train"] = np.array([b"demo_0"])
    return path


def lerobot(folder: Path, version: int, **changes: Any) -> Path:
    """Version 2 has a file for each episode, version 3 one for several."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = folder / f"lerobot{version}"
    chunk = root / "data" / "chunk-000"
    chunk.mkdir(parents=True)
    (root / "meta").mkdir()
    tables = []
    for number, episode in enumerate(episodes()):
        steps = len(episode["actions"])
        columns = {
            "observation.state": pa.array(list(episode["observations"][:-1]), pa.list_(pa.float32())),
            "action": pa.FixedSizeListArray.from_arrays(episode["actions"].ravel(), 2),
            "next.reward": pa.array(episode["rewards"]),
            "next.done": pa.array((np.arange(steps) == steps - 1) & episode["terminated"]),
            "episode_index": pa.array(np.full(steps, number)),
            "frame_index": pa.array(np.arange(steps)),
            "task_index": pa.array(np.zeros(steps, int)),
        }
        if number == 1:
            columns |= changes
        tables.append(pa.table({name: values for name, values in columns.items() if values is not None}))
    if version == 2:
        for number, each in enumerate(tables):
            pq.write_table(each, chunk / f"episode_{number:06d}.parquet")
    else:
        pq.write_table(pa.concat_tables(tables[:2]), chunk / "file-000.parquet")
        pq.write_table(tables[2], chunk / "file-001.parquet")
    info = {
        "codebase_version": f"v{version}.0",
        "fps": 10,
        "total_episodes": len(tables),
        "total_frames": sum(LENGTHS),
        "total_tasks": 1,
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return root


def npz_folder(folder: Path, **changes: Any) -> Path:
    root = folder / "episodes"
    root.mkdir()
    for number, episode in enumerate(episodes()):
        steps = len(episode["actions"])
        arrays: dict[str, Any] = {name: episode[name] for name in ("observations", "actions", "rewards", "goals")}
        arrays["terminals"] = (np.arange(steps) == steps - 1) & episode["terminated"]
        arrays |= changes if number == 1 else {}
        np.savez(root / f"{number:03d}.npz", **{name: values for name, values in arrays.items() if values is not None})
    return root


def ogbench(folder: Path, form: str = "downloaded") -> Path:
    """As it is downloaded or loaded compactly, with a row for each observation; or with next observations."""
    path = folder / "ogbench.npz"
    if form == "transitions":
        arrays = {name: values for name, values in table(final=True).items() if name not in ("timeouts", "infos/goal")}
        np.savez(path, **(arrays | {"terminals": ends("any").astype(np.float32)}))
        return path
    rows = episodes()
    final = np.concatenate([np.arange(n + 1) == n for n in LENGTHS])
    arrays = {"terminals": final}
    if form == "compact":  # the last step is marked too
        arrays = {"terminals": final | np.append(final[1:], False), "valids": ~final}
    np.savez_compressed(
        path,
        observations=np.concatenate([e["observations"] for e in rows]),
        actions=np.concatenate([np.pad(e["actions"], ((0, 1), (0, 0)), constant_values=0.5) for e in rows]),
        qpos=np.zeros((len(final), 15)),
        **{name: values.astype(np.float32) for name, values in arrays.items()},
    )
    return path
