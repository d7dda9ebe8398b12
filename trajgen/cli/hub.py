"""``trajgen hub``: push and pull runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trajgen.cli.app import Words, app, command, group
from trajgen.cli.evaluate import existing
from trajgen.cli.overrides import read


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Options of ``trajgen hub push``."""

    run: Path
    """Run folder, whose training is finished."""
    repo: str
    """USER/NAME on the Hugging Face Hub; it is created if there is none."""
    private: bool = False
    """Whether a new repository is private."""


@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """Options of ``trajgen hub pull``."""

    repo: str
    """USER/NAME on the Hugging Face Hub."""
    out: Path | None = None
    """Folder of the run; by default runs/NAME."""


hub = group("Share runs on the Hugging Face Hub.")
app.add_typer(hub, name="hub")


@command("hub push", PushOptions, "hub push run=runs/mage-umaze-dwell-s0 repo=USER/mage-umaze", to=hub)
def push(words: Words) -> None:
    """Upload a run with a model card made of its summary, scores and pictures.

    Weights are safetensors, all else is JSON, Markdown and PNG. 'hf auth login' logs in.
    """
    options, _ = read(words, PushOptions, ())
    from trajgen.experiments import hub as runs
    from trajgen.experiments.zoo import local_folder

    folder = existing(local_folder(options.run))
    print(f"Pushed {options.run}: {runs.push(folder, options.repo, private=options.private)}")


@command("hub pull", PullOptions, "hub pull repo=USER/mage-umaze", to=hub)
def pull(words: Words) -> None:
    """Download a run. It is a stranger's: nothing in it is executed when it is read."""
    options, _ = read(words, PullOptions, ())
    from trajgen.experiments import hub as runs

    folder = runs.pull(options.repo, options.out or Path("runs") / options.repo.rpartition("/")[2])
    print(f"Pulled {folder}.  trajgen evaluate run={folder}")
