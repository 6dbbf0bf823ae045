"""TVM's RPC tracker and servers as processes of their own, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from resq_tvm.errors import TuningError
from resq_tvm.schedules.tuning.rpc import RpcAddress
from resq_tvm.targets.emulated.userland import Userland


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(*arguments: object, system: Userland | None = None) -> Iterator[subprocess.Popen[Any]]:
    """Run a module of TVM with its own children in a process group, and end all of them."""
    words = ["-m", *map(str, arguments)]
    process = subprocess.Popen(
        [sys.executable, *words] if system is None else system.command(words),
        env=None if system is None else system.environment,
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def count(address: RpcAddress) -> int:
    with contextlib.suppress(TuningError):
        return address.boards()
    return 0


def wait_for(ready: Any) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.2)
