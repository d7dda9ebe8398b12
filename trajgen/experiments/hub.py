"""Runs on the Hugging Face Hub: a model card, weights as safetensors, and plain JSON; nothing in them is executed.

What is pulled is a stranger's run folder: only the files of a run are fetched, and it is read as any other one is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trajgen.core.errors import CheckpointError, ConfigError, DataError, TrajgenError
from trajgen.core.files import read_json, write_file
from trajgen.experiments.run_folder import load_config, read_config, read_evaluation
from trajgen.experiments.zoo import HUB
from trajgen.security import read_limited

FILES = ("config.json", "versions.json", "data.json", "evaluation.json", "metrics.jsonl", "summary.md")
WEIGHTS = ("checkpoints/final.safetensors", "checkpoints/best.safetensors")
PATTERNS = (*FILES, *WEIGHTS, "plots/*.png")
"""What of a run folder is shared."""
PULLED = Path(".cache", "huggingface")
"""What the client leaves in a folder that it downloads into."""
SOURCE = PULLED / "repo"
"""The repository that a folder was pulled from."""
LARGEST, LONGEST_NAME = 20 * 2**30, 1000
"""Bytes of the largest file that is pulled, and of a repository's name."""


def push(run: Path, repo: str, *, private: bool = False) -> str:
    """Uploads a run with a model card, and returns the address of its page.

    Args:
        run: the folder of a finished run.
        repo: USER/NAME, which is created if there is none; else empty, or a run, which is replaced.
        private: whether a new one is private.

    Raises:
        CheckpointError: if the folder is not that of a run.
        ConfigError: if its training is not finished, the repository holds something else or is public where it should
            be private, or the client is not installed.
        DataError: if the hub refuses it.
    """
    config, _ = load_config(run)
    if not (run / WEIGHTS[0]).is_file():
        raise ConfigError(f"{run} holds no finished training.", fix="the same command with resume=true finishes it")
    hub = _client()
    with TemporaryDirectory() as staging, _errors(repo):
        folder = Path(staging)
        for path in (path for pattern in PATTERNS for path in sorted(run.glob(pattern))):
            (folder / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.relative_to(run))
        plain = read_config(run) | {"run_dir": None}  # a path of this machine
        (folder / "config.json").write_text(json.dumps(plain, indent=2), encoding="utf-8")
        (folder / "README.md").write_text(model_card(run, repo, config.recipe), encoding="utf-8")
        api = hub.HfApi(endpoint=_endpoint())
        if api.repo_exists(repo):
            _require_replaceable(api, repo, private)
        api.create_repo(repo, private=private, exist_ok=True)
        message = f"{config.recipe} on {config.data.id}"
        # what the run that is replaced had beyond this one would pass for this one's
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, delete_patterns=list(PATTERNS))
    return f"{_endpoint() or 'https://huggingface.co'}/{repo}"


def _require_replaceable(api: Any, repo: str, private: bool) -> None:
    """Raises a `ConfigError` unless a repository is empty or holds a run, and is private if it should be."""
    info = api.model_info(repo)
    if private and not info.private:
        raise ConfigError(
            "A new repository is private; one that is there stays as it is.",
            got=f"private=true for {repo}, which is public",
            fix="another name, or make it private on its page",
        )
    names = {each.rfilename for each in info.siblings or []} - {".gitattributes"}  # which the hub puts there
    config: dict[str, Any] = {}
    if "config.json" in names:
        with TemporaryDirectory() as folder, suppress(CheckpointError):
            config = read_json(Path(api.hf_hub_download(repo, "config.json", revision=info.sha, local_dir=folder)))
    if names and not {"recipe", "data", "engine"} <= config.keys():
        raise ConfigError(
            "A run is pushed into a new or empty repository, or over a run.",
            got=f"{repo}, which holds {', '.join(sorted(names)[:4])}",
            fix="repo=USER/ANOTHER_NAME",
        )


