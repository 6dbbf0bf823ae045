"""``resq-tvm edge``: the runtime without Python, as sources or built for a board."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resq_tvm.cli.console import Console, table
from resq_tvm.cli.options import Json


def edge(
    output: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write; an older one is replaced.")
    ],
    arch: Annotated[
        str | None,
        typer.Option("--arch", help="aarch64 or x86_64; this machine's by default."),
    ] = None,
    build: Annotated[
        bool, typer.Option("--build", help="Build resq-run and resq-board-server into DIR/bin.")
    ] = False,
    markers: Annotated[
        bool,
        typer.Option("--markers", help="Mark in programs what an emulated board measures."),
    ] = False,
    json: Json = False,
) -> None:
    """Write the C++ runtime, its examples and TVM's runtime libraries into a folder for a board."""
    console = Console(json, "edge", output=output, arch=arch, build=build, markers=markers)
    from resq_tvm.edge.build import LIBRARIES, PROGRAMS, write_runtime
    from resq_tvm.errors import ConfigError

    if markers and not build:
        raise ConfigError("--markers needs --build")
    with console.progress("edge") as progress:
        folder = write_runtime(
            output, arch, programs=tuple(PROGRAMS) if build else (), markers=markers,
            progress=progress,
        )  # fmt: skip
    names = [f"lib/{name}" for name in LIBRARIES]
    names += [f"bin/{name}" for name in PROGRAMS] if build else []
    result: dict[str, Any] = {
        "folder": str(folder),
        "files": {name: (folder / name).stat().st_size for name in names},
    }

    def render(out: Any) -> None:
        out.print(table((f"in {folder}", "bytes"), list(result["files"].items())))
        out.print(f"See {folder / 'README.md'}")

    console.finish(result, render)
