"""Speed of several checkouts in turns, since a machine's drifts: ``versions.py CHECKOUT[:compile] … [KEY=VALUE …]``.

Each checkout trains and decides in a process of its own, a few steps at a time, while the others wait; ratios are of
neighbours in time. A script rather than a bench of the package: it has to know how earlier versions were called.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

STEPS = {"tokenizer": 20, "return_target": 100, "prior": 8, "action": 60, "decision": 60}
ROUNDS = 10
WORDS = ["recipe=mage", "data=pointmaze/umaze-dwell"]


def decisions(planner: Any, config: Any, space: Any, number: int) -> float:
    """Decisions per second of a policy that plans at each."""
    import numpy as np

    from trajgen.policies.receding_horizon import RecedingHorizonPolicy

    options = replace(config.policy, replan_interval=1)
    policy = RecedingHorizonPolicy(
        planner.eval(), planner.normalizer, space, options, discount=config.data.discount, chunk=config.data.chunk
    )
    policy.reset()
    draw, began = np.random.default_rng(0), time.perf_counter()
    for _ in range(number):
        policy.act(
            {space.state_key: draw.normal(size=space.state_dim), space.goal_key: draw.normal(size=space.goal_dim)}
        )
    return number / (time.perf_counter() - began)


def work(compiled: bool, words: list[str]) -> None:
    """Takes as many steps of a stage as each line of the input says, and prints the windows or decisions per second."""
    import torch
    from rich.console import Console

    from trajgen import experiments
    from trajgen.config import compose
    from trajgen.data.windows import Windows, fit_normalizer
    from trajgen.engine.device import autocast
    from trajgen.engine.optimization import Optimization

    try:
        from trajgen.engine.step import seed_step
    except ModuleNotFoundError:  # before 0.2
        from trajgen.engine.device import seed_step

    config, device = compose([*WORDS, *words]), torch.device("cpu")
    episodes = experiments.load_episodes(config, Console(quiet=True))
    planner: Any = experiments.build_planner(config, episodes.space)
    planner.normalizer.load_state_dict(fit_normalizer(episodes, config.data).state_dict())
    source = Windows(episodes, config.data, planner.normalizer, device, 0)
    ready = {}
    for stage in planner.stages():
        settings = config.engine.stages[stage.name]
        if not stage.parameters:  # an earlier version's action head has a stage of its own, or trains with the prior
            stage = replace(stage, parameters=list(planner.action.parameters()))
        if compiled:
            stage.loss = torch.compile(stage.loss, dynamic=False)
        ready[stage.name] = stage, settings, Optimization(planner, stage, settings, 1000)
    print("ready", flush=True)
    number = 0
    for line in sys.stdin:
        name, steps = line.split()
        if name == "decision":
            print(decisions(planner, config, episodes.space, int(steps)), flush=True)
            continue
        stage, settings, optimization = ready[name]
        planner.train()
        stage.begin(planner)
        began = time.perf_counter()
        for _ in range(int(steps)):
            number += 1
            batch = source.batch(number, settings.batch_size)
            seed_step(0, number)
            with autocast(device, config.engine.precision):
                loss = stage.loss(batch)["total"]
            optimization.optimizer.zero_grad()
            loss.backward()
            if hasattr(optimization, "update"):
                optimization.schedule(min(number, 900))
                optimization.update()
            else:  # before 0.2
                optimization.step(min(number, 900))
        print(settings.batch_size * int(steps) / (time.perf_counter() - began), flush=True)


def ask(process: subprocess.Popen[str], stage: str, steps: int) -> float:
    """Has a process take steps."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a process without pipes")
    process.stdin.write(f"{stage} {steps}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main(arguments: list[str]) -> None:
    """Prints the table: windows or decisions per second, and the ratio to the first checkout with its quartiles."""
    words = [word for word in arguments if "=" in word]
    checkouts = [word for word in arguments if "=" not in word]
    processes = {}
    for name in checkouts:
        path, _, how = name.partition(":")
        command = [sys.executable, __file__, "--work", how, *words]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes[name] = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.path.abspath(path)}, **pipes)
    for process in processes.values():
        while process.stdout and process.stdout.readline().strip() != "ready":
            pass
    for stage, steps in STEPS.items():
        for process in processes.values():
            ask(process, stage, 3)
        rounds = [{name: ask(process, stage, steps) for name, process in processes.items()} for _ in range(ROUNDS)]
        for name in checkouts:
            ratios = statistics.quantiles([each[name] / each[checkouts[0]] for each in rounds], n=4)
            speed = statistics.median(each[name] for each in rounds)
            print(f"{stage:10} {name:30} {speed:9,.0f}  {ratios[1]:.2f} [{ratios[0]:.2f}, {ratios[2]:.2f}]", flush=True)
    for process in processes.values():
        process.kill()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2:3] == ["compile"], sys.argv[3:])
    else:
        main(sys.argv[1:])
