"""An episode as a film: over the map or as rendered, with the plan that is followed drawn in, as a GIF or an MP4."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from trajgen.config import merged
from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.core.files import free_path, replacing, require_writable
from trajgen.core.observations import entry
from trajgen.evaluation.pool import LocalPool
from trajgen.evaluation.rollout import rollout
from trajgen.viz.figure import INK, LINES, SOFT, most_varied, new_figure, time_colors
from trajgen.viz.options import VideoRequest
from trajgen.viz.plans import (
    Limits,
    Walls,
    draw_goal,
    draw_limits,
    draw_maze,
    draw_subgoal,
    planned_states,
    planned_subgoal,
    stride_of,
)
from trajgen.viz.record_plans import record_plans

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from trajgen.envs.eval_env import EvalEnv
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy
    from trajgen.viz.run import Run

Frame = NDArray[np.uint8]  # (height, width, 3)
Update = Callable[[int], object]
"""Changes a figure to what it shows at a step."""

DPI = 100
MAP = 4.6, 5.2  # inches of a frame with a map
RASTER = 0.9  # inches of the strip that shows which scales were drawn when
SCENE = 4.2  # inches of a rendered frame's side
CURVES = 3.6  # inches of the curves beside it
MOST_CURVES = 4


def make_video(run: Run, out: Path | None, request: VideoRequest, console: Console) -> None:
    """Plays an episode of a run, and writes it as a film: to ``out``, else to a new file in the run's videos/.

    Raises:
        ConfigError: if the film could not be written, or the environment cannot be rendered on this machine.
        TrajgenError: if the episode fails.
    """
    path = out or free_path(run.folder / "videos", f"episode_{request.seed}-{{}}.gif")
    check_film(path)
    require_writable(path.parent, "out=ANOTHER, or mend the permissions")
    load, eager = run.load, {"policy": {"backend": "eager"}}  # compiled plans are the same, and cannot be recorded
    run = replace(run, load=lambda options: load(merged(options, eager)))
    env = run.eval_env
    if env.replayed_episodes:
        raise ConfigError(
            "A film needs an environment to play in, and the data name none.",
            fix="data.env_id=ID; 'trajgen plot what=plans' needs none",
        )
    with console.status("playing the episode"):
        stride = run.config.data.strides[0]
        episode = play(
            run.policy, env, request.seed, steps=request.steps, interval=request.frame_interval, stride=stride
        )
    if not episode.plans:
        planner = run.config.components["planner"]["name"]
        console.print(f"Planner '{planner}' makes no plans of states: the film shows the episode alone.", markup=False)
    with console.status("drawing"):
        limits = None if env.walls is not None or run.data is None else run.data.limits
        interval, rate = request.frame_interval, request.rate
        count = write_film(path, episode, interval=interval, rate=rate, walls=env.walls, limits=limits)
    text = f"return {episode.rewards.sum():.1f} in {len(episode.rewards)} steps, {count} frames: {path}"
    console.print(text, markup=False, soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class TimedPlan:
    """A plan made or revised at a step of the episode: the states (T, S) after each scale, coarse to fine."""

    step: int
    scales: list[NDArray[np.float32]]
    sampled: tuple[int, int] | None = None  # the numbers of the first and the last scale that were drawn, from 1
    stride: int = 1  # environment steps between points
    subgoal: NDArray[np.float32] | None = None  # (G,)


@dataclass(frozen=True)
class PlayedEpisode:
    """An episode of m steps."""

    states: NDArray[np.float32]  # (m + 1, S)
    rewards: NDArray[np.float64]  # (m,)
    goals: NDArray[np.float32] | None  # (m + 1, G), which may move
    plans: list[TimedPlan]
    frames: list[Frame] = field(repr=False)  # at `shown_steps`; none where nothing was rendered

    @property
    def shows_revisions(self) -> bool:
        """Whether a plan was revised."""
        return any(plan.sampled is not None and plan.sampled[0] > 1 for plan in self.plans)

    def plan_at(self, step: int) -> TimedPlan | None:
        """The plan that is followed at a step."""
        return next((plan for plan in reversed(self.plans) if plan.step <= step), None)


def shown_steps(last: int, interval: int) -> list[int]:
    """The steps of an episode that a film shows: those ``interval`` apart, and the last one."""
    return [*range(0, last, interval), last]


class Recorder(gymnasium.Wrapper):
    """Keeps the goal of each step of an episode of at most ``most`` steps, and renders its `shown_steps`.

    Args:
        env: whose episode it is.
        interval: steps between frames.
        most: steps.
        goal_key: entry of the observation with the goal; None where there is none.
        renders: whether there are frames.
    """

    def __init__(self, env: gymnasium.Env, interval: int, most: int, goal_key: str | None, *, renders: bool) -> None:
        super().__init__(env)
        self.interval, self.most, self.goal_key, self.renders = interval, most, goal_key, renders
        self.steps, self.frames, self.goals = 0, list[Frame](), list[NDArray[Any]]()

    def reset(self, **options: Any) -> Any:
        """Starts a new record."""
        result = self.env.reset(**options)
        self.steps, self.frames, self.goals = 0, [], []
        self._record(result[0], is_last=False)
        return result

    def step(self, action: Any) -> Any:
        """Takes a step, and records what it looks like."""
        result = self.env.step(action)
        self.steps += 1
        self._record(result[0], is_last=result[2] or result[3] or self.steps == self.most)
        return result

    def _record(self, observation: Any, *, is_last: bool) -> None:
        if self.goal_key is not None:
            self.goals.append(np.array(entry(observation, self.goal_key)))
        if self.renders and (is_last or self.steps % self.interval == 0):
            frame: Any = self.env.render()
            self.frames.append(np.asarray(frame, dtype=np.uint8)[..., :3])


def play(
    policy: RecedingHorizonPolicy,
    eval_env: EvalEnv,
    seed: int,
    *,
    steps: int | None = None,
    interval: int = 4,
    stride: int = 1,
) -> PlayedEpisode:
    """Plays one episode of at most ``steps``, and renders it where there is no map.

    Points of plans that do not name their stride are ``stride`` steps apart.

    Raises:
        ConfigError: if the environment cannot be rendered on this machine; before anything is played.
        TrajgenError: if the episode fails.
    """
    most = min(steps or eval_env.max_steps, eval_env.max_steps)
    short = replace(eval_env, max_steps=most)
    renders = eval_env.walls is None
    inner = _rendering_env(eval_env) if renders else eval_env.make_env()
    env = Recorder(inner, interval, most, eval_env.goal_key, renders=renders)
    planner = policy.planner
    try:
        with record_plans(planner, decode=True) as records:
            rollouts = rollout(policy, short, [seed], batch=1, pool=LocalPool(short, [env]))
    finally:
        env.close()
    if rollouts.errors:
        step, error = rollouts.errors[0]["step"], rollouts.errors[0]["error"]
        raise TrajgenError(
            f"The episode of seed {seed} failed at step {step}: {error}",
            fix=f"seed=N of another, or its beginning alone: steps={max(1, step)}",
        )
    plans = []
    for number, (cond, plan, first) in enumerate(records):
        states = planned_states(policy, eval_env, planner.refinements(plan, cond))
        step = number * policy.replan_interval if cond.time is None else int(cond.time[0])
        sampled = (first + 1, planner.tokenizer.schedule.scales) if policy.options.revise is not None else None
        subgoal = planned_subgoal(policy, cond)
        plans.append(TimedPlan(step, [x[0] for x in states.values()], sampled, stride_of(plan, stride), subgoal))
    plans = [plan for plan in plans if plan.scales]
    goals = np.stack(env.goals) if env.goals else None
    return PlayedEpisode(rollouts.states[0], rollouts.rewards[0], goals, plans, env.frames)


def _rendering_env(eval_env: EvalEnv) -> gymnasium.Env:
    """An environment that renders pictures, tried once."""
    env: Any = None
    try:
        env = eval_env.make_env()
        if env.spec is not None and env.render_mode != "rgb_array":
            spec = env.spec
            env.close()
            env = gymnasium.make(spec, render_mode="rgb_array")
        env.reset(seed=0)
        frame: Any = env.render()
        if np.ndim(frame) != 3:
            raise ValueError(f"render() returned {type(frame).__name__}, not a picture")
    except Exception as error:  # graphics drivers raise all kinds of errors
        if env is not None:
            with suppress(Exception):
                env.close()
        raise ConfigError(
            f"{eval_env.name} has no map and cannot render itself, which for MuJoCo needs OpenGL.",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            fix="MUJOCO_GL=egl before the command, with the system's libegl1 and libgl1-mesa-dri; or MUJOCO_GL=osmesa; "
            "'trajgen plot what=plans' needs neither",
        ) from error
    rendering: gymnasium.Env = env
    return rendering


def write_film(
    path: Path,
    episode: PlayedEpisode,
    *,
    interval: int,
    rate: float,
    walls: Walls | None = None,
    limits: Limits | None = None,
) -> int:
    """Draws an episode over the map, or as rendered with its states and the planned ones beside it, into a film.

    Args:
        path: ends in .gif or .mp4; written atomically.
        episode: with positions as its first two states where there are walls, else with rendered frames.
        interval: steps of the episode between frames, the last of which shows its end.
        rate: frames per second.

    Returns:
        How many frames there are.
    """
    returns = np.concatenate([[0.0], episode.rewards.cumsum()])
    steps = shown_steps(len(episode.rewards), interval)
    size = MAP[0], MAP[1] + RASTER * episode.shows_revisions
    if walls is None:
        height = SCENE * episode.frames[0].shape[0] / episode.frames[0].shape[1]
        size = SCENE + CURVES * bool(episode.plans), max(height, 3.0) + 0.4
    with new_figure(*size) as figure:
        if walls is not None:
            ax, update = _map_view(figure, episode, walls)
        else:
            ax, update = _scene_view(figure, episode, steps, limits)
        with replacing(path) as partial, _writer(path, rate).saving(figure, str(partial), DPI) as writer:
            for step in steps:
                title = f"step {step:4d}   return {returns[step]:.1f}"
                if episode.shows_revisions and (plan := episode.plan_at(step)) is not None and plan.sampled is not None:
                    title += f"\nscales {plan.sampled[0]} to {plan.sampled[1]} drawn at step {plan.step}"
                ax.set_title(title, loc="left", fontfamily="monospace")
                update(step)
                writer.grab_frame()
    return len(steps)


def _writer(path: Path, fps: Any) -> Any:
    import matplotlib
    from matplotlib.animation import FFMpegWriter, PillowWriter

    if path.suffix == ".gif":
        return PillowWriter(fps=fps)
    from imageio_ffmpeg import get_ffmpeg_exe

    matplotlib.rcParams["animation.ffmpeg_path"] = get_ffmpeg_exe()  # within the context of the figure
    return FFMpegWriter(fps=fps, codec="h264")


def _map_view(figure: Figure, episode: PlayedEpisode, walls: Walls) -> tuple[Any, Update]:
    if episode.shows_revisions:
        ax, raster = figure.subplots(2, height_ratios=[MAP[1], RASTER])
        handles_of_raster, cursor = draw_raster(raster, episode), raster.axvline(0, color=INK, lw=0.8)
    else:
        ax, handles_of_raster, cursor = figure.subplots(), [], None
    draw_maze(ax, walls)
    (trail,) = ax.plot([], [], color=LINES[0], lw=2.4, solid_capstyle="round", zorder=3, label="path")
    (now,) = ax.plot([], [], "o", color="white", mec=INK, mew=1.5, ms=8, zorder=6, label="now")
    (line,) = ax.plot([], [], color=INK, lw=0.9, alpha=0.7, zorder=4, label="plan")
    (coarse,) = ax.plot([], [], color=SOFT, lw=1.2, ls=(0, (2, 1.6)), zorder=2, label="plan, coarser scales")
    fine = ax.scatter([], [], s=17, linewidths=0, zorder=5)
    handles = [trail, now, line, coarse, *handles_of_raster] if episode.plans else [trail, now]
    goal = None if episode.goals is None else draw_goal(ax, episode.goals[0], 15)
    handles += [] if goal is None else [goal]
    has_subgoals = any(plan.subgoal is not None for plan in episode.plans)
    subgoal = draw_subgoal(ax, [np.nan, np.nan]) if has_subgoals else None
    if subgoal is not None:
        handles.append(subgoal)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.2)
    colors, gap = time_colors(), np.full((1, 2), np.nan)

    def update(step: int) -> None:
        trail.set_data(*episode.states[: step + 1, :2].T)
        now.set_data(*episode.states[step : step + 1, :2].T)
        if goal is not None and episode.goals is not None:
            goal.set_data(*episode.goals[step, :2, None])
        if cursor is not None:
            cursor.set_xdata([step, step])
        if (plan := episode.plan_at(step)) is not None:
            points = plan.scales[-1][:, :2]
            line.set_data(*points.T)
            fine.set_offsets(points)
            fine.set_facecolor([tuple(color) for color in colors(np.linspace(0, 1, len(points)))])
            if subgoal is not None and plan.subgoal is not None:
                subgoal.set_data(*plan.subgoal[:2, None])
            coarse.set_data(*np.concatenate([gap, *(p for scale in plan.scales[:-1] for p in (scale[:, :2], gap))]).T)

    return ax, update


def draw_raster(ax: Any, episode: PlayedEpisode) -> list[Any]:
    """Draws which scales were drawn at which step, bars from the first to the last of them; returns their handles."""
    plans, handles = [plan for plan in episode.plans if plan.sampled is not None], []
    for color, label, bars in (
        (LINES[0], "whole plan", [plan for plan in plans if plan.sampled and plan.sampled[0] == 1]),
        (LINES[1], "revision", [plan for plan in plans if plan.sampled and plan.sampled[0] > 1]),
    ):
        first, last = [np.array([plan.sampled[end] for plan in bars if plan.sampled]) for end in (0, 1)]
        steps = [plan.step for plan in bars]
        handles.append(ax.vlines(steps, first - 0.4, last + 0.4, color=color, lw=1.2, label=label))
    ax.set(xlim=(-1, len(episode.states)), xlabel="step", ylabel="scale")
    ax.set_yticks(range(1, 1 + max(plan.sampled[1] for plan in plans if plan.sampled)))
    ax.invert_yaxis()
    return handles


def _scene_view(figure: Figure, episode: PlayedEpisode, shown: list[int], limits: Limits | None) -> tuple[Any, Update]:
    features: Any = most_varied(episode.states, MOST_CURVES) if episode.plans else []
    names: list[Any] = [["scene", f"state {feature}"] for feature in features] or [["scene"]]
    axes: dict[str, Any] = figure.subplot_mosaic(names, width_ratios=[SCENE, CURVES][: len(names[0])])
    scene = axes.pop("scene")
    scene.axis("off")
    image = scene.imshow(episode.frames[0])
    steps = np.arange(len(episode.states))
    updates: list[Update] = []
    for (name, ax), feature in zip(axes.items(), features, strict=False):
        if limits is not None:
            draw_limits(ax, limits, feature)
        (past,) = ax.plot([], [], color=LINES[0], lw=1.8, label="visited")
        (future,) = ax.plot([], [], color=LINES[4], lw=1.3, marker=".", ms=3, label="plan")
        now = ax.axvline(0, color=INK, lw=0.8)
        values = np.concatenate([episode.states[:, feature], *(p.scales[-1][:, feature] for p in episode.plans)])
        room = 0.05 * max(float(np.ptp(values)), 1e-6)
        ax.set(ylim=(values.min() - room, values.max() + room), ylabel=name)
        ax.set_xlim(0, len(steps) - 1 + max((len(plan.scales[-1]) - 1) * plan.stride for plan in episode.plans))
        ax.tick_params(labelbottom=feature == features[-1])

        def update(step: int, past: Any = past, future: Any = future, now: Any = now, feature: int = feature) -> None:
            past.set_data(steps[: step + 1], episode.states[: step + 1, feature])
            now.set_xdata([step, step])
            if (plan := episode.plan_at(step)) is not None:
                points = plan.scales[-1][:, feature]
                future.set_data(plan.step + plan.stride * np.arange(len(points)), points)

        updates.append(update)
    if episode.plans:
        ax.set_xlabel("step")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    updates.append(lambda step: image.set_data(episode.frames[shown.index(step)]))
    return scene, lambda step: [update(step) for update in updates]


def check_film(path: Path) -> None:
    """Raises a ConfigError for another kind of file, one that exists, or an MP4 without its encoder."""
    if path.suffix not in (".gif", ".mp4"):
        raise ConfigError("A film is a GIF or an MP4.", got=f"out={path}", fix="out=FILE.gif or out=FILE.mp4")
    if path.exists():
        raise ConfigError(f"{path} exists, and no file is overwritten.", fix="out=ANOTHER, or remove that file first")
    if path.suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            "An MP4 needs the package imageio-ffmpeg, which is not installed.",
            fix="pip install 'trajgen[video]', or out=FILE.gif, which needs nothing more",
        )
