"""Small dataclasses out of JSON text, field types checked."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, TypeVar

T = TypeVar("T")


def read_fields(kind: type[T], text: str) -> T:
    """Return a dataclass of plain fields from a JSON object.

    Parameters
    ----------
    kind : type
        A dataclass whose annotations are names of plain types.
    text : str

    Raises
    ------
    ValueError, TypeError
        If the text is no JSON object of these fields and types.
    """
    made: Any = kind(**json.loads(text))
    for name, value in asdict(made).items():
        if type(value).__name__ != kind.__annotations__[name]:
            raise TypeError(f"{name} is {value!r}")
    found: T = made
    return found
