"""Boards behind a TVM RPC tracker: one or a farm, each worker takes whichever is free."""

from __future__ import annotations

import socket
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from numpy.typing import NDArray
from tvm import rpc

from resq_tvm.errors import TuningError
from resq_tvm.schedules.tuning.build import ENTRY
from resq_tvm.schedules.tuning.devices import Built, DeviceLostError
from resq_tvm.schedules.tuning.scenes import Scene
from resq_tvm.targets.preset import Target
from resq_tvm.targets.toolchain import export_options

Array = NDArray[Any]

# Evicts all arguments but the first, which is what was just written in a network.
_FLUSH = "cache_flush_cpu_non_first_arg"
_ROUNDS = 4  # in which candidates take turns


@dataclass(frozen=True)
class RpcAddress:
    """A tracker, and the key under which boards of one kind register.

    Attributes
    ----------
    host, port
        The tracker's.
    key : str
    session_timeout_s : int
        How long a board is held by one session at most.
    priority : int
        Of requests: where several wait for a board, the tracker serves the highest first.
    """

    host: str
    port: int
    key: str
    session_timeout_s: int = 600
    priority: int = 1

    @classmethod
    def parse(cls, tracker: str, key: str | None, priority: int = 1) -> RpcAddress:
        """Read ``HOST:PORT``.

        Raises
        ------
        TuningError
            If it is malformed or there is no key.
        """
        host, _, port = tracker.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise TuningError(f"RPC tracker {tracker!r} is malformed; write HOST:PORT")
        if not key:
            raise TuningError(f"RPC tracker {tracker!r} needs the boards' key; add --rpc-key")
        return cls(host, int(port), key, priority=priority)

    def boards(self) -> int:
        """Return how many boards of the key are registered.

        Raises
        ------
        TuningError
            If the tracker does not answer or has none.
        """
        try:
            # TVM itself would try again for a minute.
            socket.create_connection((self.host, self.port), timeout=5).close()
            summary = rpc.connect_tracker(self.host, self.port).summary()
        except Exception as error:  # TVM raises several types
            raise TuningError(
                f"RPC tracker {self.host}:{self.port} does not answer ({last_line(error)}); start "
                "one with python -m tvm.exec.rpc_tracker"
            ) from None
        keys = [str(s["key"]).removeprefix("server:") for s in summary["server_info"]]
        if not keys.count(self.key):
            present = ", ".join(sorted(set(keys))) or "none"
            raise TuningError(
                f"RPC tracker {self.host}:{self.port} has no board {self.key!r} (but {present}); "
                "start python -m tvm.exec.rpc_server there"
            )
        return keys.count(self.key)

    def request(self) -> rpc.RPCSession:
        """Return a session on a free board; wait where all of them are held.

        Raises
        ------
        Exception
            Of several types, if the tracker or the board does not answer.
        """
        tracker = rpc.connect_tracker(self.host, self.port)
        return tracker.request(
            self.key,
            priority=self.priority,
            session_timeout=self.session_timeout_s,
            max_retry=2,
        )


class RpcDevice:
    """One board, held for as long as its session lasts.

    Parameters
    ----------
    address : RpcAddress
    threads : int
        Threads per kernel.
    target : Target, optional
        What the board is; None: a machine like this one.

    Raises
    ------
    DeviceLostError
        If no board can be had.
    TargetError
        If the board's cross compiler is absent.
    """

    def __init__(self, address: RpcAddress, threads: int = 1, target: Target | None = None) -> None:
        self._export = export_options(target) if target else {}
        try:
            self._remote = address.request()
            self._remote.get_function("runtime.config_threadpool")(1, threads)
        except Exception as error:
            raise DeviceLostError(last_line(error)) from None

    def load(self, scene: Scene, footprint: int) -> None:
        """Send a task's tensors once: the timer flushes caches, whatever the footprint."""
        self._scene = scene
        with self._blame():
            device = self._remote.cpu(0)
            self._inputs = [tvm.runtime.tensor(a, device) for a in scene.inputs]
            self._outputs = [tvm.runtime.tensor(a, device) for a in scene.blank()]

    def run(
        self, programs: list[Built], repeats: int, limit_s: float | None
    ) -> list[tuple[list[Array], list[float]]]:
        """Send, check and time programs; see `Device`."""
        calls, results = [], []
        with tempfile.TemporaryDirectory(prefix="resq-") as folder, self._blame():
            for module, constants in programs:
                path = Path(folder) / f"{uuid.uuid4().hex}.so"
                module.export_library(str(path), **self._export)
                self._remote.upload(str(path))
                loaded = self._remote.load_module(path.name)
                device = self._remote.cpu(0)
                packed = [tvm.runtime.tensor(a, device) for a in constants]
                for tensor, array in zip(self._outputs, self._scene.blank(), strict=True):
                    tensor.copyfrom(array)
                arguments = [*self._inputs, *packed, *self._outputs]
                loaded[ENTRY](*arguments)
                results.append(([t.numpy() for t in self._outputs], list[float]()))
                calls.append((loaded, arguments))
                self._remote.remove(path.name)
            part = -(-repeats // _ROUNDS)
            for n in range(_ROUNDS):
                for (loaded, arguments), (_, seconds) in zip(calls, results, strict=True):
                    timer = loaded.time_evaluator(
                        ENTRY, self._remote.cpu(0), number=1, repeat=part, f_preproc=_FLUSH
                    )
                    seconds.extend(float(s) for s in timer(*arguments).results)
                if limit_s is not None and n and all(min(s) > limit_s for _, s in results):
                    break
        return results

    def _blame(self) -> _Blame:
        return _Blame(self._remote)


class _Blame:
    """Tells a candidate's failure from the device's by whether that still answers."""

    def __init__(self, remote: Any) -> None:
        self._remote = remote

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, Exception):
            return
        try:
            tvm.runtime.tensor([1.0], self._remote.cpu(0)).numpy()
        except Exception:
            raise DeviceLostError(last_line(error)) from None


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message: TVM puts traces of the stack above it."""
    text = str(error).strip().splitlines()
    return text[-1] if text else type(error).__name__
