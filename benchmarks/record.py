"""Write measured figures into docs/figures.md, each section by the benchmark that measured it."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "figures.md"
HEAD = """# Figures

Every section is written by the benchmark named in it (`--record`). Times are of the machine named;
ratios are taken within one run. Errors are judged by e (the scheme), F (frame W8A8) and H (holding
the keyframe's output); the recovery is (H − e) / (H − F), and counts only where H ≥ 1.25·F.
"""


def record(section: str, lines: list[str], device: dict[str, Any]) -> None:
    """Replace or append a section of the page.

    Parameters
    ----------
    section : str
        Heading; also the key under which a later run replaces the section.
    lines : list of str
        Markdown.
    device : dict
        The fingerprint of the machine that measured.
    """
    body = "\n".join([f"## {section}", "", stamp(device), "", *lines, ""])
    page = PAGE.read_text() if PAGE.is_file() else HEAD
    head, *sections = page.split("\n## ")
    kept = [s for s in sections if s.splitlines()[0] != section]
    text = "\n## ".join([head.rstrip("\n") + "\n", *(s.rstrip("\n") + "\n" for s in kept)])
    PAGE.write_text(f"{text.rstrip()}\n\n{body}")


def stamp(device: dict[str, Any], page: Path = PAGE) -> str:
    """Return what was run, at which commit, when and where.

    Parameters
    ----------
    device : dict
        The fingerprint of the machine that measured.
    page : Path
        Where it will stand; that this file is changed does not count.
    """
    commit = _git("rev-parse", "--short", "HEAD") or "an export"
    # The page itself changes with every recorded section.
    if _git("status", "--porcelain", "--", ":/", f":!{page}"):
        commit += " with changes"
    words = [Path(sys.argv[0]).stem, *(Path(a).name for a in sys.argv[1:])]
    machine = ", ".join(f"{k} {v}" for k, v in device.items())
    return (
        f"`python -m benchmarks.{' '.join(words)}` at {commit}, "
        f"{datetime.date.today().isoformat()}; {machine}"
    )


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], capture_output=True, text=True, cwd=PAGE.parent, check=False
    )
    return done.stdout.strip()
