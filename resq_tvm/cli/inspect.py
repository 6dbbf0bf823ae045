"""``resq-tvm inspect``: what is inside an artifact, without loading its library."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from resq_tvm.cli.console import Console, table
from resq_tvm.cli.options import ArtifactPath, Json


def inspect(
    artifact: ArtifactPath,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with 1 where a kernel is not tuned and tensorized."),
    ] = False,
    json: Json = False,
) -> None:
    """Verify OUT.resq (schema, sizes, hashes, versions, CPU features) and show its manifest.

    An artifact for another architecture is shown, too, as one that does not run here.
    """
    console = Console(json, "inspect", artifact=artifact, strict=strict)
    from resq_tvm.artifact import require_machine, verify_files
    from resq_tvm.schedules.choice import fallbacks
    from resq_tvm.targets.preset import get_target
    from resq_tvm.targets.toolchain import is_foreign

    manifest = verify_files(artifact)
    runs_here = not is_foreign(manifest.target.name)
    if runs_here:
        require_machine(artifact, manifest)
    isa = get_target(manifest.target.name).isa
    found = fallbacks([k.model_dump() for k in manifest.kernels], isa)
    result = {
        **manifest.model_dump(mode="json"),
        "runs_here": runs_here,
        "fallbacks": found,
        "state_bytes": manifest.state_bytes,
        "workspace_bytes": manifest.workspace_bytes,
    }
    programs = {
        "keyframe": True,
        "residual": manifest.has_residual,
        "probe": manifest.probe,
        "frame": manifest.frame_params is not None,
    }

    def render(out: Any) -> None:
        rows = [
            ("scheme", manifest.scheme),
            ("period", manifest.period),
            ("target", manifest.target.name),
            ("runs here", "yes" if runs_here else "no, it is for another architecture"),
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
            (entry.name, "x".join(map(str, entry.shape)), entry.dtype, entry.bytes)
            for entry in manifest.state
        ]
        if state:
            out.print(table(("state", "shape", "dtype", "bytes"), state))
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
            out.print(table(("program", "operator outside the fused kernels"), opaque))
        files = [(name, entry.bytes, entry.sha256) for name, entry in manifest.files.items()]
        out.print(table(("file", "bytes", "sha256"), files))

    console.finish(result, render)
    if strict and found:
        console.say(f"{len(found)} kernel(s) fell back: {'; '.join(found)}")
        raise typer.Exit(1)
