"""The programs of an artifact at work on one stream: entry points, state, workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.artifact import Artifact
from resq_tvm.errors import ArtifactError
from resq_tvm.keyframes import Kind
from resq_tvm.manifest import THRESHOLDS


class Programs:
    """Keyframe, residual and frame program on the state and the workspace of one stream.

    Parameters
    ----------
    artifact : Artifact
        What to run; the library and the parameters are shared, state and workspace are not.
    threshold_scale : float
        Factor on every threshold of an artifact that chooses bits.
    """

    def __init__(self, artifact: Artifact, threshold_scale: float = 1.0) -> None:
        manifest = artifact.manifest
        self._artifact = artifact
        self._threshold_scale = threshold_scale
        self._enter(artifact.virtual_machine(threshold_scale))
        self.state: Any = None
        self._params = artifact.scaled_params(threshold_scale)
        if manifest.frame_params is not None:
            names = [entry.name for entry in manifest.params]
            self._frame_params = _tuple(self._params[names.index(n)] for n in manifest.frame_params)
        self._inputs = {e.input: i for i, e in enumerate(manifest.state) if e.input is not None}
        self._input_count = len(manifest.inputs)
        self._noted: Any = None  # a frame in the place of the keyframe's; None: the keyframe
        self._parts: list[Any] | None = None  # the state, taken apart
        self._latest: Any = None  # outputs of the frame computed last
        self._entries = manifest.workspace
        self._workspace: Any = None
        self._views: dict[str, NDArray[Any]] = {}
        self._refreshed: list[tuple[NDArray[Any], int]] = []  # after every keyframe, with what
        self._outputs = [(n, e) for n, e in enumerate(manifest.workspace) if e.output is not None]
        self._changed: list[NDArray[Any]] = []
        self._probed = False
        self._share = 1.0  # of the frame that the probe saw
        self._state_outputs: set[int] | None = None  # of a keyframe, those that are state, too
        self._results: Any = None  # of the latest keyframe or residual frame
        self._as_key = False  # whether they are those of the keyframe
        self._later: Any = None  # of a residual frame since the keyframe
        self._in_place: bool | None = None  # whether residual frames all write into the same

    def _enter(self, machine: Any, suffix: str = "") -> None:
        """Run the programs whose names end like that on a virtual machine."""
        manifest = self._artifact.manifest
        self.machine = machine
        self._keyframe = machine[f"keyframe{suffix}"]
        self._residual = machine[f"residual{suffix}"] if manifest.has_residual else None
        self._probe = machine[f"probe{suffix}"] if manifest.probe else None
        self._frame = machine[f"frame{suffix}"] if manifest.frame_params is not None else None
        self._note = machine[f"note{suffix}"] if manifest.note else None
        self._peek = machine[f"peek{suffix}"] if manifest.note else None

    def set_thresholds(self, values: NDArray[np.float32]) -> None:
        """Let residual frames decide by other thresholds, in the manifest's order."""
        import tvm

        names = [entry.name for entry in self._artifact.manifest.params]
        changed = list(self._params)
        changed[names.index(THRESHOLDS)] = tvm.runtime.tensor(values)
        self._params = _tuple(changed)

    @contextmanager
    def instrumented(self, instrument: Callable[..., int]) -> Iterator[None]:
        """Let the virtual machine tell ``instrument`` of every call while the context lasts.

        It is another machine, on programs in bytecode: those in machine code tell nothing.
        """
        from resq_tvm.passes.executable import OBSERVED

        usual, other = self.machine, self._artifact.virtual_machine(self._threshold_scale)
        other.set_instrument(instrument)
        try:
            self._enter(other, OBSERVED)
        except AttributeError:
            self._enter(usual)
            raise ArtifactError(
                f"artifact {str(self._artifact.path)!r} was compiled by a version without programs "
                "to observe; compile it anew"
            ) from None
        try:
            yield
        finally:
            self._enter(usual)

    @property
    def memory(self) -> list[Any]:
        """Parameters, state and workspace."""
        return [*self._params, *(self.state or ()), *(self._workspace or ())]

    @property
    def has_residual(self) -> bool:
        """Whether there is a residual program."""
        return self._residual is not None

    @property
    def is_sparse(self) -> bool:
        """Whether residual frames compute only what changed."""
        return bool(self._entries)

    @property
    def can_probe(self) -> bool:
        """Whether `probe` finds out what changed."""
        return self._probe is not None

    @property
    def has_frame(self) -> bool:
        """Whether there is a program that computes a frame without state."""
        return self._frame is not None

    @property
    def can_peek(self) -> bool:
        """Whether `note` and `peek` work."""
        return self._peek is not None

    def run(self, kind: Kind, tensors: list[Any]) -> Any:
        """Run the program of that name, or none to repeat outputs; return the outputs."""
        if kind == "repeat":
            self._probed = False
            return self._latest
        run = {"keyframe": self.keyframe, "residual": self.residual, "frame": self.frame}[kind]
        self._latest = run(tensors)
        return self._latest

    def keyframe(self, tensors: list[Any]) -> Any:
        """Run the keyframe program and keep its state; return the outputs."""
        results, self.state = self._keyframe(*tensors, self._params)
        self._parts = None
        self._probed = False
        if self.is_sparse:
            self._results, self._as_key, self._later = results, True, None
            self.prepare()
            for view, fill in self._refreshed:
                view.fill(fill)
            self._take_over(results)
        return results

    def _take_over(self, results: Any) -> None:
        """Let residual frames go on from the keyframe's outputs, in place."""
        if self._state_outputs is None:  # the program does the same every time
            held = {t.data_ptr() for t in self.state}
            self._state_outputs = {n for n, t in enumerate(results) if t.data_ptr() in held}
        changed = False
        for number, entry in self._outputs:
            result = results[entry.output]
            if entry.output in self._state_outputs:  # state must not change
                np.copyto(self._views[entry.name], np.from_dlpack(result))
                continue
            self._tensors[number] = result
            self._views[entry.name] = np.from_dlpack(result)
            changed = True
        if changed:
            self._workspace = _tuple(self._tensors)

    def frame(self, tensors: list[Any]) -> Any:
        """Run the frame program; return the outputs. State and workspace stay as they are."""
        assert self._frame is not None
        results, _ = self._frame(*tensors, self._frame_params)
        self._probed = False
        return results

    def probe(self, tensors: list[Any]) -> float:
        """Find out what share of the frame changed since the keyframe; 1 if that is not known.

        Once per frame: `peek` may have done it, where the frame noted is the keyframe.
        """
        if self._probe is None:
            return 1.0
        if self._probed:
            return self._share
        self._share = self._compare(self._probe, tensors, self.state)
        self._probed = True
        return self._share

    def note(self, kind: Kind, tensors: list[Any]) -> None:
        """Keep a frame that was computed for `peek`."""
        if kind == "keyframe":
            self._noted = None
            return
        assert self._note is not None
        given = {tensor.data_ptr() for tensor in tensors}
        if self._parts is None:  # once per keyframe: it takes as long as a comparison
            self._parts = list(self.state)
        for number, tensor in enumerate(self._note(*tensors, self._params)):
            # State in float32 is the frame itself, in memory that the next one is written to.
            mine = _copy(tensor) if tensor.data_ptr() in given else tensor
            self._parts[self._inputs[number]] = mine
        self._noted = _tuple(self._parts)

    def peek(self, tensors: list[Any]) -> float:
        """Find out what share of the frame changed since the frame noted."""
        if self._noted is None:
            return self.probe(tensors)
        self._probed = False
        return self._compare(self._peek, tensors, self._noted)

    def _compare(self, program: Any, tensors: list[Any], state: Any) -> float:
        self.prepare()
        maps = program(*tensors, state, self._workspace, self._params)
        if not self._changed:
            self._changed = [np.from_dlpack(m) for m in maps]
        return max(float(np.count_nonzero(m)) / m.size for m in self._changed)

    def residual(self, tensors: list[Any]) -> Any:
        """Run the residual program; return the outputs."""
        assert self._residual is not None
        if not self.is_sparse:
            results, self.state = self._residual(*tensors, self.state, self._params)
            return results
        if not self._probed:
            self.probe(tensors)
        self._probed = False
        # A frame's share says everything only if every input has a gate.
        unchanged = self._share == 0 and len(self._changed) == self._input_count
        if unchanged and self._as_key:
            self._views["counts"].fill(0)
            return self._results
        self.prepare()
        results, _ = self._residual(*tensors, self.state, self._workspace, self._params)
        if self._in_place is None and self._later is not None:  # a program does it every time
            pairs = zip(results, self._later, strict=True)
            self._in_place = all(new.data_ptr() == old.data_ptr() for new, old in pairs)
        if not self._in_place or self._later is None:
            self._later = results
        self._results, self._as_key = self._later, unchanged
        return self._later

    def lasts(self, results: Any) -> bool:
        """Whether the next residual frames return these very outputs, with new contents."""
        return bool(self._in_place) and results is self._later

    @property
    def counts(self) -> NDArray[np.int32] | None:
        """Tiles of every kernel of the latest residual frame: (kernels, 2), computed and reset."""
        return self._views["counts"].reshape(-1, 2) if self._views else None

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a tensor of the workspace, as the latest residual frame left it."""
        return self._views[name]

    def prepare(self) -> None:
        """Make the workspace, if there is one and it was not made before."""
        if self._workspace is not None or not self._entries:
            return
        import tvm

        self._tensors: list[Any] = []
        for entry in self._entries:
            tensor = tvm.runtime.empty(entry.shape, entry.dtype)
            view = np.from_dlpack(tensor)
            view.fill(entry.fill)
            self._tensors.append(tensor)
            self._views[entry.name] = view
            if entry.refresh:
                self._refreshed.append((view, entry.fill))
        self._workspace = _tuple(self._tensors)


def _copy(tensor: Any) -> Any:
    import tvm

    return tvm.runtime.tensor(np.from_dlpack(tensor))


def _tuple(tensors: Iterable[Any]) -> Any:
    """Return tensors as the virtual machine takes a tuple."""
    import tvm_ffi

    return tvm_ffi.convert(list(tensors))
