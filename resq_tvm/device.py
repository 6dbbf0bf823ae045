"""What is known of this machine: its fingerprint, and how many threads kernels may use."""

from __future__ import annotations

import os
import platform
import threading
from pathlib import Path
from typing import Any

from resq_tvm.errors import ConfigError

_local = threading.local()


def available_cpus() -> int:
    """Return the number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def fingerprint(threads: int | None = None) -> dict[str, Any]:
    """Return the facts without which a latency means nothing.

    Parameters
    ----------
    threads : int, optional
        The number of threads that were measured.

    Returns
    -------
    dict
        ``cpu``, ``machine``, ``cpus``, ``memory_mib``, ``os``, ``python``, and
        ``threads`` where given.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "machine": platform.machine(),
        "cpus": available_cpus(),
        "memory_mib": memory >> 20,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if threads is not None:
        facts["threads"] = threads
    return facts


def prepare_thread_pool() -> None:
    """Let TVM's thread pool, which is created on first use, grow to every available CPU.

    By itself TVM halves the CPU count on x86 (it assumes two hyper-threads per core) and pins
    the calling thread to one CPU, which would slow everything else in the process. Both are
    read from the environment when a thread's pool is created, so this must run before that;
    values that the user has set are kept.
    """
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_NUM_THREADS", str(available_cpus()))


def resolve_threads(threads: int | None) -> int:
    """Return the number of threads to use; ``None`` means every available CPU.

    Raises
    ------
    ConfigError
        If ``threads`` is below one or above the number of available CPUs.
    """
    cpus = available_cpus()
    if threads is None:
        return cpus
    if not 1 <= threads <= cpus:
        raise ConfigError(f"threads {threads} is out of range; this machine allows 1 to {cpus}")
    return threads


def use_threads(threads: int) -> None:
    """Limit TVM kernels that the calling thread starts to ``threads`` threads.

    The thread pool belongs to the calling thread; the call is free when nothing changes.
    """
    if getattr(_local, "threads", None) == threads:
        return
    import tvm

    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    _local.threads = threads
