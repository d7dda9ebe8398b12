"""Environments in processes of their own, so that all cores are used, and a step that hangs or crashes can be ended.

Gymnasium's AsyncVectorEnv is not used: one environment that raises, or whose step is ended, costs it all the others.
Here its process is started anew, and the other episodes are repeated up to where they were, by seeds and actions.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from trajgen.core.errors import DataError
from trajgen.envs import gym
from trajgen.evaluation import pool
from trajgen.evaluation.pool import Moment, close

if TYPE_CHECKING:
    from trajgen.envs.eval_env import EvalEnv

MOST = 4
"""Processes for each core: a run folder of a stranger says how many there are to be."""
START = 300.0
"""Seconds in which a process has imported and made its environments."""
MAIN = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from trajgen.evaluation.workers import serve
serve(int(sys.argv[2]))
"""
Order = tuple[str, list[tuple[int, Any]]]
"""``reset`` with the seeds, or ``step`` with the actions, of some of the environments of a process."""


class WorkerPool:
    """Environments in processes; the methods are those of `trajgen.evaluation.pool.Pool`.

    Args:
        eval_env: what the environments are.
        count: of environments.
        workers: processes, at most one for each environment, and `MOST` for each core.

    Raises:
        DataError: on entering, if a process cannot make its environments.
    """

    def __init__(self, eval_env: EvalEnv, count: int, workers: int) -> None:
        import cloudpickle

        self._make = cloudpickle.dumps(replace(eval_env, controller=None))
        workers = min(workers, count, MOST * (os.cpu_count() or 1))
        self._slots = [list(range(first, count, workers)) for first in range(workers)]
        self._workers: list[Worker] = []
        self._seeds: list[int] = []
        self._actions: list[list[Any]] = []

    def __enter__(self) -> WorkerPool:
        try:
            for slots in self._slots:  # all at once: each takes seconds to import what it needs
                self._workers.append(Worker(self._make, slots))
            for worker in self._workers:
                self.observation_space, self.action_space = worker.spaces()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def reset(self, seeds: Sequence[int]) -> list[Moment]:
        """Starts an episode of each seed, in as many of the environments."""
        self._seeds, self._actions = list(seeds), [[] for _ in seeds]
        moments = self._ordered("reset", dict(enumerate(seeds)))
        return [moments[index] for index in range(len(seeds))]

    def step(self, actions: Sequence[Any]) -> list[Moment | None]:
        """Takes a step in each environment whose action is not None."""
        moments = self._ordered("step", {index: a for index, a in enumerate(actions) if a is not None})
        return [moments.get(index) for index in range(len(actions))]

    def _ordered(self, what: str, values: dict[int, Any]) -> dict[int, Moment]:
        orders = [(what, [(index, values[index]) for index in slots if index in values]) for slots in self._slots]
        for worker, order in zip(self._workers, orders, strict=True):
            worker.send(order)
        moments: dict[int, Moment] = {}
        for number, (_, items) in enumerate(orders):
            moments |= self._answers(number, what, items)
        if what == "step":
            for index, action in values.items():
                self._actions[index].append(action)
        return moments

    def _answers(self, number: int, what: str, items: list[tuple[int, Any]]) -> dict[int, Moment]:
        """The answers to an order, in its order; where one does not come, the process is started anew."""
        moments: dict[int, Moment] = {}
        waiting = items
        while waiting:
            (index, _), *waiting = waiting
            answer = self._workers[number].answer()
            if isinstance(answer, Moment):
                moments[index] = answer
                continue
            moments[index] = Moment(error=answer)
            done = [(i, v) for i, v in items if i in moments and moments[i].error is None]
            if what == "step":
                episodes = [(i, [*self._actions[i], v]) for i, v in done] + [(i, self._actions[i]) for i, _ in waiting]
            else:
                episodes = [(i, []) for i, _ in done]
            moments |= self._restart(number, episodes)
            waiting = [(i, v) for i, v in waiting if i not in moments]
            self._workers[number].send((what, waiting))
        return moments

    def _restart(self, number: int, episodes: list[tuple[int, list[Any]]]) -> dict[int, Moment]:
        """A new process whose environments are where they were; what cannot be repeated is an error."""
        failed: dict[int, Moment] = {}
        while True:
            self._workers[number].end()
            self._workers[number] = worker = Worker(self._make, self._slots[number])
            worker.spaces()
            for index, actions in episodes:
                orders: list[Order] = [("reset", [(index, self._seeds[index])])]
                orders += [("step", [(index, action)]) for action in actions]
                error = next((answer for order in orders if isinstance(answer := worker.ask(order), str)), None)
                if error is not None:
                    failed[index] = Moment(error=error)
                    break
            else:
                return failed
            episodes = [(index, actions) for index, actions in episodes if index not in failed]


