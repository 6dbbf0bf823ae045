"""What a verb says: its resolved arguments, its progress, its result.

Standard output carries the result alone: one JSON document with ``--json``, tables otherwise.
Arguments and progress go to standard error.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 2.0


class Console:
    """The voice of one verb.

    Parameters
    ----------
    as_json : bool
        Print one JSON document instead of tables, and no progress.
    verb : str
        The verb's name.
    arguments : keyword arguments
        The arguments as resolved; echoed at once, and part of the JSON document.
    """

    def __init__(self, as_json: bool, verb: str, **arguments: Any) -> None:
        self.as_json = as_json
        self.verb = verb
        self.arguments = {name: _plain(value) for name, value in arguments.items()}
        if not as_json:
            shown = "  ".join(f"{k}={v}" for k, v in self.arguments.items() if v is not None)
            print(f"resq-tvm {verb}: {shown}", file=sys.stderr)

    def resolve(self, **arguments: Any) -> None:
        """Echo arguments that were resolved during the work (``auto`` → a target)."""
        plain = {name: _plain(value) for name, value in arguments.items()}
        self.arguments.update(plain)
        if not self.as_json:
            shown = "  ".join(f"{k}={v}" for k, v in plain.items() if v is not None)
            print(f"  resolved: {shown}", file=sys.stderr)

    def say(self, text: str) -> None:
        """Tell one step of the work."""
        if not self.as_json:
            print(f"  {text}", file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[..., None]]:
        """Yield a callback ``(step, done=None, total=None)`` that shows the work's progress.

        On a terminal it is a bar or a spinner; otherwise a line now and then for a new step.
        """
        if self.as_json:
            yield lambda *_args, **_more: None
        elif sys.stderr.isatty():
            with _bar(title) as update:
                yield update
        else:
            latest, at = "", 0.0

            def line(step: object, *_counts: object) -> None:
                nonlocal latest, at
                now = time.monotonic()
                if str(step) != latest and now - at >= _SECONDS_BETWEEN_LINES:
                    latest, at = str(step), now
                    self.say(f"{title}: {step}")

            yield line

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items`` and show how many have passed."""
        with self.progress(title) as update:
            for count, item in enumerate(items):
                update("frame", count, total)
                yield item

    def finish(self, result: dict[str, Any], render: Callable[[Any], None]) -> None:
        """Print the result: the JSON document, or what ``render`` prints on a rich console."""
        if self.as_json:
            document = {**result, "arguments": self.arguments}
            print(json.dumps(document, indent=2, default=_plain))
            return
        from rich.console import Console as RichConsole

        # Piped output keeps its columns instead of breaking at 80 characters.
        width = None if sys.stdout.isatty() else 160
        render(RichConsole(width=width, highlight=False))


@contextmanager
def _bar(title: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def update(step: object, done: int | None = None, total: int | None = None) -> None:
            bar.update(task, description=f"{title}: {step}", completed=done, total=total)

        yield update


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Any:
    """Return a rich table; columns of numbers are right-aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    listed = [list(row) for row in rows]
    made = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left")
    for i, name in enumerate(columns):
        numbers = any(isinstance(row[i], int | float) for row in listed)
        made.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in listed:
        made.add_row(*(cell(value) for value in row))
    return made


def cell(value: object) -> str:
    """Return a table cell's text: numbers short, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        if value != 0 and not 1e-3 <= abs(value) < 1e6:
            return f"{value:.3g}"
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    if isinstance(value, str | int | float | bool | list | dict) or value is None:
        return value
    return value.item() if hasattr(value, "item") else str(value)
