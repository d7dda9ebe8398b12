"""Spoilt files: each ends in a clean refusal or in correct work; never in another exception, a hang, or 2 GiB."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from box import MEMORY, play
from readers import Readers

from trajgen.core.errors import TrajgenError

SHARES = {
    "hdf5": 35,
    "hdf5 structure": 25,
    "metadata.json": 15,
    "imported": 15,
    "safetensors": 20,
    "config.json": 20,
    "data.json": 8,
    "evaluation.json": 12,
    "study.json": 10,
    "search.json": 8,
    "metrics.jsonl": 10,
    "recipe.yaml": 6,
    "preset.yaml": 4,
    "study.yaml": 7,
    "search.yaml": 5,
}
"""Cases of each kind of file among 200."""
CASES = int(os.environ.get("TRAJGEN_FUZZ_CASES", "200"))
FIRST = int(os.environ.get("TRAJGEN_FUZZ_SEED", "0"))
"""Seed of the first case of each kind; a nightly target may begin where no one has been."""
REGRESSIONS: dict[str, tuple[int, ...]] = {
    "hdf5 structure": (39, 49, 120, 144, 100774, 100791),
    "metadata.json": (8, 15, 46, 54, 58, 153),
    "config.json": (100488,),
    "evaluation.json": (6, 7, 8, 14, 28, 30, 34, 40, 65, 93, 114, 132, 171),
    "study.json": (0, 14, 24, 25, 43, 46, 60, 86, 137),
    "recipe.yaml": (10, 49, 68, 74, 89),
}
"""Seeds that found a defect once, by kind of file; ``test_found.py`` has what they found, one of each kind."""

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits on memory are those of Linux"),
    pytest.mark.timeout(60 + 5 * CASES),
]


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Readers]:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "sets"))
        patch.chdir(folder)
        yield Readers(folder)


def test_the_shares_are_those_of_200_and_of_all_readers(readers: Readers) -> None:
    assert sum(SHARES.values()) == 200 and SHARES.keys() == readers.by_kind.keys()


@pytest.mark.parametrize("kind", SHARES)
def test_spoilt_files_are_refused_or_read(kind: str, readers: Readers) -> None:
    count = -(-SHARES[kind] * CASES // 200)
    seeds = dict.fromkeys((*REGRESSIONS.get(kind, ()), *range(FIRST, FIRST + count)))
    outcomes = play([(kind, seed) for seed in seeds], readers)
    counts = f"{outcomes.refused} refused, {outcomes.worked} worked, {outcomes.peak / 2**20:.0f} MiB"
    print(f"{kind}: {len(seeds)} cases, {counts}")
    assert not outcomes.defects, str(outcomes)
    assert outcomes.peak < MEMORY
    assert outcomes.refused > 0.1 * len(seeds)


def test_whole_files_are_read(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused that is not spoilt: otherwise the cases above would say nothing."""
    import readers as module

    monkeypatch.setattr(module, "spoilt_bytes", lambda content, _: content)
    monkeypatch.setattr(module, "spoilt_json", lambda value, _: module.json.dumps(value).encode())
    monkeypatch.setattr(module, "spoilt_lines", lambda v, _: "".join(module.json.dumps(x) + "\n" for x in v).encode())
    monkeypatch.setattr(module, "spoilt_yaml", lambda text, _: text.encode())
    monkeypatch.setattr(module, "spoil_structure", lambda *_: None)
    refused = {}
    for kind in SHARES:
        try:
            readers(kind, 0)
        except TrajgenError as error:
            refused[kind] = str(error)
    assert not refused
