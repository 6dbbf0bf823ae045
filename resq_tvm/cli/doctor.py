"""``resq-tvm doctor``: whether this installation can compile, run and show."""

from __future__ import annotations

from typing import Any

import typer

from resq_tvm.cli.console import Console, table
from resq_tvm.cli.options import Json


def doctor(json: Json = False) -> None:
    """Check versions, CPU features, compiler, codecs, write permission; what ARM boards need."""
    console = Console(json, "doctor")
    from resq_tvm.doctor import examine

    checks = examine()
    result = {"ok": all(check.fine for check in checks), "checks": [vars(c) for c in checks]}

    def render(out: Any) -> None:
        rows = [
            ("ok" if c.ok else "–" if c.optional else "BAD", c.name, c.detail, c.hint)
            for c in checks
        ]
        out.print(table(("", "check", "found", "way out"), rows))

    console.finish(result, render)
    if not result["ok"]:
        raise typer.Exit(1)
