"""``trajgen report``: one HTML page that compares runs."""

from __future__ import annotations

from pathlib import Path

from trajgen.core.errors import ConfigError, nearest

REPORT_HELP = """trajgen report DIR [DIR …] [key=value]

  DIR                      run folders, or the folder of a study, which stands for its cells; the first run is
                           the one that the others are compared to
  out=FILE.html            report-N.html if not given
  title=TEXT               of the page

The page needs no other file and no network: scores with intervals, differences on the same episodes, options
that differ, learning curves, the pictures in each run's plots/ (see 'trajgen plot'), costs, versions, and the
commands that repeat it. Nothing of a run is loaded or executed."""
OPTIONS = ("out", "title")


def report(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(REPORT_HELP)
        return
    folders, own = _sorted(words)
    if not folders:
        raise ConfigError(
            "Which runs?", expected="trajgen report DIR …", got="no folder", fix="trajgen report runs/* for all runs"
        )
    from rich.console import Console

    from trajgen.experiments.run_folder import free_path
    from trajgen.viz.report.page import report

    path = Path(own["out"]) if "out" in own else free_path(Path(), "report-{}.html")
    report(path, folders, Console(), title=own.get("title", "Runs compared"))


def _sorted(words: list[str]) -> tuple[list[Path], dict[str, str]]:
    """The folders among the words, and the options; a folder's name may hold an equals sign."""
    folders, own = [], {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in OPTIONS:
            own[key] = value
        elif equals and key.isidentifier() and not Path(word).exists():
            raise ConfigError(
                f"Unknown option '{key}'.",
                expected=", ".join(OPTIONS),
                got=word,
                fix=f"{nearest(key, OPTIONS)} Run folders are named without a key.",
            )
        else:
            folders.append(Path(word))
    return folders, own
