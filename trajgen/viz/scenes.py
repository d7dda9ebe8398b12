"""The frames of a film: an episode over the map, or as rendered, with the plan that is followed drawn in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.evaluation.figures import GOAL, INK, LINES, SOFT, drawn_figure, time_colours
from trajgen.viz.episode import Frame, MadePlan, Played
from trajgen.viz.plots import Walls, draw_maze
from trajgen.viz.run import DataRange

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
MAP = 4.6, 5.2  # inches of a frame with a map
SCENE = 4.2  # inches of a rendered frame's side
CURVES = 3.6  # inches of the curves beside it
MOST_CURVES = 4


def steps_shown(played: Played, every: int) -> range:
    """The steps of an episode that become frames."""
    return range(0, len(played.states), every)


def map_frames(played: Played, walls: Walls, every: int) -> Iterator[Frame]:
    """Frames of an episode over the map: the trail, the goal, and the current plan with its coarser scales.

    Args:
        played: with positions as the first two entries of its states.
        walls: of the map.
        every: steps of the episode between frames.
    """
    earned = np.concatenate([[0.0], played.rewards.cumsum()])
    with drawn_figure(*MAP) as figure:
        ax = figure.subplots()
        draw_maze(ax, walls)
        ax.set_title(" ", loc="left", fontfamily="monospace")
        if played.goal is not None:
            ax.plot(*played.goal[:2], "*", color=GOAL, mec="white", mew=0.8, ms=15, ls="none", zorder=4, label="goal")
        (trail,) = ax.plot([], [], color=LINES[0], lw=2.4, solid_capstyle="round", zorder=3, label="path")
        (coarse,) = ax.plot([], [], color=SOFT, lw=1.2, ls=(0, (2, 1.6)), zorder=2, label="plan, coarser scales")
        fine = ax.scatter([], [], s=17, linewidths=0, zorder=5, label="plan")
        (line,) = ax.plot([], [], color=INK, lw=0.9, alpha=0.7, zorder=4)
        (now,) = ax.plot([], [], "o", color="white", mec=INK, mew=1.5, ms=8, zorder=6, label="now")
        handles = [trail, now, line, coarse] if played.plans else [trail, now]
        line.set_label("plan")
        if played.goal is not None:
            handles.append(ax.get_lines()[0])
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, columnspacing=1.2)
        colors = time_colours()
        for step in steps_shown(played, every):
            trail.set_data(*played.states[: step + 1, :2].T)
            now.set_data(*played.states[step : step + 1, :2].T)
            plan = played.plan_at(step)
            if plan is not None:
                points = plan.scales[-1][:, :2]
                line.set_data(*points.T)
                fine.set_offsets(points)
                fine.set_facecolor([tuple(color) for color in colors(np.linspace(0, 1, len(points)))])
                coarse.set_data(*_joined(plan).T)
            ax.set_title(_caption(played, step, earned), loc="left", fontfamily="monospace")
            yield _picture(figure)


def scene_frames(played: Played, every: int, stride: int, data: DataRange | None = None) -> Iterator[Frame]:
    """Frames of a rendered episode; beside each the states that were and, from now on, those that are planned.

    Args:
        played: with a rendered frame for each of its steps that is shown.
        every: steps of the episode between frames.
        stride: steps between the points of a plan.
        data: whose range is drawn behind the curves.
    """
    earned = np.concatenate([[0.0], played.rewards.cumsum()])
    planned = bool(played.plans)
    height = SCENE * played.frames[0].shape[0] / played.frames[0].shape[1]
    with drawn_figure(SCENE + CURVES * planned, max(height, 3.0) + 0.4) as figure:
        panels: Any = figure.subplots(1, 1 + planned, squeeze=False, width_ratios=[SCENE, CURVES][: 1 + planned])[0]
        scene = panels[0]
        scene.axis("off")
        image = scene.imshow(played.frames[0])
        curves = _Curves(figure, panels[1], played, stride, data) if planned else None
        for frame, step in zip(played.frames, steps_shown(played, every), strict=False):
            image.set_data(frame)
            scene.set_title(_caption(played, step, earned), loc="left", fontfamily="monospace")
            if curves is not None:
                curves.show(step)
            yield _picture(figure)


class _Curves:
    """The states that vary most, over the steps of the episode."""

    def __init__(self, figure: Figure, place: Any, played: Played, stride: int, data: DataRange | None) -> None:
        self.played, self.stride = played, stride
        spread = played.states.std(0)
        self.shown = np.sort(np.argsort(-spread, kind="stable")[:MOST_CURVES])
        grid = place.get_subplotspec().subgridspec(len(self.shown), 1)
        place.remove()
        self.axes = grid.subplots(sharex=True, squeeze=False)[:, 0]
        reach = (max(len(plan.scales[-1]) for plan in played.plans) - 1) * stride
        self.lines = []
        for ax, feature in zip(self.axes, self.shown, strict=True):
            if data is not None:
                ax.axhspan(
                    data.low[feature], data.high[feature], color=SOFT, alpha=0.15, lw=0, label="98 % of the data"
                )
            (past,) = ax.plot([], [], color=LINES[0], lw=1.8, label="lived through")
            (coming,) = ax.plot([], [], color=LINES[4], lw=1.3, marker=".", ms=3, label="plan")
            self.lines.append((past, coming, ax.axvline(0, color=INK, lw=0.8)))
            values = np.concatenate([played.states[:, feature], *(p.scales[-1][:, feature] for p in played.plans)])
            room = 0.05 * max(float(np.ptp(values)), 1e-6)
            ax.set_ylim(values.min() - room, values.max() + room)
            ax.set_xlim(0, len(played.states) - 1 + reach)
            ax.set_ylabel(f"state {feature}")
        self.axes[-1].set_xlabel("step")
        figure.legend(*self.axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=8)

    def show(self, step: int) -> None:
        plan = self.played.plan_at(step)
        for (past, coming, now), feature in zip(self.lines, self.shown, strict=True):
            past.set_data(np.arange(step + 1), self.played.states[: step + 1, feature])
            now.set_xdata([step, step])
            if plan is not None:
                points = plan.scales[-1][:, feature]
                coming.set_data(plan.step + self.stride * np.arange(len(points)), points)


def _joined(plan: MadePlan) -> np.ndarray:
    """The coarser scales' paths one after the other, a gap of no numbers between them."""
    gap = np.full((1, 2), np.nan)
    parts = [part for scale in plan.scales[:-1] for part in (scale[:, :2], gap)]
    return np.concatenate(parts) if parts else np.empty((0, 2))


def _caption(played: Played, step: int, earned: np.ndarray) -> str:
    return f"step {step:4d}   return {earned[step]:.1f}"


def _picture(figure: Figure) -> Frame:
    """The figure as it is now; its sides are even, as codecs of films want them."""
    canvas: Any = figure.canvas
    figure.set_dpi(DPI)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), dtype=np.uint8)
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    return pixels[:height, :width, :3].copy()
