"""What reads files in trajgen, by kind of file: each reader spoils a whole file anew for every case."""

from __future__ import annotations

import importlib.util
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import formats
import h5py
import numpy as np
import tiny
import torch
from made_set import DICT_OPTIONS, ID, write_set
from mutate import spoilt_bytes, spoilt_json, spoilt_lines, spoilt_yaml
from rich.console import Console
from structure import spoil_structure
from torch import nn

from trajgen import experiments
from trajgen.config import RECIPES, compose, read_yaml
from trajgen.core.errors import TrajgenError
from trajgen.core.files import read_json, write_json
from trajgen.data import minari, store
from trajgen.data.fingerprint import fingerprint, require_same
from trajgen.data.options import DataOptions
from trajgen.data.windows import Windows, fit_normalizer
from trajgen.engine.checkpoint import Checkpoints, Position, load_weights, write_tensors
from trajgen.envs.eval_env import make_eval_env
from trajgen.experiments.cells import Cell, Row, make_rows
from trajgen.experiments.definition import Study, Variant, read_study
from trajgen.experiments.results import gather, score
from trajgen.experiments.run_folder import identity, require_free, trained_stages
from trajgen.experiments.search import load_trials
from trajgen.experiments.search_space import read_search
from trajgen.experiments.study import check_folder
from trajgen.experiments.table import columns, markdown
from trajgen.importing import ImportOptions, from_path

CPU = torch.device("cpu")
Read = Callable[[Random], None]


