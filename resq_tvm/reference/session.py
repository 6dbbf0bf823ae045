"""One stream through the reference executor: what a compiled artifact's session should answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resq_tvm.errors import ConfigError
from resq_tvm.passes.partition import Partition
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.reference.executor import Executor, Observer

Frame = NDArray[np.float32] | tuple[NDArray[np.float32], ...]


class ReferenceSession:
    """Keyframe and residual programs of a calibrated network, run in PyTorch.

    Parameters
    ----------
    qnet : QuantizedNetwork
    state_dtype : str
        ``"float32"`` or ``"float16"``.
    period : int, optional
        A keyframe every ``period`` frames; the network's own by default, 1 for every frame.
    observe : callable, optional
        Called with the name and the tensor of every value of ``residual_program`` as it runs.
    """

    def __init__(
        self,
        qnet: QuantizedNetwork,
        *,
        state_dtype: str = "float32",
        period: int | None = None,
        observe: Observer | None = None,
    ) -> None:
        self.qnet = qnet
        self.period = qnet.period if period is None else period
        if self.period < 1:
            raise ConfigError(f"period {self.period} is out of range; use 1 or more")
        recurrent = qnet.options["residual"] == "recurrent"
        partition: Any = Partition(state_dtype, recurrent)
        programs = {var.name_hint: func for var, func in partition(qnet.module).functions_items()}
        self._keyframe = Executor(programs["keyframe"], watch=())
        self.residual_program: Any = programs.get("residual")
        self._residual: Executor | None = None
        if self.residual_program is not None:
            watch = () if observe is None else None
            self._residual = Executor(self.residual_program, watch=watch, observe=observe)
        self._state: Any = None
        self._since_keyframe = 0

    def reset(self) -> None:
        """Make the next frame a keyframe."""
        self._state = None

    def __call__(self, frame: Frame) -> NDArray[np.float32] | tuple[NDArray[np.float32], ...]:
        """Run one frame.

        Parameters
        ----------
        frame : ndarray or tuple of ndarray
            float32, in the source model's shape and layout.

        Returns
        -------
        ndarray or tuple of ndarray
            float32, in the source model's layout; the array itself if there is one output.
        """
        net = self.qnet.network
        arrays = frame if isinstance(frame, tuple) else (frame,)
        inputs = [
            torch.from_numpy(np.ascontiguousarray(net.to_canonical(array, index)))
            for index, array in enumerate(arrays)
        ]
        due = self._state is None or self._since_keyframe >= self.period
        if due or self._residual is None:
            results, self._state = self._keyframe(*inputs)
            self._since_keyframe = 0
        else:
            results, self._state = self._residual(*inputs, *self._state)
        self._since_keyframe += 1
        outputs = tuple(net.from_canonical(y.numpy(), n) for n, y in enumerate(results))
        return outputs[0] if len(outputs) == 1 else outputs
