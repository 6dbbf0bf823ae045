"""The programs of an artifact at work on one stream: entry points, state, workspace."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.artifact import Artifact


class Programs:
    """Keyframe and residual program on the state and the workspace of one stream.

    Parameters
    ----------
    artifact : Artifact
        What to run; the library and the parameters are shared, state and workspace are not.
    threshold_scale : float
        Factor on every threshold of an artifact that chooses bits.
    """

    def __init__(self, artifact: Artifact, threshold_scale: float = 1.0) -> None:
        manifest = artifact.manifest
        self.machine = artifact.virtual_machine()
        self.state: Any = None
        self._keyframe = self.machine["keyframe"]
        self._residual = self.machine["residual"] if manifest.has_residual else None
        self._probe = self.machine["probe"] if manifest.probe else None
        self._params = artifact.scaled_params(threshold_scale)
        self._entries = manifest.workspace
        self._workspace: Any = None
        self._views: dict[str, NDArray[Any]] = {}
        self._changed: list[NDArray[Any]] = []
        self._probed = False

    @property
    def has_residual(self) -> bool:
        """Whether there is a residual program."""
        return self._residual is not None

    @property
    def is_sparse(self) -> bool:
        """Whether residual frames compute only what changed."""
        return bool(self._entries)

    def keyframe(self, tensors: list[Any]) -> Any:
        """Run the keyframe program and keep its state; return the outputs."""
        results, self.state = self._keyframe(*tensors, self._params)
        self._probed = False
        for entry in self._entries if self._workspace is not None else ():
            if entry.refresh:
                self._views[entry.name].fill(entry.fill)
        return results

    def probe(self, tensors: list[Any]) -> float:
        """Find out what share of the frame changed since the keyframe; 1 if that is not known."""
        if self._probe is None:
            return 1.0
        self._allocate()
        maps = self._probe(*tensors, self.state, self._workspace, self._params)
        if not self._changed:
            self._changed = [np.from_dlpack(m) for m in maps]
        self._probed = True
        return max(float(np.count_nonzero(m)) / m.size for m in self._changed)

    def residual(self, tensors: list[Any]) -> Any:
        """Run the residual program; return the outputs."""
        assert self._residual is not None
        if not self.is_sparse:
            results, self.state = self._residual(*tensors, self.state, self._params)
            return results
        if not self._probed:
            self.probe(tensors)
        self._allocate()
        results, _ = self._residual(*tensors, self.state, self._workspace, self._params)
        self._probed = False
        return results

    @property
    def counts(self) -> NDArray[np.int32] | None:
        """Tiles of every kernel of the latest residual frame: (kernels, 2), computed and reset."""
        return self._views["counts"].reshape(-1, 2) if self._views else None

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a tensor of the workspace, as the latest residual frame left it."""
        return self._views[name]

    def _allocate(self) -> None:
        """Make the workspace, at the first residual frame."""
        if self._workspace is not None or not self._entries:
            return
        import tvm
        import tvm_ffi

        tensors = []
        for entry in self._entries:
            tensor = tvm.runtime.empty(entry.shape, entry.dtype)
            view = np.from_dlpack(tensor)
            view.fill(entry.fill)
            tensors.append(tensor)
            self._views[entry.name] = view
        self._workspace = tvm_ffi.convert(tensors)
