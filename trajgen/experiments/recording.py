"""Recording: episodes of a policy in a Gymnasium environment, written as a Minari data set.

Each episode is a function of its seed, and is kept in a folder of its own until all are there: a recording that was
stopped goes on with the same command, and ends as one that was not.
"""

from __future__ import annotations

import copy
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.choices import ACTIONS, choices_of, is_vector
from trajgen.core.errors import ConfigError, DataError
from trajgen.core.files import file_lock, write_file, write_json
from trajgen.core.observations import nested_entries
from trajgen.core.options import differing
from trajgen.core.registry import load_imports
from trajgen.core.terminal import Terminal, progress
from trajgen.data import store
from trajgen.data.options import EnvShift
from trajgen.evaluation.pool import as_reward, check_observation
from trajgen.experiments.options import RecordOptions
from trajgen.experiments.zoo import local_folder

RECORDINGS = ".recordings"
"""Folder of unfinished recordings, hidden beside the data sets."""
OBSERVED = "observations/"
"""Before the path of an entry of the observations, in the file of an episode."""
MOST_STEPS = 1_000_000
"""Steps after which an episode of an environment without a time limit is an error."""


def record(options: RecordOptions) -> str:
    """Records a data set and returns its Minari id.

    Raises:
        ConfigError: if there is no such policy, or it gives no action of the environment.
        DataError: if the environment cannot be made or named in a data set, the set exists, another recording of its id
            was stopped, or an episode does not end or holds what no data set can.
    """
    from trajgen.data import minari
    from trajgen.envs.gym import OGBENCH, make_env, portable, spec
    from trajgen.envs.numeric import NumericObservation
    from trajgen.envs.ogbench import make_with_goals
    from trajgen.envs.shift import shifted

    if not options.force:
        store.refuse_existing(options.name)
    load_imports(options.imports)
    sys.path.insert(0, str(Path.cwd()))  # modules of one's own are looked for here, as by imports=
    try:
        env_spec = spec(options.env, max_episode_steps=options.max_episode_steps, **options.env_options)
        env_spec = portable(shifted(env_spec, options.shift or EnvShift()))
        env: Any = make_with_goals(env_spec) if options.env.startswith(OGBENCH) else make_env(env_spec)
        policy = _policy(options, env)
    finally:
        sys.path.remove(str(Path.cwd()))
    if not is_vector(env.action_space) and not choices_of(env.action_space):
        fix = "a wrapper of the environment, as gymnasium.wrappers.TransformAction"
        raise DataError(f"Actions must be {ACTIONS}.", got=f"{options.env}: {env.action_space}", fix=fix)
    if isinstance(env, NumericObservation) and env.dropped:
        kinds = {name or "the observation": type(space).__name__ for name, space in env.dropped.items()}
        entries = ", ".join(f"{name} ({space})" for name, space in kinds.items())
        Terminal(stderr=True).print(f"Left out of the observations, which hold numbers: {entries}.", highlight=False)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    team = getattr(env.unwrapped, "team", None)
    with _folder(options, _checksum(options, env)) as folder:
        paths = {options.seed + number: folder / f"{number:06d}.npz" for number in range(options.episodes)}
        missing = {seed: path for seed, path in paths.items() if not path.exists()}
        done = len(paths) - len(missing)
        with env, progress(Terminal(), "recording", len(paths), done) as show:
            for seed, path in missing.items():
                _write(path, _episode(env, policy, seed, options.name))
                show(done := done + 1, [options.name])
        minari.save(
            options.name,
            (_read(path, seed) for seed, path in paths.items()),
            env_spec=env_spec,
            eval_env_spec=env_spec,
            description=f"Recorded by trajgen: {options.policy} in {options.env}{(options.shift or EnvShift()).words}, "
            f"seeds from {options.seed} on." + (" Actions are discrete." if choices_of(env.action_space) else ""),
            algorithm=options.policy,
            team=team,
            force=options.force,
            **spaces,
        )
        shutil.rmtree(folder)
    return options.name


@contextmanager
def _folder(options: RecordOptions, checksum: str) -> Iterator[Path]:
    """The folder of the unfinished recording, locked for other processes; that of another one is removed by force."""
    folder = store.root() / RECORDINGS / store.folder(options.name).relative_to(store.root())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.with_name(f"{folder.name}.lock")):
        about = {k: v for k, v in asdict(options).items() if k not in ("episodes", "force", "device")}
        about = json.loads(json.dumps({**about, "checksum": checksum}))  # as it is read
        path = folder / "recording.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if folder.exists() and before != about:
            episodes = len(list(folder.glob("*.npz")))
            if episodes and not options.force:
                raise DataError(
                    f"Another recording of {options.name} was stopped, with {episodes} of its episodes.",
                    got="; ".join(differing(before, about)),
                    fix="its options, with which it goes on; id=ANOTHER; or force=true, which removes it",
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, about)
        yield folder


