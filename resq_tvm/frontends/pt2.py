"""Read ``.pt2`` files without running what is in them.

`torch.export.load` unpickles some parts of an archive, evaluates strings as Python, and resolves
operators by name in all of torch. A file is therefore looked through first: weights must be plain
bytes, example inputs must load as tensors only, symbolic sizes must be plain arithmetic, and
operators must be ATen's. Older archives, which consist of pickles, are refused.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from resq_tvm.errors import ModelError
from resq_tvm.frontends.common import importing

_TARGET = re.compile(
    r"torch\.ops\.(aten|prims)\.\w+\.\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|le|lt|ge|gt|eq|ne)"
)
# SymPy's notation, e.g. Add(Integer(-1), Symbol('s53', positive=True, integer=True))
_SIZE = re.compile(
    r"((Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|FloorDiv|CleanDiv|Mod|PythonMod)\("
    r"|'[su]\d+'|(positive|nonnegative|integer|real)=(True|False)|-?\d+|[),\s])*"
)
_LARGEST_DESCRIPTION = 256 << 20


def read_program(path: Path) -> Any:
    """Return the exported program in a ``.pt2`` file.

    Raises
    ------
    ModelError
        If the file is not an archive of `torch.export.save`, or holds what could run code.
    """
    name = path.name
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{name}: is not a .pt2 archive; save the model with torch.export.save")
    with importing(name):
        with zipfile.ZipFile(path) as archive:
            _check(name, archive)
        program = torch.export.load(path)
        # Strings of Python that would be run by the program's module; shapes are checked here.
        program._guards_code = []
        return program


def _check(name: str, archive: zipfile.ZipFile) -> None:
    members = {m.split("/", 1)[-1]: m for m in archive.namelist()}
    if "models/model.json" not in members:
        raise ModelError(
            f"{name}: is not an archive of torch.export.save of this torch "
            f"({torch.__version__}); export the model anew"
        )
    if {m for m in members if m.startswith("models/")} != {"models/model.json"}:
        raise ModelError(f"{name}: holds several models; save one model per file")
    for kind in ("weights", "constants"):
        config = _json(archive, members.get(f"data/{kind}/model_{kind}_config.json"))
        for entry, meta in (config.get("config") or {}).items():
            if meta.get("use_pickle") is not False or not meta.get("tensor_meta"):
                raise _refused(name, f"{kind[:-1]} {entry!r} is pickled")
    for member, full in members.items():
        if member.startswith("data/sample_inputs/"):
            _check_tensors(name, archive.read(full))
    program = _json(archive, members["models/model.json"])
    for key, value in _strings(program):
        if key == "target" and not _TARGET.fullmatch(value):
            raise _refused(name, f"operator {value!r} is not one of ATen's")
        if key == "expr_str" and not _SIZE.fullmatch(value):
            raise _refused(name, f"symbolic size {value!r} is not plain arithmetic")


def _json(archive: zipfile.ZipFile, member: str | None) -> Any:
    if member is None:
        return {}
    if archive.getinfo(member).file_size > _LARGEST_DESCRIPTION:
        raise ModelError(f"{member}: description of the model is too large; export the model anew")
    return json.loads(archive.read(member))


def _check_tensors(name: str, content: bytes) -> None:
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise _refused(name, "example inputs are more than tensors") from None


def _strings(node: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of every text in a JSON document."""
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, str):
                yield key, value
            else:
                yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)


def _refused(name: str, reason: str) -> ModelError:
    return ModelError(
        f"{name}: refused, since loading it could run code ({reason}); "
        "export the model with torch.export from its source"
    )
