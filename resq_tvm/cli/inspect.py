"""``resq-tvm inspect``: what is inside an artifact, without loading its library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from resq_tvm.cli.console import Console, table
from resq_tvm.cli.inspect_npu import npu_facts, npu_rows, show_commands
from resq_tvm.cli.options import ArtifactPath, Json
from resq_tvm.errors import ConfigError

if TYPE_CHECKING:
    from resq_tvm.manifest import Manifest


def inspect(
    artifact: ArtifactPath,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with 1 where a kernel is not tuned and tensorized."),
    ] = False,
    npu: Annotated[
        bool, typer.Option("--npu", help="Show the commands of an artifact for an NPU.")
    ] = False,
    kernel: Annotated[
        str | None, typer.Option("--kernel", help="With --npu: those of one kernel.")
    ] = None,
    json: Json = False,
) -> None:
    """Verify OUT.resq (schema, sizes, hashes, versions, CPU features) and show its manifest.

    An artifact for another architecture is shown, too, as one that does not run here.
    """
    console = Console(json, "inspect", artifact=artifact, strict=strict, npu=npu, kernel=kernel)
    from resq_tvm.artifact_files import require_machine, target_of, verify_files
    from resq_tvm.schedules.choice import fallbacks
    from resq_tvm.targets.toolchain import is_foreign

    manifest = verify_files(artifact)
    runs_here = not is_foreign(manifest.target.name)
    if runs_here:
        require_machine(artifact, manifest)
    if npu:
        show_commands(console, artifact, manifest, kernel)
        return
    if kernel is not None:
        raise ConfigError("--kernel names whose commands are shown; add --npu")
    facts = npu_facts(artifact, manifest) if manifest.is_npu else None
    isa = target_of(artifact, manifest).isa
    found = fallbacks([k.model_dump() for k in manifest.kernels], isa)
    result = {
        **manifest.model_dump(mode="json"),
        "runs_here": runs_here,
        "fallbacks": found,
        "state_bytes": manifest.state_bytes,
        "workspace_bytes": manifest.workspace_bytes,
        "npu": facts,
    }
    programs = {
        "keyframe": True,
        "residual": manifest.has_residual,
        "probe": manifest.probe,
        "note": manifest.note,
        "frame": manifest.frame_params is not None,
    }

    def render(out: Any) -> None:
        rows = [
            ("scheme", manifest.scheme),
            ("period", manifest.period),
            ("target", manifest.target.name),
            ("runs here", _where(manifest, runs_here)),
            *(npu_rows(facts) if facts is not None else ()),
            ("CPU features", " ".join(manifest.target.features)),
            ("built with", "  ".join(f"{k} {v}" for k, v in manifest.versions)),
            ("programs", " ".join(name for name, has in programs.items() if has)),
            ("state bytes", manifest.state_bytes),
            ("workspace bytes", manifest.workspace_bytes),
            ("parameters", len(manifest.params)),
            *((k, v) for k, v in manifest.bops.items() if isinstance(v, int | float | str)),
            *((k, v) for k, v in manifest.options.items() if isinstance(v, int | float | str)),
            ("processing", manifest.processing and manifest.processing.model_dump_json()),
        ]
        out.print(table(("", ""), rows))
        tensors = [
            (kind, entry.name, "x".join(map(str, entry.shape)), entry.layout or "–")
            for kind, entries in (("input", manifest.inputs), ("output", manifest.outputs))
            for entry in entries
        ]
        out.print(table(("", "name", "shape", "layout"), tensors))
        state = [
            (entry.name, "x".join(map(str, entry.shape)), entry.dtype, entry.bytes, place)
            for entry, place in zip(manifest.state, _state_places(manifest, facts), strict=True)
        ]
        if state:
            out.print(table(("state", "shape", "dtype", "bytes", "in"), state))
        layers = [
            (la.name, la.op, la.macs / 1e6, la.key_bits, la.residual_bits) for la in manifest.layers
        ]
        if layers:
            out.print(table(("layer", "op", "MMACs", "key", "residual"), layers))
        kernels = [
            (k.program, k.name, k.layer, k.shape, k.decision, k.origin) for k in manifest.kernels
        ]
        if kernels:
            columns = ("program", "kernel", "layer", "shape", "schedule", "from")
            out.print(table(columns, kernels))
        opaque = [(program, op) for program, ops in manifest.opaque.items() for op in ops]
        if opaque:
            where = "on the host" if manifest.is_npu else "outside the fused kernels"
            out.print(table(("program", f"operator {where}"), opaque))
        files = [(name, entry.bytes, entry.sha256) for name, entry in manifest.files.items()]
        out.print(table(("file", "bytes", "sha256"), files))

    console.finish(result, render)
    if strict and found:
        console.say(f"{len(found)} kernel(s) fell back: {'; '.join(found)}")
        raise typer.Exit(1)


def _where(manifest: Manifest, runs_here: bool) -> str:
    if manifest.is_npu:
        return "on a simulated NPU"
    return "yes" if runs_here else "no, it is for another architecture"


def _state_places(manifest: Manifest, facts: dict[str, Any] | None) -> list[str]:
    if facts is None:
        return ["memory" for _ in manifest.state]
    return [f"{place['memory'].upper()} at {place['address']}" for place in facts["state"]]
