"""The wheel holds every module, and the README's commands are what .ci/run runs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("resq_tvm", "passes", "schedules", "targets")


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {p.parent for room in ROOMS for p in (ROOT / room).rglob("*.py")}
    assert [str(f) for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def test_readme_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    first, second = blocks[0].splitlines(), blocks[1].splitlines()
    assert len(first) == len(second) == 1
    assert "python3 -m venv" in first[0] and first[0].endswith("resq-tvm demo")
    assert "[dev]" in second[0] and second[0].endswith("-m pytest -n 2 --dist loadfile")


def test_ci_runs_the_readme_and_no_copy_of_it() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script and "head -n 2" in script
    assert "pip install" not in script


def test_only_documented_verbs_and_all_of_them() -> None:
    verbs = {p.stem for p in (ROOT / "resq_tvm" / "cli").glob("*.py")}
    verbs -= {"__init__", "__main__", "console", "fit", "options"}  # no verbs
    verbs = {v for v in verbs if not v.startswith(("bench_", "inspect_"))}  # parts of verbs
    line = next(
        line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if "demo | " in line
    )
    assert set(re.findall(r"\w+", line.split("`resq-tvm ")[1].split("`")[0])) == verbs
