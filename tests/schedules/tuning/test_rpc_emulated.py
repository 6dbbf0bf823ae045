"""A board behind a tracker that is another architecture: cross-compiled kernels, checked there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from resq_tvm.errors import TargetError
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.tuning.job import Job, Subject
from resq_tvm.schedules.tuning.rpc import RpcAddress, RpcDevice
from resq_tvm.schedules.tuning.worker import Worker
from resq_tvm.targets.preset import get_target
from tests.rpc import answers, count, free_port, running, wait_for
from tests.schedules.harness import residual_kernel
from tests.schedules.test_conv import conv_of
from tests.tools import need
from tests.userlands import userland_or_skip

TARGET = get_target("cortex-a72")


@pytest.fixture(scope="module")
def board() -> Iterator[RpcAddress]:
    """Run a tracker here and TVM's server in the emulated system."""
    need("aarch64-linux-gnu-g++")
    system = userland_or_skip("server", TARGET.core)
    port, own = free_port(), free_port()
    address = RpcAddress("127.0.0.1", port, "emulated", session_timeout_s=60)
    host = ("--host", "127.0.0.1")
    server = (
        "tvm.exec.rpc_server", *host, "--port", own, "--port-end", own + 1,
        "--tracker", f"127.0.0.1:{port}", "--key", address.key,
    )  # fmt: skip
    with running("tvm.exec.rpc_tracker", *host, "--port", port, "--port-end", port + 1):
        wait_for(lambda: answers(port))
        with running(*server, system=system):
            wait_for(lambda: count(address) == 1)
            yield address


def subject(seed: int) -> tuple[Subject, Job]:
    rng = np.random.default_rng(seed)
    anchor, inputs, h, w = conv_of(TARGET, rng, (8 + seed,), 24 - 5 * seed, (6, 9), (3, 3))
    kernel = residual_kernel(TARGET, anchor, inputs, h, w, rng)
    key = f"task {seed}"
    return Subject(key, kernel, TARGET, 1 << 20), Job(key, (decide(kernel, TARGET),), repeats=4)


@pytest.mark.slow
@pytest.mark.aarch64
def test_cross_compiled_candidates_run_and_are_right(board: RpcAddress) -> None:
    worker = Worker(RpcDevice(board, target=TARGET))
    for seed in range(3):
        what, job = subject(seed)
        (result,) = worker.measure(what, job)
        assert result.failure is None, result.message
        assert len(result.seconds) >= job.repeats and min(result.seconds) > 0


@pytest.mark.slow
@pytest.mark.aarch64
def test_wrong_results_of_a_board_are_noticed(board: RpcAddress) -> None:
    worker = Worker(RpcDevice(board, target=TARGET))
    what, job = subject(1)
    assert worker.measure(what, job)[0].failure is None
    assert worker._scene is not None
    (name, *_) = worker._scene._expected
    worker._scene._expected[name] = worker._scene._expected[name] + 2
    (wrong, *_) = worker.measure(what, job)
    assert wrong.failure == "wrong" and "differ from the reference" in wrong.message


def test_without_a_cross_compiler_the_board_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("RESQ_TVM_CXX_AARCH64", raising=False)
    with pytest.raises(TargetError, match=r"cross compiler for aarch64; install the package"):
        RpcDevice(RpcAddress("127.0.0.1", 1, "board"), target=TARGET)