def _checksum(options: RecordOptions, env: Any) -> str:
    """Of the files that hold the environment and the policy: what an episode follows from besides the options."""
    modules, files = [type(env.unwrapped).__module__], []
    if options.policy != "random":
        run = local_folder(options.policy)
        if run.is_dir():
            files = [run / "config.json", *sorted((run / "checkpoints").glob("*.safetensors"))]
        else:
            modules.append(options.policy.partition(":")[0])
    files += [Path(file) for name in modules if (file := getattr(sys.modules.get(name), "__file__", None))]
    digest = sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _policy(options: RecordOptions, env: Any) -> Callable[[int], Callable[[Any], Any]]:
    """From the seed of an episode to the policy that plays it."""
    if options.policy == "random":

        def random(seed: int) -> Callable[[Any], Any]:
            env.action_space.seed(seed)
            return lambda observation: env.action_space.sample()

        return random
    if local_folder(options.policy).is_dir():
        from trajgen.experiments.loading import load_policy

        run = load_policy(options.policy, device=options.device)

        def of_run(seed: int) -> Callable[[Any], Any]:
            run.reset()
            run.seed_noise(seed)
            return run.act

        return of_run
    module, colon, name = options.policy.partition(":")
    try:
        policy: Any = getattr(import_module(module), name) if colon else None
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The policy {options.policy!r} cannot be imported: {error}.",
            fix="MODULE:NAME of a file MODULE.py in the current folder, or of an installed package",
        ) from error
    if policy is None:
        raise ConfigError(
            "A policy is random, the folder of a run, or my_module:NAME.",
            got=f"policy={options.policy}",
            fix="policy=random",
        )
    if isinstance(policy, type):
        parameters = inspect.signature(policy).parameters
        required = any(p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD for p in parameters.values())
        policy = policy(env=env) if "env" in parameters else policy(env) if required else policy()

    if hasattr(policy, "reset"):
        _require_plain_reset(policy.reset, options.policy)

    def seeded(seed: int) -> Callable[[Any], Any]:
        np.random.seed(seed)
        if hasattr(policy, "reset"):
            policy.reset()
        return policy.act if hasattr(policy, "act") else policy

    return seeded


def _require_plain_reset(reset: Any, name: str) -> None:
    """Raises a `ConfigError` if a policy's ``reset`` needs arguments."""
    with suppress(ValueError):  # of what is not written in Python nothing is known
        signature = inspect.signature(reset)
        try:
            signature.bind()
        except TypeError as error:
            raise ConfigError(
                "The reset of a policy is called without arguments before each episode.",
                got=f"{name}: reset{signature}",
                fix="defaults for its arguments; a class with a parameter env is made with the environment",
            ) from error


def _episode(env: Any, policy: Callable[[int], Callable[[Any], Any]], seed: int, name: str) -> dict[str, Any]:
    """An episode as flat arrays: observations by their path, actions, rewards, whether it was terminated."""
    observation, _ = env.reset(seed=seed)
    act = policy(seed)
    observer = getattr(getattr(act, "__self__", None), "observe", None)
    observations, actions, rewards = [_checked(env, observation, 0.0, seed, 0)[0]], [], []
    for step in range(1, MOST_STEPS + 1):
        answer = act(observation)
        action = _as_in(env.action_space, answer)
        if not env.action_space.contains(action):
            raise ConfigError(
                "A policy gives actions of the environment.",
                expected=str(env.action_space),
                got=f"{type(answer).__name__} {answer!r} in the episode of seed {seed}"[:300],
            )
        actions.append(np.array(action))  # a copy: a policy may reuse its array
        observation, reward, terminated, truncated, _ = env.step(action)
        copied, reward = _checked(env, observation, reward, seed, step)
        observations.append(copied)
        rewards.append(reward)
        done = terminated or truncated
        if observer is not None:
            observer(reward, done)
        if done:
            columns = {OBSERVED + k: np.stack(v) for k, v in _columns(observations).items()}
            ends = {"terminated": np.array(terminated), "rewards": np.array(rewards), "actions": np.array(actions)}
            return columns | ends
    raise DataError(f"An episode of {name} does not end within {MOST_STEPS:,} steps.", fix="max_episode_steps=1000")


def _as_in(space: Any, action: Any) -> Any:
    """Numbers for a box of floats in the precision of the box; any other action as it is."""
    if is_vector(space):
        with suppress(ValueError, TypeError), np.errstate(over="ignore"):  # what is too large is infinite, and refused
            return np.asarray(action, space.dtype)
    return action


def _checked(env: Any, observation: Any, reward: Any, seed: int, step: int) -> tuple[Any, float]:
    """A copy of an observation, whose array may be reused, and the reward; an error if no data set can hold them."""
    try:
        check_observation(observation, env.observation_space)
        return copy.deepcopy(observation), as_reward(reward)
    except (ValueError, TypeError) as error:
        raise DataError(
            "Observations have the shapes of their space, and they and rewards are finite.",
            got=f"step {step} of the episode of seed {seed}: {error}",
            fix="mend the environment",
        ) from error


def _columns(observations: list[Any], where: str = "") -> dict[str, list[Any]]:
    if not isinstance(observations[0], Mapping):
        return {where: observations}
    columns: dict[str, list[Any]] = {}
    for key in observations[0]:
        columns |= _columns([each[key] for each in observations], f"{where}/{key}" if where else str(key))
    return columns


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    import io

    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_file(path, content.getvalue())


def _read(path: Path, seed: int) -> dict[str, Any]:
    """The entries of Minari's EpisodeBuffer for a kept episode."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    leaves = {name.removeprefix(OBSERVED): values for name, values in arrays.items() if name.startswith(OBSERVED)}
    last_step = np.arange(len(arrays["rewards"])) == len(arrays["rewards"]) - 1
    terminated = bool(arrays["terminated"])
    return {
        "seed": seed,
        "observations": leaves[""] if "" in leaves else nested_entries(leaves, dict),
        "actions": arrays["actions"],
        "rewards": arrays["rewards"],
        "terminations": last_step & terminated,
        "truncations": last_step & (not terminated),
    }
