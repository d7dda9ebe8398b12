"""The table of the catalogue, made from the data presets."""

from __future__ import annotations

import re

from trajgen.cli.data import catalogue
from trajgen.core.tables import Table

HEADS = ("`data=`", "environment", "success", "0 and 100")


def table(_: str = "") -> str:
    """All tasks; those of a folder with the same success and bounds are in one row."""
    alike: dict[tuple[str, str, str], dict[str, str]] = {}
    for task in catalogue().values():
        data = task.options
        bounds = "; ".join(f"{low:g}, {high:g}" for low, high in data.bounds.values()) or "reference"
        success = (
            task.success.removesuffix(" at any step").removesuffix(" of the goal").removeprefix("the environment's ")
        )
        env = task.eval_env.partition(" with ")[0].partition(",")[0]
        alike.setdefault((task.name.partition("/")[0], success, bounds), {})[task.name] = env
    rows = [(abbreviated([*e], "`"), abbreviated([*e.values()]), success, at) for (_, success, at), e in alike.items()]
    return Table(HEADS, rows, numeric=False).markdown()


def abbreviated(names: list[str], quote: str = "") -> str:
    """Names without repetitions, as a shell abbreviates them: ``a/b-{1,2}, a/c{,-1}``."""
    ordered = sorted({*names}, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    folder = f"{ordered[0].rpartition('/')[0]}/".removeprefix("/")
    words = _factored([tuple(re.findall(r"[-_]?[^-_]+", name.removeprefix(folder))) for name in ordered])
    plain = [word for word in words if not {*"{-"} & {*word}]
    words = [_braces(plain)] * bool(plain) + [word for word in words if word not in plain]
    return ", ".join(f"{quote}{folder}{word}{quote}" for word in words)


def _factored(names: list[tuple[str, ...]]) -> list[str]:
    """Names in parts, with one expression for all first parts that have the same rests."""
    rests: dict[str, list[tuple[str, ...]]] = {}
    for first, *rest in names:
        rests.setdefault(first, []).append(tuple(rest))
    firsts: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for first, each in rests.items():
        firsts.setdefault(tuple(each), []).append(first)
    words: list[str] = []
    for each, same in firsts.items():
        following = [""] * (() in each) + _factored([rest for rest in each if rest])
        words += same if following == [""] else [_braces(same) + _braces(following)]
    return words


def _braces(words: list[str]) -> str:
    """One of these, with the mark before each in front where it is the same."""
    if len(words) < 2:
        return "".join(words)
    marks = {word[:1] for word in words}
    mark = marks.pop() if marks in ({"-"}, {"_"}) else ""
    return f"{mark}{{{','.join(word.removeprefix(mark) for word in words)}}}"
