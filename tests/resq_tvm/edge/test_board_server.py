"""The native RPC server: driven as any board is, and harder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import rpc

from resq_tvm.edge.build import compile_program
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.tuning.job import Job, Subject
from resq_tvm.schedules.tuning.rpc import RpcAddress, RpcDevice
from resq_tvm.schedules.tuning.worker import Worker
from resq_tvm.targets.preset import Target, get_target
from tests.resq_tvm.edge.harness import call
from tests.rpc import answers, count, free_port, running, wait_for
from tests.schedules.harness import residual_kernel
from tests.schedules.test_conv import conv_of


@dataclass
class Board:
    """A server at work."""

    address: RpcAddress
    process: subprocess.Popen[str]
    work: Path

    def session(self, timeout: int = 60) -> rpc.RPCSession:
        tracker = rpc.connect_tracker(self.address.host, self.address.port)
        return tracker.request(self.address.key, session_timeout=timeout, max_retry=1)


def children_of(process: int) -> list[int]:
    return [int(w) for w in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@contextlib.contextmanager
def serving(command: Sequence[object], work: Path, key: str) -> Iterator[Board]:
    """Run a tracker and a server."""
    port = free_port()
    host = ("--host", "127.0.0.1")
    with running("tvm.exec.rpc_tracker", *host, "--port", port, "--port-end", port + 1):
        wait_for(lambda: answers(port))
        options = ("--port", 0, "--tracker", f"127.0.0.1:{port}", "--key", key, "--work", work)
        words = [str(word) for word in (*command, *options)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
            try:
                address = RpcAddress("127.0.0.1", port, key, session_timeout_s=60)
                wait_for(lambda: count(address) == 1)
                yield Board(address, process, work)
            finally:
                process.kill()


def check_kernel(board: Board, target: Target) -> None:
    """Let the tuner measure a kernel and hold its results against the reference."""
    rng = np.random.default_rng(0)
    anchor, inputs, h, w = conv_of(target, rng, (8,), 24, (6, 9), (3, 3))
    kernel = residual_kernel(target, anchor, inputs, h, w, rng)
    subject = Subject("task", kernel, target, 1 << 20)
    worker = Worker(RpcDevice(board.address, target=target))
    (result,) = worker.measure(subject, Job("task", (decide(kernel, target),), repeats=4))
    assert result.failure is None, result.message
    assert len(result.seconds) >= 4 and min(result.seconds) > 0


@pytest.fixture(scope="module")
def program(runtime: Path) -> Path:
    return runtime / "bin" / "resq-board-server"


@pytest.fixture(scope="module")
def board(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with serving([program], tmp_path_factory.mktemp("work"), "board") as found:
        yield found


def test_kernels_are_measured(board: Board) -> None:
    check_kernel(board, get_target())


def test_files_and_one_session_after_the_other(board: Board) -> None:
    for n in range(3):
        session = board.session()
        session.upload(bytearray(b"contents"), "file")
        (folder,) = board.work.iterdir()
        assert (folder / "file").read_bytes() == b"contents"
        assert bytes(session.download("file")) == b"contents"
        session.remove("file")
        assert list(folder.iterdir()) == []
        values = tvm.runtime.tensor(np.full(5, n, np.float32), session.cpu(0))
        assert values.numpy().tolist() == [n] * 5
        for name in ("../out", "/tmp/out", "a/../../out"):
            with pytest.raises(Exception, match="leads out of the session's folder"):
                session.upload(bytearray(b"x"), name)
        del values, session
        wait_for(lambda: list(board.work.iterdir()) == [])


def test_a_crash_ends_its_session_only(board: Board) -> None:
    session = board.session()
    (child,) = children_of(board.process.pid)
    os.kill(child, signal.SIGSEGV)
    with pytest.raises(Exception, match=r"RPC|closed|reset"):
        session.upload(bytearray(b"x"), "file")
    other = board.session()
    other.upload(bytearray(b"x"), "file")
    assert board.process.poll() is None


def test_a_session_that_takes_too_long_is_told_so(board: Board) -> None:
    session = board.session(timeout=1)
    time.sleep(1.3)
    with pytest.raises(Exception, match="1s session has expired"):
        session.upload(bytearray(b"x"), "file")
    board.session()


_SPIN = """
#include <tvm/ffi/tvm_ffi.h>
void spin() { for (volatile int i = 0;; ++i) {} }
TVM_FFI_DLL_EXPORT_TYPED_FUNC(spin, spin);
"""
_CLIENT = """
import sys
from tvm import rpc
remote = rpc.connect_tracker("127.0.0.1", int(sys.argv[1])).request(sys.argv[2])
remote.upload(sys.argv[3])
spin = remote.load_module("spin.so")["spin"]
print("ready", flush=True)
spin()
"""


@pytest.mark.slow
def test_a_kernel_that_hangs_does_not_outlive_its_client(
    board: Board, runtime: Path, tmp_path: Path
) -> None:
    (tmp_path / "spin.cc").write_text(_SPIN)
    library = tmp_path / "spin.so"
    compile_program(runtime, [tmp_path / "spin.cc"], library, flags=("-shared", "-fPIC"))
    words = [sys.executable, "-c", _CLIENT, board.address.port, board.address.key, library]
    with subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        time.sleep(0.5)
        (child,) = children_of(board.process.pid)
        client.kill()
    wait_for(lambda: child not in children_of(board.process.pid))
    board.session().upload(bytearray(b"x"), "file")


def test_strangers_are_refused(board: Board) -> None:
    summary = rpc.connect_tracker("127.0.0.1", board.address.port).summary()
    port = int(summary["server_info"][0]["addr"][1])
    mismatch = struct.pack("<i", 0xFF271 + 2)
    for sent, answer in (
        (b"GET / HTTP/1.1\r\n\r\n", b""),
        (struct.pack("<ii", 0xFF271, 1 << 30), b""),
        (struct.pack("<ii", 0xFF271, 12) + b"client:board", mismatch),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
            stranger.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(64) == answer
    board.session().upload(bytearray(b"x"), "file")


@pytest.mark.parametrize("busy", [False, True])
def test_sigterm_ends_it_and_leaves_nothing(program: Path, tmp_path: Path, busy: bool) -> None:
    words = [str(program), "--port", "0", "--key", "k", "--work", str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            host, _, port = process.stderr.readline().rpartition(" ")[2].strip().rpartition(":")
            session = rpc.connect(host, int(port), "k") if busy else None
            children = children_of(process.pid)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert process.stderr.read().endswith("resq-board-server: stopped\n")
            assert list(tmp_path.iterdir()) == [] and len(children) == busy
            assert not any(Path(f"/proc/{child}").exists() for child in children)
            del session
        finally:
            process.kill()


@pytest.mark.slow
def test_a_tracker_that_comes_back(program: Path, tmp_path: Path) -> None:
    port = free_port()
    options = ("--port", 0, "--tracker", f"127.0.0.1:{port}", "--key", "k", "--work", tmp_path)
    host = ("--host", "127.0.0.1")
    address = RpcAddress("127.0.0.1", port, "k")
    process = subprocess.Popen([str(word) for word in (program, *options)])
    try:
        for _ in range(2):  # the server is there first
            with running("tvm.exec.rpc_tracker", *host, "--port", port, "--port-end", port + 1):
                wait_for(lambda: count(address) == 1)
                RpcDevice(address)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--what", "x"], 2, "the option --what is unknown"),
        (["--port", "70000"], 2, "--port 70000 is not a port"),
        (["--tracker", "host"], 2, "--tracker host is malformed; write HOST:PORT"),
        (["--tracker", "host:1"], 2, "a tracker needs the board's key; add --key"),
        (["--tracker", "host:1", "--key", "a b"], 2, "the key 'a b' holds a blank"),
        (["--host", "256.0.0.1"], 1, "host 256.0.0.1 is unknown"),
    ],
)
def test_wrong_usage(program: Path, words: list[str], code: int, message: str) -> None:
    assert message in call([program, *words], code=code).stderr.decode()


def test_a_port_that_is_taken(program: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = call([program, "--port", port], code=1).stderr.decode()
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in told
