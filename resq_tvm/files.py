"""Outputs that appear whole or not at all, and a writability test before long work. Leaf module.

Everything is written under a temporary name beside its destination and renamed at the end, so
that an interrupted program leaves no half-written file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resq_tvm.errors import OutputError


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Return where fetched files are kept: ``RESQ_TVM_CACHE``, or ``~/.cache/resq-tvm``."""
    override = os.environ.get("RESQ_TVM_CACHE")
    return Path(override) if override else Path.home() / ".cache" / "resq-tvm"


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` as a `Path` if something of that name can be created beside its siblings.

    Missing parent folders are created.

    Raises
    ------
    OutputError
        If a parent folder cannot be created or does not take new entries.
    """
    target = Path(path)
    parent = target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".resq-", dir=parent):
            pass
    except OSError as error:
        raise OutputError(
            f"output {str(target)!r} cannot be written ({error.strerror}); choose another path"
        ) from None
    return target


def _staging_name(target: Path) -> Path:
    # The suffix is kept because writers (PyAV, matplotlib) choose the format by it.
    return target.parent / f".{target.stem}.tmp-{os.getpid()}{target.suffix}"


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name in the folder of ``path``; rename it to ``path`` on success.

    On any exception, Ctrl-C included, the temporary file is removed and ``path`` is untouched.

    Raises
    ------
    OutputError
        If the folder is not writable, or ``path`` is a folder.
    """
    target = check_writable(path)
    if target.is_dir():
        raise OutputError(f"output {str(target)!r} is a folder; name a file")
    staging = _staging_name(target)
    try:
        yield staging
        staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], marker: str) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; rename it to ``path`` on success.

    Parameters
    ----------
    path : path-like
        The destination. An existing folder is replaced only if it holds a file named ``marker``
        (so that a mistyped name never deletes somebody's files) or is empty.
    marker : str
        Name of the file by which a folder of this kind is known.

    Raises
    ------
    OutputError
        If the parent is not writable, or ``path`` is something that must not be replaced.
    """
    target = check_writable(path)
    check_replaceable(target, marker)
    staging = _staging_name(target)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        if target.exists():
            # A folder cannot be renamed over a full one: the old one steps aside first.
            old = target.parent / f".{target.name}.old-{os.getpid()}"
            target.replace(old)
            staging.replace(target)
            shutil.rmtree(old)
        else:
            staging.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(target: Path, marker: str) -> None:
    """Raise `OutputError` if ``target`` exists and is not a folder of the kind ``marker`` tells."""
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"output {str(target)!r} is a file; name a folder")
    if any(target.iterdir()) and not (target / marker).is_file():
        raise OutputError(
            f"output {str(target)!r} is a folder without {marker}; remove it or choose another name"
        )
