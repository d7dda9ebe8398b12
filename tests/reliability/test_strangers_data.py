"""Data sets from strangers: what they name as their environment executes, opens and writes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec
from points import ID

from trajgen.core.errors import CheckpointError, DataError
from trajgen.data.options import DataOptions
from trajgen.envs.eval_env import EnvRecord, make_eval_env
from trajgen.envs.gym import register_envs
from trajgen.envs.strangers import check_options, trusted
from trajgen.experiments.run_folder import recorded_env

OPTIONS = DataOptions(id=ID)
TRACE = "executed"
PENDULUM: dict[str, Any] = json.loads(gymnasium.spec("Pendulum-v1").to_json())


@pytest.fixture
def name_env(lab: Path) -> Callable[..., None]:
    """Has the data set name an environment: Pendulum with other values of its spec."""

    def write(**changes: Any) -> None:
        path = lab / "sets" / ID / "data" / "metadata.json"
        about = json.loads(path.read_text())
        path.write_text(json.dumps({**about, "env_spec": json.dumps({**PENDULUM, **changes})}))

    return write


def test_the_environment_as_it_is_registered_is_made(name_env: Callable[..., None]) -> None:
    name_env(kwargs={"g": 3.7})
    assert make_eval_env(OPTIONS).make_env().unwrapped.g == 3.7


@pytest.mark.parametrize("id", ["Nowhere-v0", "trap:Nowhere-v0", "ogbench/trap:Nowhere-v0"])
def test_a_function_that_a_set_names_is_not_called(
    name_env: Callable[..., None], lab: Path, monkeypatch: pytest.MonkeyPatch, id: str
) -> None:
    (lab / "trap.py").write_text(f"import pathlib\npathlib.Path({TRACE!r}).touch()\n")
    monkeypatch.syspath_prepend(lab)
    for entry_point in ("os:system", "trap:Env"):
        name_env(id=id, entry_point=entry_point, kwargs={"command": f"touch {TRACE}"})
        with pytest.raises(DataError, match="one that is registered"):
            make_eval_env(OPTIONS)
    name_env(entry_point="os:system", kwargs={"g": 9.0})
    assert make_eval_env(OPTIONS).make_env().unwrapped.g == 9.0
    assert not (lab / TRACE).exists()


@pytest.mark.parametrize(
    ("entry_point", "kwargs"),
    [
        ("os:system", {}),
        ("gymnasium.wrappers.rendering:RecordVideo", {"video_folder": "videos"}),
        ("gymnasium.wrappers.common:deepcopy", {}),
        ("gymnasium.utils.play:play", {}),
        ("trajgen.envs.nothing:There", {}),
        ("gymnasium.wrappers.common:TimeLimit", {"max_episode_steps": 2**40}),
        ("trajgen.envs.physics:ShiftedEnv", {"mass": "/etc/passwd"}),
    ],
)
def test_wrappers_that_might_do_anything_are_refused(
    name_env: Callable[..., None], entry_point: str, kwargs: dict[str, Any]
) -> None:
    name_env(additional_wrappers=[{"name": "wrapper", "entry_point": entry_point, "kwargs": kwargs}])
    with pytest.raises(DataError, match="Pendulum"):
        make_eval_env(OPTIONS)


PATHS = ["/etc/passwd", "../../outside.xml", "./here.xml", "~/there.xml", "C:\\x.xml", "a\nb", ".hidden"]


@pytest.mark.parametrize("path", PATHS)
def test_options_name_no_file(name_env: Callable[..., None], path: str, tmp_path: Path) -> None:
    """MuJoCo's environments open the model that ``xml_file`` names, and a model may take any memory."""
    for options in ({"xml_file": path}, {"a": [{"b": path}]}):
        name_env(kwargs=options)
        with pytest.raises(DataError, match="no path"):
            make_eval_env(OPTIONS)
        received = EnvRecord("HalfCheetah-v5", options, max_episode_steps=5)
        with pytest.raises(CheckpointError, match="no path"):
            make_eval_env(DataOptions(id="nobody/none-v0"), received)


def test_environments_of_ogbench_are_registered_for_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ogbench", ModuleType("ogbench"))
    maze = "visual-pointmaze-medium-v0"
    env_spec = EnvSpec(maze, "trajgen.envs.ogbench:make_visual_point_maze", kwargs={"maze_type": "medium"})
    try:
        assert trusted(env_spec).entry_point == gymnasium.spec(maze).entry_point == env_spec.entry_point
    finally:
        gymnasium.registry.pop(maze, None)


def test_options_of_real_environments_are_taken() -> None:
    register_envs()
    kitchen = {"tasks_to_complete": ["microwave", "light switch"], "robot_noise_ratio": 0.01}
    for env_id, options in [*((each.id, each.kwargs) for each in gymnasium.registry.values()), ("kitchen", kitchen)]:
        check_options(env_id, options)


def test_a_module_before_the_last_colon_is_not_imported(stranger: Path) -> None:
    (stranger / "data.json").write_text(json.dumps({"env": {"id": "json:trap:Env-v0"}}))
    with pytest.raises(CheckpointError, match=r"imports=\[json:trap\]"):
        recorded_env(stranger)


@pytest.mark.parametrize("number", [10**400, -(10**400), 2**25])
def test_options_hold_no_number_that_is_far_too_large(stranger: Path, number: int) -> None:
    (stranger / "data.json").write_text(json.dumps({"env": {"id": "Pendulum-v1", "options": {"g": [number]}}}))
    with pytest.raises(CheckpointError, match="out of range"):
        recorded_env(stranger)
