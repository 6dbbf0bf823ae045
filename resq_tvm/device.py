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


CPUINFO = Path("/proc/cpuinfo")
# Of x86, and of ARM: what tells cores apart where a virtual machine's name of them does not.
_KIND = ("cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")


def cpu_model() -> str:
    """Return the processor's name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_kind() -> str:
    """Return what the processor is: on x86 its family, model and stepping, as numbers."""
    facts = _cpuinfo()
    return "-".join(facts[key] for key in _KIND if key in facts)


def _cpuinfo() -> dict[str, str]:
    """Return what the system says of the first processor."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def fingerprint(threads: int | None = None) -> dict[str, Any]:
    """Return the facts without which a latency means nothing.

    Parameters
    ----------
    threads : int, optional
        The number of threads that were measured.

    Returns
    -------
    dict
        ``cpu``, ``kind`` (`cpu_kind`), ``machine``, ``cpus``, ``memory_mib``, ``os``, ``python``,
        and ``threads`` where given.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "kind": cpu_kind(),
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
