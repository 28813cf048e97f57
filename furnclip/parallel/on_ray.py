"""The Ray engine of `Workers`: the cluster of RAY_ADDRESS, or one started on this machine.

A function that needs no device runs as tasks, which Ray spreads, retries and adds machines for. One that
holds a model runs in actors: one a GPU, or one a machine where there are none, with its share of the cores.
What was lost with a worker or a machine is done again. When the driver ends, by whatever signal, Ray ends
everything that belonged to it.
"""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from ray.exceptions import RayError, RayTaskError

from furnclip import __version__, console
from furnclip.config.environment import environment_variables, without_ray_telemetry
from furnclip.errors import FurnclipError

ray: Any = import_module("ray")  # its types do not know of actors
_ATTEMPTS = 4  # at the same tasks; a machine may go, but tasks that take four workers along are to blame
_PATIENCE_S = 30
_Run = Callable[[list[Any]], list[Any]]


class RayPool:
    """Runs lists of tasks on a Ray cluster, which it leaves as it was found.

    run: the outcomes of tasks, on a worker. processes: of a cluster that is started here. memory_mb: of a
    worker. on_devices: in actors, see above.
    """

    def __init__(self, run: _Run, processes: int, *, memory_mb: int, on_devices: bool) -> None:
        self._connected_here = not ray.is_initialized()
        if self._connected_here:
            _connect(processes)
        self._run = ray.put(partial(_checked, __version__, run))
        limits = {"num_cpus": 1, "memory": memory_mb << 20}
        self._task = ray.remote(_call).options(max_retries=_ATTEMPTS - 1, **limits)
        self._actors: deque[Any] = deque()
        self._coming: dict[Any, Any] = {}  # an actor's first answer -> the actor
        self._places: dict[Any, dict[str, float]] = {}  # what each actor needs
        self._on_devices = on_devices
        for place in _places() if on_devices else ():
            self._start(place)

    @property
    def size(self) -> int:
        """Workers that there is room for; a cluster may grow and shrink."""
        return len(self._places) if self._on_devices else max(1, int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, tasks: list[Any]) -> Callable[[], list[Any]]:
        """Begin the tasks; what is returned waits for their outcomes."""
        return partial(self._outcomes, tasks, *self._begun(tasks))

    def close(self) -> None:
        """Stop what is still running."""
        if self._connected_here:
            ray.shutdown()
            return
        for actor in self._places:
            ray.kill(actor)

    def _begun(self, tasks: list[Any]) -> tuple[Any, Any]:
        """(outcomes to come, actor that works at them), the actors by turns."""
        if not self._on_devices:
            return self._task.remote(self._run, tasks), None
        if self._coming:
            answered, _ = ray.wait([*self._coming], timeout=0 if self._actors else _PATIENCE_S)
            if not answered and not self._actors:
                console.warn("waiting for the Ray cluster to have room for a worker; `ray status` says why")
                answered, _ = ray.wait([*self._coming])
            self._actors.extend(self._coming.pop(answer) for answer in answered)
        self._actors.rotate()
        return self._actors[0].call.remote(tasks), self._actors[0]

    def _outcomes(self, tasks: list[Any], coming: Any, actor: Any) -> list[Any]:
        for attempt in range(_ATTEMPTS):
            try:
                outcomes: list[Any] = ray.get(coming)
                return outcomes
            except RayTaskError as error:
                raise _unfit(f"{type(error.cause).__name__}: {error.cause}") from None
            except RayError as error:
                lost = error
            if actor is None or attempt == _ATTEMPTS - 1:
                break  # a task has been tried again by Ray
            self._replace(actor)
            coming, actor = self._begun(tasks)
        raise FurnclipError(
            f"the Ray cluster lost {_ATTEMPTS} workers at the same items, {type(lost).__name__}: they may be "
            "out of memory, or without furnclip",
            hint="look into the logs of Ray (`ray logs`); run the same command again to continue from here",
        )

    def _replace(self, actor: Any) -> None:
        """Give up an actor that was lost and ask for another, wherever there is room."""
        if (place := self._places.pop(actor, None)) is not None:
            console.warn("the Ray cluster lost a worker; what it had is done again")
            self._actors.remove(actor)
            ray.kill(actor)
            self._start(place)

    def _start(self, place: dict[str, float]) -> None:
        actor = ray.remote(_Actor).options(**place).remote(self._run)
        self._places[actor] = place
        self._coming[actor.call.remote([])] = actor


def _connect(processes: int) -> None:
    address = environment_variables().get("RAY_ADDRESS")
    without_ray_telemetry()
    here: dict[str, Any] = {} if address else {"num_cpus": processes, "include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lancedb dislikes that Ray forks
            ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **here)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise FurnclipError(
            f"no Ray cluster at `{address}`: {error}" if address else f"Ray cannot be started: {error}",
            hint="`ray status --address HOST:6379` has to list it; RAY_ADDRESS names it",
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets one that ends with another exit code


def _places() -> list[dict[str, float]]:
    """What the actors need: each a GPU and its share of the machine's cores, or a machine's cores."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in machines]
    on_gpus: list[dict[str, float]] = [
        {"num_gpus": 1, "num_cpus": cpus // gpus} for cpus, gpus in cores for _ in range(gpus)
    ]
    return on_gpus or [{"num_cpus": cpus} for cpus, _ in cores if cpus]


def _unfit(detail: str) -> FurnclipError:
    hint = "every machine of the cluster needs this furnclip, and what `model.name` and `paths` name"
    return FurnclipError(f"the Ray cluster cannot run furnclip: {detail}", hint=hint)


# --- in the worker processes


class _Actor:
    def __init__(self, run: _Run) -> None:
        self._run = run

    def call(self, tasks: list[Any]) -> list[Any]:
        return self._run(tasks)


def _call(run: _Run, tasks: list[Any]) -> list[Any]:
    return run(tasks)


def _checked(version: str, run: _Run, tasks: list[Any]) -> list[Any]:
    if version != __version__:
        raise RuntimeError(f"version {__version__} is installed there, {version} here")
    return run(tasks)