class Worker:
    """A process with some of the environments.

    Args:
        make: the pickled `EvalEnv`.
        slots: numbers of its environments.
    """

    def __init__(self, make: bytes, slots: list[int]) -> None:
        near, far = socket.socketpair()
        self._connection = Connection(near.detach())
        path = json.dumps(sys.path)
        with far:  # a fresh interpreter: a fork would inherit threads and devices, and spawn the user's script
            command = [sys.executable, "-I", "-c", MAIN, path, str(far.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[far.fileno()], stdin=subprocess.DEVNULL)
        self.send((make, slots))

    def spaces(self) -> tuple[Any, Any]:
        """Waits until the environments are made, and returns the spaces of their observations and actions."""
        answer = self._receive(START)
        if isinstance(answer, str):
            raise DataError("A process cannot make its environments.", got=answer, fix="evaluation.workers=0")
        return answer

    def send(self, order: Any) -> None:
        """Gives an order; each of its environments gives an answer."""
        with suppress(OSError):  # of a process that has ended, the answer says so
            self._connection.send(order)

    def ask(self, order: Order) -> Moment | str:
        """Gives an order to one environment, and waits for its answer."""
        self.send(order)
        answer = self.answer()
        return answer.error if isinstance(answer, Moment) and answer.error is not None else answer

    def answer(self) -> Moment | str:
        """What an environment gave, or the words for a process that hangs or has ended."""
        answer: Moment | str = self._receive(pool.PATIENCE)
        return answer

    def _receive(self, patience: float) -> Any:
        try:
            if not self._connection.poll(patience):
                return f"TimeoutError: the environment has not returned for {patience:.0f} s"
            return self._connection.recv()
        except (EOFError, OSError):
            return f"ChildProcessError: the environment ended its process, exit code {self._exit_code()}"

    def _exit_code(self) -> int:
        try:
            return self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):  # it ends by itself unless an environment hangs
            self._process.wait(0.5)
        self._process.kill()
        self._process.wait()


def serve(number: int) -> None:
    """Runs the environments that are requested over an open socket, until it is closed."""
    import cloudpickle

    connection = Connection(number)
    make, slots = connection.recv()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides
    gym.register_envs()  # before what was sent imports packages that print a notice
    try:
        eval_env = cloudpickle.loads(make)
        envs = {index: eval_env.make_env() for index in slots}
    except Exception as error:  # an environment may raise anything
        connection.send(f"{type(error).__name__}: {error}")
        return
    first = envs[slots[0]]
    connection.send((first.observation_space, first.action_space))
    takes = {"reset": pool.reset, "step": pool.step}
    broken: set[int] = set()
    with suppress(EOFError, OSError):  # the other end is closed
        while True:
            what, items = connection.recv()
            for index, value in items:
                if index in broken:  # an environment that raised may be in any state
                    close(envs[index])
                    envs[index] = eval_env.make_env()
                    broken.remove(index)
                moment = takes[what](eval_env, envs[index], value)
                if moment.error is not None:
                    broken.add(index)
                connection.send(moment)
    for env in envs.values():
        close(env)
    os._exit(0)  # a thread of an environment must not keep the process