class Model(nn.Module):
    """A model as small as one can be that still has what checkpoints hold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("seen", torch.tensor(3))


@dataclass
class Readers:
    """The readers, and the folder in which they write what they read.

    ``folder`` holds a data set in ``sets``, a run folder in ``run`` and a study's cells in ``study``, all whole; a case
    spoils one file of a copy, or writes it back as it was afterwards.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scratch = self.folder / "scratch"
        write_set()
        self.data = store.folder(ID) / "data"
        self.options = DICT_OPTIONS
        self.episodes = minari.load(ID, self.options)
        self.originals = {
            path: path.read_bytes() for path in (self.data / "main_data.hdf5", self.data / "metadata.json")
        }
        self.sources = self._make_sources()
        self._make_run()
        self.by_kind: Mapping[str, Read] = {
            "hdf5": self.hdf5,
            "hdf5 structure": self.hdf5_structure,
            "metadata.json": self.metadata,
            "imported": self.imported,
            "safetensors": self.checkpoint,
            "config.json": self.config,
            "data.json": self.fingerprint,
            "evaluation.json": self.evaluation,
            "study.json": self.study_folder,
            "search.json": self.search_folder,
            "metrics.jsonl": self.metrics,
            "recipe.yaml": self.recipe,
            "preset.yaml": self.preset,
            "study.yaml": self.study,
            "search.yaml": self.search,
        }

    def _make_sources(self) -> dict[str, Path]:
        """Files and folders in the formats that are imported, by name."""
        place = self.folder / "sources"
        place.mkdir(exist_ok=True)
        sources = {"d4rl": formats.d4rl(place), "robomimic": formats.robomimic(place), "npz": formats.npz_folder(place)}
        sources["ogbench"] = formats.ogbench(place)
        if importlib.util.find_spec("pyarrow"):
            sources |= {f"lerobot{version}": formats.lerobot(place, version) for version in (2, 3)}
        return sources

    def _make_run(self) -> None:
        """A run folder with a checkpoint that was never trained, and its place among a study's cells."""
        self.composed = compose(["recipe=mage", *tiny.TRAIN])
        self.run = self.folder / "run"
        planner = experiments.build_planner(self.composed, tiny.SPACE)
        Checkpoints(self.run / "checkpoints").save_final(planner)
        self.plain = {**self.composed.to_plain(), "space": asdict(tiny.SPACE), "command": "trajgen train"}
        write_json(self.run / "config.json", self.plain)
        self.figures: dict[str, Any] = {
            "env": "made up",
            "protocol": "made up",
            "seeds": [0, 2],
            "episode_returns": {"policy": [1.0, 2.0, None], "controller": [2.0, 2.0, 4.0]},
            "return": {"mean": 1.5, "iqm": 1.5, "ci95": [1.0, 2.0]},
            "normalized": {"name": "minari", "mean": 50.0, "iqm": 50.0, "ci95": [0.0, 100.0], "bounds": [0.0, 2.0]},
            "ratio_to_controller": 0.5,
            "ratio_to_controller_ci95": [0.1, 0.9],
            "success": 0.5,
            "condition_error": {"state": 0.1, "return": 0.2},
            "decision_ms": {"batch_1": {"median": 1.0}},
            "errors": [],
        }
        self.lines: list[Any] = [
            {"stage": stage, "stage_index": i, "step": 5 * n, "seconds": 1.5 * n, "total": 1.0, "usage/1": 0.5}
            for i, stage in enumerate(("tokenizer", "prior"))
            for n in range(1, 4)
        ]
        self.model = Model()
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"ema.{k}": v for k, v in self.model.state_dict().items()}
        write_tensors(self.folder / "whole.safetensors", state, Position(1, 7))
        self.checkpoint_bytes = (self.folder / "whole.safetensors").read_bytes()

    def __call__(self, kind: str, seed: int) -> None:
        """One case: a file of this kind, spoilt by this seed, is read."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        self.by_kind[kind](Random(f"{kind} {seed}"))

    # --- data sets ---------------------------------------------------------------------------------------------------

    def _read_set(self) -> None:
        try:
            minari.describe(ID)
            store.local_sets()
            episodes = minari.load(ID, self.options)
            assert np.isfinite(episodes.states).all() and len(episodes.states) == episodes.steps + len(episodes)
            require_same(fingerprint(episodes), fingerprint(episodes))
            normalizer = fit_normalizer(episodes, self.options)
            Windows(episodes, self.options, normalizer, CPU, 0).batch(0, 2)
        finally:
            for path, content in self.originals.items():
                path.write_bytes(content)

    def hdf5(self, draw: Random) -> None:
        path = self.data / "main_data.hdf5"
        path.write_bytes(spoilt_bytes(self.originals[path], draw))
        self._read_set()

    def hdf5_structure(self, draw: Random) -> None:
        """A file that HDF5 finds whole, and that Minari never wrote."""
        with h5py.File(self.data / "main_data.hdf5", "r+") as file:
            for _ in range(draw.randint(1, 3)):
                names: list[str] = []
                file.visit(names.append)
                spoil_structure(file, draw.choice(names) if names else "x", draw)
        self._read_set()

    def metadata(self, draw: Random) -> None:
        path = self.data / "metadata.json"
        about = json.loads(self.originals[path])
        for key in ("observation_space", "action_space", "env_spec", "eval_env_spec"):
            if draw.random() < 0.3:  # JSON within JSON
                about[key] = spoilt_json(json.loads(about[key]), draw).decode(errors="replace")
        content = json.dumps(about).encode() if draw.random() < 0.4 else spoilt_json(about, draw)
        path.write_bytes(content)
        try:
            make_eval_env(self.options)
        except TrajgenError:
            path.write_bytes(content)
        self._read_set()

    def imported(self, draw: Random) -> None:
        """A source of any format, one of whose files is spoilt; of an archive, perhaps an entry alone."""
        name = draw.choice([*self.sources])
        source, path = self.sources[name], self.scratch / self.sources[name].name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
        file = draw.choice(sorted(each for each in path.rglob("*") if each.is_file())) if path.is_dir() else path
        if file.suffix == ".json":
            file.write_bytes(spoilt_json(json.loads(file.read_text()), draw))
        elif file.suffix == ".npz" and draw.random() < 0.5:
            with zipfile.ZipFile(file) as archive:
                entries = {entry: archive.read(entry) for entry in archive.namelist()}
            entry = draw.choice([*entries])
            entries[entry] = spoilt_bytes(entries[entry], draw)
            with zipfile.ZipFile(file, "w") as archive:
                for entry, content in entries.items():
                    archive.writestr(entry, content)
        else:
            file.write_bytes(spoilt_bytes(file.read_bytes(), draw))
        id = "tests/imported-v0"
        from_path(path, ImportOptions(id=id, force=True, rewards="zero" if name == "ogbench" else "data"))
        episodes = minari.load(id, DataOptions(id=id))
        assert np.isfinite(episodes.states).all() and len(episodes.states) == episodes.steps + len(episodes)

    # --- run folders -------------------------------------------------------------------------------------------------

    def checkpoint(self, draw: Random) -> None:
        folder = self.scratch / "checkpoints"
        path = folder / "stage1-step0000007.safetensors"
        folder.mkdir()
        path.write_bytes(self._spoilt_checkpoint(draw))
        final = self.scratch / "final.safetensors"
        shutil.copy(path, final)
        try:
            Checkpoints(folder).read_newest(self.model, CPU, Console(quiet=True))
        finally:
            load_weights(self.model, final)

    def _spoilt_checkpoint(self, draw: Random) -> bytes:
        """Any byte spoilt, or the header alone, whose length is mended."""
        if draw.random() < 0.4:
            return spoilt_bytes(self.checkpoint_bytes, draw)
        length = int.from_bytes(self.checkpoint_bytes[:8], "little")
        header = json.loads(self.checkpoint_bytes[8 : 8 + length])
        if draw.random() < 0.5:
            header["__metadata__"].pop("sha256", None)  # as before there were checksums
        spoilt = spoilt_json(header, draw)
        return len(spoilt).to_bytes(8, "little") + spoilt + self.checkpoint_bytes[8 + length :]

    def config(self, draw: Random) -> None:
        path = self.run / "config.json"
        original = path.read_bytes()
        path.write_bytes(spoilt_json(self.plain, draw))
        try:
            identity(self.run)
            if draw.random() < 0.5:
                require_free(self.run, replace(self.composed, resume=True))
            experiments.load_policy(self.run, device="cpu")
        finally:
            path.write_bytes(original)

    def fingerprint(self, draw: Random) -> None:
        path = self.scratch / "data.json"
        recorded = fingerprint(self.episodes)
        path.write_bytes(spoilt_json(recorded, draw))
        require_same(read_json(path), recorded)

    def metrics(self, draw: Random) -> None:
        path = self.scratch / "metrics.jsonl"
        path.write_bytes(spoilt_lines(self.lines, draw))
        for stage in trained_stages(path):
            assert isinstance(stage["name"], str) and stage["minutes"] >= 0

    def _cell(self, seed: int, **files: bytes) -> Cell:
        cell = Cell(Row("one", "one", (), self.composed, {}, "one"), seed, self.scratch)
        cell.run.mkdir(parents=True)
        write_json(cell.run / "config.json", {**cell.config.to_plain(), "space": asdict(tiny.SPACE), "command": None})
        write_json(cell.run / "evaluation.json", self.figures)
        (cell.run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        return cell

    def evaluation(self, draw: Random) -> None:
        cells = [self._cell(seed) for seed in (0, 1)]
        (cells[0].run / "evaluation.json").write_bytes(spoilt_json(self.figures, draw))
        if draw.random() < 0.3:
            score(cells[0].run)
        if cells[0].is_finished():
            study = Study(name="a", variants={"one": Variant()}, seeds=(0, 1))
            results = gather(study, cells, {})
            columns(results)
            markdown(results)

    # --- studies and searches ----------------------------------------------------------------------------------------

    def study_folder(self, draw: Random) -> None:
        study = Study(name="a", variants={"one": Variant(("prior.depth=1",)), "two": Variant()})
        composed = {"one": {"seed": 1, "prior": {"depth": 1}}, "two": {"prior": {"depth": 2}}}
        content = {**study.to_plain(), "composed": composed, "command": "trajgen study"}
        (self.scratch / "study.json").write_bytes(spoilt_json(content, draw))
        check_folder(self.scratch, study, composed)

    def search_folder(self, draw: Random) -> None:
        search = read_search(RECIPES / "search" / "mage.yaml")
        chosen = {"prior.depth": 3, "engine.stages.prior.lr": 1e-3, "sampler.temperature": 0.5, "action": "latent"}
        content = {**search.to_plain(), "proposed": [chosen, chosen], "command": "trajgen search"}
        (self.scratch / "search.json").write_bytes(spoilt_json(content, draw))
        for trial in load_trials(self.scratch, search):
            search.overrides(trial.params, {})

    def recipe(self, draw: Random) -> None:
        path = self.scratch / "given.yaml"
        path.write_bytes(spoilt_yaml((RECIPES / f"{draw.choice(['mage', 'dt', 'diffuser'])}.yaml").read_text(), draw))
        read_yaml(path)
        config = compose([f"recipe={path}", "data=pointmaze/umaze-dwell", "device=cpu"])
        experiments.dry_run(replace(config, components={k: _small(v) for k, v in config.components.items()}))

    def preset(self, draw: Random) -> None:
        path = self.scratch / "given.yaml"
        path.write_bytes(spoilt_yaml((RECIPES / "data" / "pointmaze" / "umaze-dwell.yaml").read_text(), draw))
        read_yaml(path)
        compose([f"data={path}", "recipe=mage", "device=cpu"])

    def study(self, draw: Random) -> None:
        path = self.scratch / "given.yaml"
        path.write_bytes(spoilt_yaml((RECIPES / "study" / "levels.yaml").read_text(), draw))
        study = read_study(path)
        if draw.random() < 0.2:
            make_rows(replace(study, equal=("steps",)))

    def search(self, draw: Random) -> None:
        path = self.scratch / "given.yaml"
        path.write_bytes(spoilt_yaml((RECIPES / "search" / "mage.yaml").read_text(), draw))
        read_search(path).to_plain()


def _small(node: Mapping[str, Any]) -> dict[str, Any]:
    """A component at a small size, unless the case gave it another one on purpose."""
    return {k: tiny.SMALL[k] if k in ("width", "depth", "heads") and v in (64, 128, 4) else v for k, v in node.items()}
