"""``trajgen report``: one HTML page that compares runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trajgen.cli.app import Words, command
from trajgen.cli.overrides import read
from trajgen.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of ``trajgen report``."""

    out: Path | None = None
    """The page; by default a new report-N.html."""
    title: str = "Runs compared"
    """Title of the page."""


@command("report", ReportOptions, "report runs/* title='Three seeds'", positional="folders")
def report(words: Words) -> None:
    """Compare runs on one HTML page.

    DIR… are run folders, or folders of studies and sweeps, which stand for their runs; the others are compared to the
    first one.
    The page has scores with intervals, differences, options, curves, pictures, costs and commands. It needs no other
    file and no network, and nothing of a run is loaded or executed.
    """
    for word in words:
        if word.startswith("run=") and not Path(word).exists():
            raise ConfigError("Runs of a report are named without run=.", got=word, fix=f"trajgen report {word[4:]}")
    folders = [word for word in words if _is_folder(word)]
    options, _ = read([word for word in words if not _is_folder(word)], ReportOptions, ())
    if not folders:
        raise ConfigError("No run folder was named.", fix="trajgen report runs/* for all runs")
    if options.out is not None and options.out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError("A report is an HTML page.", got=f"out={options.out}", fix="out=FILE.html")
    from trajgen.experiments.zoo import local_folder

    paths = [local_folder(folder) for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if not path.exists():
            raise ConfigError(f"There is no folder {folder}.", fix="trajgen report runs/* for all runs")
    from trajgen.core.files import free_path
    from trajgen.core.terminal import Terminal
    from trajgen.experiments.reporting import report as write

    page = options.out or free_path(Path(), "report-{}.html")
    write(page, paths, Terminal(), title=options.title)


def _is_folder(word: str) -> bool:
    """Whether a word names a folder, whose path may hold an equals sign."""
    key, equals, _ = word.partition("=")
    return not (equals and (key in ("out", "title") or (key.isidentifier() and not Path(word).exists())))