def pull(repo: str, folder: Path | None = None) -> Path:
    """Downloads a run, or what of it is new, and returns its folder.

    Args:
        repo: USER/NAME.
        folder: where it is put; None for one below ``~/.cache/trajgen/hub`` or ``$XDG_CACHE_HOME``.

    Raises:
        ConfigError: if the client is not installed, or the folder holds something else, which would be overwritten.
        DataError: if there is no such run, or a file is too large.
        CheckpointError: if what is there is not a run that can be read.
    """
    if len(repo.split("/")) != 2 or not all(repo.split("/")) or ".." in repo:
        raise ConfigError("A run on the hub is named USER/NAME.", got=repo)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trajgen" / "hub"
    folder = folder or cache / repo.replace("/", "--")
    _require_source(folder, repo)
    hub = _client()
    with _errors(repo):
        api = hub.HfApi(endpoint=_endpoint())
        info = api.model_info(repo, files_metadata=True)
        large = [each.rfilename for each in info.siblings or [] if (each.size or 0) > LARGEST]
        names = {each.rfilename for each in info.siblings or []}
        if large or "config.json" not in names:
            raise DataError(
                f"{repo} is no run of trajgen.", got=f"{large[0]} is too large" if large else "no config.json in it"
            )
        write_file(folder / SOURCE, repo)
        api.snapshot_download(repo, revision=info.sha, local_dir=folder, allow_patterns=list(PATTERNS))
    for name in set(WEIGHTS) - names:  # of an earlier pull
        (folder / name).unlink(missing_ok=True)
    load_config(folder)
    return folder


def _require_source(folder: Path, repo: str) -> None:
    """Raises a `ConfigError` unless a folder is new or empty, or was pulled from a repository."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    source = read_limited(folder / SOURCE, LONGEST_NAME) if (folder / SOURCE).is_file() else ""
    if not (folder / PULLED).is_dir() or source not in ("", repo):  # pulled by an earlier version, it has no source
        raise ConfigError(
            "A run is pulled into a new folder, or into that of an earlier pull of it.",
            got=f"{folder}, which was " + (f"pulled from {source}" if source else "not pulled"),
            fix="out=ANOTHER",
        )


def model_card(run: Path, repo: str, recipe: str) -> str:
    """The README.md of a run on the hub: its scores as metadata, how it is loaded, its summary and its pictures."""
    hub = _client()
    results = []
    path = run / "evaluation.json"
    if path.is_file():
        evaluation = read_evaluation(path)
        env = str(evaluation.get("env", "environment"))
        scores = {
            "mean_return": (evaluation.get("return") or {}).get("mean"),
            "ratio_to_controller": evaluation.get("ratio_to_controller"),
            "success_rate": evaluation.get("success"),
        }
        for metric, value in scores.items():
            if isinstance(value, int | float):
                results.append(
                    hub.EvalResult(
                        task_type="reinforcement-learning",
                        dataset_type=env,
                        dataset_name=env,
                        metric_type=metric,
                        metric_value=round(float(value), 4),
                        metric_name=metric.replace("_", " "),
                    )
                )
    data = hub.ModelCardData(
        library_name="trajgen",
        tags=["reinforcement-learning", "offline-rl", "trajgen", recipe],
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    loading = f'import trajgen\n\npolicy = trajgen.load_policy("{HUB}{repo}")'
    summary = (run / "summary.md").read_text(encoding="utf-8") if (run / "summary.md").is_file() else f"# {recipe}\n"
    summary = summary.partition("## What to do next")[0]  # with paths of the machine where it was trained
    return f"---\n{data.to_yaml()}\n---\n\n{summary.rstrip()}\n\n## To load it\n\n```python\n{loading}\n```\n"


def _endpoint() -> str | None:
    """Another hub than the client's own, as the client names it."""
    return os.environ.get("HF_ENDPOINT") or None


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            "Sharing runs needs the package huggingface_hub.", fix="pip install 'trajgen[hub]'"
        ) from error
    return huggingface_hub


@contextmanager
def _errors(repo: str) -> Iterator[None]:
    """What the client raises, as an error that says what to do."""
    try:
        yield
    except TrajgenError:
        raise
    except Exception as error:  # the client passes on the errors of whatever it fetches by
        status = getattr(getattr(error, "response", None), "status_code", None)
        is_refused = status in (401, 403, 404)
        raise DataError(
            f"The hub does not answer for {repo!r}.",
            got=(str(error).strip() or type(error).__name__).splitlines()[0][:300],
            fix="a name that exists; 'hf auth login' for one that is private or yours" if is_refused else "a network",
        ) from error
