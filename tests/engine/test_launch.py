"""What a launcher says of the processes that train together, and the device of each."""

from __future__ import annotations

import pytest
import torch

from trajgen import cli
from trajgen.core.errors import ConfigError
from trajgen.engine import distributed
from trajgen.engine.launch import Launch, first_node, read_launch

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NODELIST": "gpu[03-05,9],other",
}  # fmt: skip


def test_launchers() -> None:
    assert read_launch({}) == Launch() == read_launch({"RANK": "0", "WORLD_SIZE": "1"})
    assert read_launch(TORCHRUN) == Launch(5, 8, 1, "env://")
    assert read_launch(SRUN) == Launch(5, 8, 1, "tcp://gpu03:24567")
    assert read_launch(SRUN | TORCHRUN).init_method == "env://"
    batch_script = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}
    assert read_launch(batch_script) == Launch()
    for nodes, first in {"a": "a", "a,b": "a", "n[7]": "n7", "n[007-010],m": "n007", "n[1,3]-ib": "n1-ib",
                         "a,n[1-2]": "a"}.items():  # fmt: skip
        assert first_node(nodes) == first
    for change in ({"RANK": "8"}, {"RANK": "one"}, {"MASTER_PORT": ""}, {"LOCAL_RANK": ""}):
        with pytest.raises(ConfigError, match="torchrun"):
            read_launch(TORCHRUN | change)
    with pytest.raises(ConfigError):
        read_launch({k: v for k, v in SRUN.items() if k != "SLURM_LOCALID"})


def test_each_process_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    count = [4]
    monkeypatch.setattr(distributed, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count[0])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    local_device = distributed.local_device
    assert local_device("cpu", Launch(5, 8, 3)) == torch.device("cpu")
    assert local_device("cuda", Launch(5, 8, 3)) == torch.device("cuda", 3)
    for name, number in (("cuda:1", 1), ("cuda", 4)):
        with pytest.raises(ConfigError, match="at most 4 processes"):
            local_device(name, Launch(5, 8, number))
    count[0] = 1
    with pytest.raises(ConfigError):
        local_device("cuda", Launch(5, 8, 3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as submitit sets it, and SLURM with --gpus-per-task=1
    assert local_device("cuda", Launch(5, 8, 3)) == torch.device("cuda", 0)


def test_a_sweep_by_many_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", "-m", "seed=0,1"])
    assert exit.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Process 5: ")
