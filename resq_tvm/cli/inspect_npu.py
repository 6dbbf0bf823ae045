"""``resq-tvm inspect`` of an artifact for an NPU: its memory, its state, its commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from resq_tvm.cli.console import Console
from resq_tvm.errors import ConfigError

if TYPE_CHECKING:
    from resq_tvm.manifest import Manifest
    from resq_tvm.targets.npu.commands import HostCall


def npu_facts(artifact: Path, manifest: Manifest) -> dict[str, Any]:
    """Return what the commands say: memory, host calls, where the state lies."""
    from resq_tvm.npu.program import read_program, sram_used

    program = read_program(artifact, manifest)
    npu, stream = program.npu, program.stream
    return {
        "name": npu.name,
        "about": npu.about,
        "clock_hz": npu.clock_hz,
        "dram_bytes": stream.dram_bytes,
        "sram_bytes": npu.sram.bytes,
        "sram_used": sram_used(stream),
        "commands": {name: len(p.commands) for name, p in stream.programs.items()},
        "host_calls": {
            name: [_call(call) for call in program.host_calls(name)] for name in stream.programs
        },
        "state": [
            {"name": p.name, "memory": p.memory, "address": p.address, "bytes": p.nbytes}
            for p in stream.programs["keyframe"].state
        ],
    }


def _call(call: HostCall) -> dict[str, Any]:
    """Return a host call as JSON values."""
    return {
        "operator": call.operator,
        "function": call.function,
        "reads": [place.name for place in call.reads],
        "writes": [place.name for place in call.writes],
    }


def npu_rows(facts: dict[str, Any]) -> list[tuple[str, object]]:
    """Return what `npu_facts` returned as rows of a table."""
    calls = {name: len(calls) for name, calls in facts["host_calls"].items()}
    return [
        ("NPU", facts["about"] or facts["name"]),
        ("clock", f"{facts['clock_hz'] / 1e9:g} GHz"),
        ("DRAM bytes", facts["dram_bytes"]),
        ("SRAM bytes", f"{facts['sram_used']} of {facts['sram_bytes']}"),
        ("commands", "  ".join(f"{name} {count}" for name, count in facts["commands"].items())),
        ("host calls", "  ".join(f"{name} {count}" for name, count in calls.items())),
    ]


def show_commands(console: Console, artifact: Path, manifest: Manifest, kernel: str | None) -> None:
    """Print an NPU's commands as text."""
    from resq_tvm.npu.program import read_program
    from resq_tvm.targets.npu.disassemble import disassemble

    if not manifest.is_npu:
        raise ConfigError(
            f"--npu: artifact {str(artifact)!r} is for {manifest.target.name}, which is no NPU"
        )
    program = read_program(artifact, manifest)
    text = disassemble(program.stream, kernel=kernel)
    console.finish({"commands": text.splitlines()}, lambda _out: print(text))
