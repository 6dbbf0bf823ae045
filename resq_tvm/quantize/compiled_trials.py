"""Trials of thresholds on a compiled artifact: the same bits as in PyTorch, many times faster.

Thresholds are a parameter of the programs, so that one artifact serves every trial. What moved is
read from the maps that its kernels keep.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
import tvm
from numpy.typing import NDArray

from resq_tvm.artifact import Artifact
from resq_tvm.device import prepare_thread_pool, resolve_threads, use_threads
from resq_tvm.errors import ConfigError
from resq_tvm.programs import Programs
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.quantize.samples import Inputs
from resq_tvm.quantize.trials import Thresholds, Trial, Trials


class CompiledTrials(Trials):
    """Trials that an artifact runs; residual norms are still PyTorch's.

    Parameters
    ----------
    qnet, clips, period, phases, state_dtype
        As of `resq_tvm.quantize.trials.Trials`.
    artifact : Artifact
        Of this network, for this machine.

    Raises
    ------
    ConfigError
        If the artifact is of a network with other choices.
    """

    def __init__(
        self,
        qnet: QuantizedNetwork,
        clips: Sequence[Sequence[Inputs]],
        period: int,
        phases: Sequence[int],
        state_dtype: str,
        artifact: Artifact,
    ) -> None:
        super().__init__(qnet, clips, period, phases, state_dtype)
        manifest = artifact.manifest
        prepare_thread_pool()
        self._programs = Programs(artifact)
        self._frames = [
            [tvm.runtime.tensor(np.ascontiguousarray(x.numpy())) for x in inputs]
            for inputs in self._inputs
        ]
        self._names = manifest.thresholds  # of choices: that of the codes; of gates: X_gated
        workspace = {entry.name for entry in manifest.workspace}
        self._places = {
            name: [i for i, codes in enumerate(self._names) if _belongs(codes, name)]
            for name in self.choices
        }
        self._maps = {
            name: [f"{self._names[i]}_bits" for i in found] for name, found in self._places.items()
        }
        self._places |= {
            name: [i for i, codes in enumerate(self._names) if codes == f"{name}_gated"]
            for name in self.gates
        }
        known = {name for names in self._maps.values() for name in names}
        strange = [n for n in self._names if f"{n}_bits" not in known and not n.endswith("_gated")]
        if strange or not known <= workspace:
            raise ConfigError(
                f"artifact {str(artifact.path)!r} does not belong to this network "
                f"(thresholds of {', '.join(strange) or 'values without a map'}); compile it anew"
            )

    def run(self, thresholds: Thresholds) -> Trial:
        """Run the residual frames of all phases."""
        if self._norms is not None:
            return super().run(thresholds)
        use_threads(resolve_threads(None))
        programs = self._programs
        programs.set_thresholds(self._values(thresholds))
        trial = Trial([], [])
        for phase in self.phases:
            outputs, shares, before = list(self.key_outputs), [], -1
            for number, key in phase.items():
                if key != before:
                    programs.keyframe(self._frames[key])
                    before = key
                results = programs.residual(self._frames[number])
                outputs[number] = tuple(
                    self.net.from_canonical(np.from_dlpack(y).copy(), n)
                    for n, y in enumerate(results)
                )
                shares.append(self.meter.shares(self._read_maps()))
            trial.outputs.append(outputs)
            trial.shares.append(shares)
        return trial

    def _values(self, thresholds: Thresholds) -> NDArray[np.float32]:
        """Return the parameter's values; what is not named keeps everything."""
        found = np.zeros(max(1, len(self._names)), np.float32)
        for name, value in (*thresholds.choices.items(), *thresholds.gates.items()):
            found[self._places[name]] = value
        return found

    def _read_maps(self) -> dict[str, torch.Tensor]:
        moved: dict[str, torch.Tensor] = {}
        for name, maps in self._maps.items():
            for one in maps:
                plane = torch.from_numpy(self._programs.tensor(one)[..., 0] != 0)
                moved[name] = plane | moved[name] if name in moved else plane
        return moved


def _belongs(codes: str, choice: str) -> bool:
    """Whether codes of a residual program are those of a choice.

    A number follows their name where a value has codes of two scales.
    """
    value, _, pool = choice.rpartition(":")
    name = f"d_{value}_q{pool.replace(',', '_')}"
    return re.fullmatch(rf"{re.escape(name)}\d*", codes) is not None
