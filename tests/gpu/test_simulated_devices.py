"""Which of several simulated CUDA devices is used, what lies on it, and what is said when it is too small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small
import tiny
import torch
from simulated import SimulatedCuda, device_of
from test_simulated import same_state, train

from trajgen import load_policy
from trajgen.config import compose
from trajgen.core.errors import ConfigError, TrainingError
from trajgen.core.types import Batch
from trajgen.data import minari, windows
from trajgen.data.windows import Windows
from trajgen.engine.device import choose_device
from trajgen.evaluation.hardware import hardware
from trajgen.experiments import ready
from trajgen.export import package
from trajgen.viz.run import Run

pytestmark = pytest.mark.simulated


def test_a_device_with_a_number_is_used_alone(tmp_path: Path) -> None:
    with SimulatedCuda(devices=2) as simulation:
        device = choose_device("cuda:1")
        assert simulation.index == 1 and hardware(device)["cuda"] == "Simulated 1"
        setup = small.Setup("bc", "cuda:1")
        train(setup, setup.source, tmp_path)
        assert simulation.events[1] and not simulation.events[0]
        assert {device_of(value) for value in setup.planner.state_dict().values()} == {torch.device("cuda:1")}
        assert set(simulation.captures) == {1}
        torch.cuda.set_device(0)  # a process may have policies on several devices
        assert np.isfinite(small.actions(setup.policy(backend="cuda_graph"))).all()
        assert set(simulation.captures) == {1} and simulation.index == 0


def test_graphs_are_captured_on_one_device_after_the_other(tmp_path: Path) -> None:
    with SimulatedCuda(devices=2) as simulation:
        for device in ("cuda:0", "cuda:1"):
            choose_device(device)
            trained, captured, acting = (small.Setup(recipe, device) for recipe in ("bc", "bc", "mage"))
            for setup, graph in ((trained, False), (captured, True)):
                train(setup, setup.source, tmp_path / f"{device} {graph}", cuda_graph=graph)
            same_state(captured, trained)
            tiny.shake(acting.planner)
            options = {"replan_interval": 1, "revise": None}
            plans = [small.actions(acting.policy(backend=name, **options), 2) for name in ("eager", "cuda_graph")]
            np.testing.assert_allclose(plans[1], plans[0], atol=1e-5)
        assert simulation.captures[0] == simulation.captures[1] > 0


def test_a_device_that_is_not_there_is_refused() -> None:
    with SimulatedCuda(), pytest.raises(ConfigError, match=r"no device=cuda:7(?s:.*)fix: +device=cuda or cuda:0"):
        choose_device("cuda:7")
    with SimulatedCuda(devices=4), pytest.raises(ConfigError, match="cuda:0 to cuda:3"):
        choose_device("cuda:4")


def test_hardware_names_no_device_that_was_not_used() -> None:
    with SimulatedCuda():
        assert hardware(torch.device("cpu"))["cuda"] is hardware()["cuda"] is None


def windows_on(device: str) -> Windows:
    return small.Setup("mage", device).source


def values(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("where", ["too large", "mapped"])
def test_data_that_stay_on_the_host_are_copied_without_a_wait(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four copies a batch at most, of pinned memory; the batches are those of the CPU."""
    monkeypatch.setattr(windows, "is_mapped", lambda episodes: where == "mapped")
    expected = [values(windows_on("cpu").batch(step, 8)) for step in (0, 1, 2, 7)]
    with SimulatedCuda(memory=2**10 if where == "too large" else 2**40) as simulation:
        source = windows_on("cuda")
        assert not source.on_device
        simulation.waits.clear()
        simulation.launches.clear()
        for step, cpu in zip((0, 1, 2, 7), expected, strict=True):
            batch = source.batch(step, 8)
            assert device_of(batch.states).type == "cuda"
            assert not simulation.waits and simulation.launches.pop("_to_copy") <= 4
            on_device = values(batch)
            simulation.waits.clear()
            assert on_device.keys() == cpu.keys()
            for name, value in cpu.items():
                torch.testing.assert_close(on_device[name], value, rtol=0, atol=0)


def test_data_that_fit_lie_on_the_device_once() -> None:
    with SimulatedCuda():
        setup = small.Setup("mage", "cuda", val_fraction=0.25)
        validation = setup.source.validation(small.episodes())
        assert setup.source.on_device and validation._fields is setup.source._fields
        assert device_of(validation.batch(0, 4).states).type == "cuda"


def test_a_recipe_trains_on_data_of_the_host(tmp_path: Path) -> None:
    """And mage in ``test_cuda_recipes.py``."""
    with SimulatedCuda(memory=2**10):
        setup = small.Setup("dt", "cuda")
        train(setup, setup.source, tmp_path)
        assert all(value.isfinite().all() for value in setup.planner.parameters())


def test_memory_that_runs_out_while_a_model_is_loaded_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    move = torch.nn.Module.to

    def to(module: torch.nn.Module, device: Any) -> torch.nn.Module:
        if torch.device(device).type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")
        return move(module, device)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    message = r"no memory left for {}(?s:.*)cuda:0: CUDA out of memory. Tried to allocate 20.00 MiB.\n"
    with SimulatedCuda():
        with pytest.raises(ConfigError, match=message.format("the model of [^\n]+")):
            load_policy("zoo/mage-umaze", device="cuda:0")
        with pytest.raises(ConfigError, match=message.format("a model of [0-9,]+ weights")):
            ready(compose(["recipe=bc", "data.horizon=8"]), small.episodes(), torch.device("cuda:0"))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("waits", "message"), [(False, "CUDA out of memory"), (True, "not permitted when")])
def test_an_error_of_a_capture_is_the_first_one(trained: bool, waits: bool, message: str, tmp_path: Path) -> None:
    """Although the end of a capture that a wait has spoilt fails too; memory that runs out is no fault of capturing."""
    with SimulatedCuda() as simulation:
        setup = small.Setup("bc", "cuda")

        def fails(function: Any) -> Any:
            def failing(*args: Any, **options: Any) -> Any:
                if waits and simulation._graph is not None:
                    torch.ones(1, device="cuda").tolist()
                if simulation._graph is not None:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")
                return function(*args, **options)

            return failing

        if trained:
            stages = [replace(stage, loss=fails(stage.loss)) for stage in setup.planner.stages()]
            setup.planner.stages = lambda: stages
            with pytest.raises(TrainingError, match=message) as caught:
                train(setup, setup.source, tmp_path)
            assert ("cannot be captured" in str(caught.value)) == waits
        else:
            setup.planner.plan = fails(setup.planner.plan)
            with pytest.raises(ConfigError if waits else torch.OutOfMemoryError, match=message):
                small.actions(setup.policy(backend="cuda_graph"))


def test_a_policy_of_a_device_is_exported_for_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[Any] = []

    def trace(module: Any, inputs: Any) -> None:
        exported.extend([*module.parameters(), *module.buffers()])
        module(*inputs)

    monkeypatch.setattr(package, "traced", trace)
    monkeypatch.setattr(torch.export, "save", lambda program, path: None)
    with SimulatedCuda():
        policy = small.Setup("mage", "cuda").policy()
        package.export(policy, tmp_path / "exported", format="torch_export")
        assert exported and {device_of(value).type for value in exported} == {"cpu"}
        assert {device_of(value).type for value in policy.planner.state_dict().values()} == {"cuda"}


def test_plans_at_several_strides_are_captured() -> None:
    with SimulatedCuda():
        setup = small.Setup("mage_critic", "cuda", horizon=8, stride=(3, 6))
        plans = [small.actions(setup.policy(backend=name), 2) for name in ("eager", "cuda_graph")]
        np.testing.assert_allclose(plans[1], plans[0], atol=1e-5)


def test_the_range_of_the_data_is_drawn_beside_a_policy_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minari, "load", lambda *_: small.episodes())

    def returns(device: str) -> np.ndarray:
        setup = small.Setup("bc", device)
        config: Any = SimpleNamespace(data=setup.options)
        data = Run(Path(), config, lambda _: setup.policy(), lambda: None).data
        assert data is not None
        return data.returns

    with SimulatedCuda():
        np.testing.assert_allclose(returns("cuda"), returns("cpu"))
