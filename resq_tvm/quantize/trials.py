"""Run a calibrated network's residual program over clips with thresholds that can be changed.

Keyframes do not depend on thresholds: they run once, and their state is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resq_tvm.passes.graph import const_value
from resq_tvm.passes.partition import Partition
from resq_tvm.passes.policy import CHOOSE, GATE, choice_name, gate_of, keep_of
from resq_tvm.quantize.activity import ActivityMeter
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.quantize.samples import Inputs
from resq_tvm.reference.executor import Executor
from resq_tvm.reference.operands import Kernel
from resq_tvm.reference.ops_policy import changed_pixels, choose_bits, strongest_blocks

Outputs = tuple[NDArray[np.float32], ...]  # of one frame, in the source layout


@dataclass(frozen=True)
class Thresholds:
    """What a trial decides by, in the units of the programs.

    Attributes
    ----------
    choices : mapping of str to float
        Choice → threshold in units of the finest codes (`resq_tvm.passes.policy.Choice`); what is
        not named keeps everything.
    gates : mapping of str to float
        Input → threshold of its gate; what is not named is open.
    """

    choices: Mapping[str, float] = field(default_factory=dict)
    gates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """Outputs per phase and frame; layer → share of active tiles, per residual frame of a phase.

    Frames of a phase that are not residual frames have the outputs of a keyframe.
    """

    outputs: list[list[Outputs]]
    shares: list[list[dict[str, float]]]


class Trials:
    """A network, clips, and any number of runs with different thresholds.

    Parameters
    ----------
    qnet : QuantizedNetwork
        With a pool scheme.
    clips : sequence of sequence of Inputs
        Frames of each clip, as network inputs; they are numbered over all clips.
    period : int
    phases : sequence of int
        Where the first keyframe of every clip lies: the clips are run once for each.
    state_dtype : str

    Attributes
    ----------
    phases : list of dict of int to int
        Per phase: residual frame → its keyframe.
    key_outputs : list of Outputs
        Of every frame, as if it were a keyframe.
    """

    def __init__(
        self,
        qnet: QuantizedNetwork,
        clips: Sequence[Sequence[Inputs]],
        period: int,
        phases: Sequence[int],
        state_dtype: str,
    ) -> None:
        self.net = qnet.network
        self.meter = ActivityMeter(qnet.module["main"])
        partition: Any = Partition(state_dtype)
        programs = partition(qnet.module)
        self._thresholds = Thresholds()
        self._norms: dict[str, list[torch.Tensor]] | None = None
        self._moved: dict[str, torch.Tensor] = {}
        dynamic = qnet.dynamic or {"choices": {}, "gates": {}}
        self.choices = tuple(dynamic["choices"])
        self.gates = tuple(dynamic["gates"])
        self._residual = Executor(
            programs["residual"],
            watch=(),
            operators={CHOOSE: self._choose, GATE: self._gate},
        )
        keyframe = Executor(programs["keyframe"], watch=())
        self._inputs = [inputs for clip in clips for inputs in clip]
        self.phases = [_keyframes(clips, period, phase) for phase in phases]
        needed = {key for phase in self.phases for key in phase.values()}
        self.key_outputs: list[Outputs] = []
        self._states: dict[int, Any] = {}
        for number, inputs in enumerate(self._inputs):
            results, state = keyframe(*inputs)
            self.key_outputs.append(self._source_layout(results))
            if number in needed:
                self._states[number] = state

    def run(self, thresholds: Thresholds) -> Trial:
        """Run the residual frames of all phases."""
        self._thresholds = thresholds
        trial = Trial([], [])
        for phase in self.phases:
            outputs, shares = list(self.key_outputs), []
            for number, key in phase.items():
                self._moved = {}
                results, _ = self._residual(*self._inputs[number], *self._states[key])
                outputs[number] = self._source_layout(results)
                shares.append(self.meter.shares(self._moved))
            trial.outputs.append(outputs)
            trial.shares.append(shares)
        return trial

    def held(self) -> list[list[Outputs]]:
        """Return the outputs of holding the keyframe's, per phase and frame."""
        return [
            [self.key_outputs[phase.get(n, n)] for n in range(len(self._inputs))]
            for phase in self.phases
        ]

    def residual_norms(self) -> dict[str, float]:
        """Return choice → root mean square over pixels of the norm of the finest codes."""
        self._norms = {}
        self.run(Thresholds())
        squares = {
            name: float(np.sqrt(np.mean([float(p) for p in parts])))
            for name, parts in self._norms.items()
        }
        self._norms = None
        return squares

    def _choose(self, call: Any, _differentiable: bool) -> Kernel:
        pool = tuple(int(b) for b in const_value(call.args[3]))
        shifts = [int(s) for s in const_value(call.args[4])]
        # As `resq_tvm.passes.partition.program` names it; a number follows where a value has codes
        # of two scales.
        fine = str(call.args[1].name).removeprefix("d_")
        name = choice_name(fine.rpartition(f"_q{'_'.join(map(str, pool))}_fine")[0], pool)
        if name not in self.choices:
            raise KeyError(f"{call.args[1].name} belongs to no choice")
        keep = keep_of(call)

        def run(codes: torch.Tensor) -> torch.Tensor:
            if self._norms is not None:
                energy = codes.float().square_().sum(-1).mean()
                self._norms.setdefault(name, []).append(energy)
            threshold = self._thresholds.choices.get(name, 0.0)
            if threshold > 0:
                codes = choose_bits(codes, list(pool), shifts, threshold)[0].to(torch.int8)
            if keep:
                codes = (codes * strongest_blocks(codes.float(), keep)).to(torch.int8)
            moved = (codes != 0).any(-1)
            self._moved[name] = moved | self._moved[name] if name in self._moved else moved
            return codes

        return run

    def _gate(self, call: Any, _differentiable: bool) -> Kernel:
        settings = gate_of(call)
        frame = str(call.args[1].name)
        name = next(n for n in self.gates if frame in (n, f"{n}_rounded"))

        def run(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            threshold = self._thresholds.gates.get(name, 0.0)
            if threshold == 0:
                return x
            return torch.where(
                changed_pixels(x, key, replace(settings, threshold=threshold)), x, key
            )

        return run

    def _source_layout(self, results: Any) -> Outputs:
        values = results if isinstance(results, tuple) else (results,)
        return tuple(self.net.from_canonical(y.numpy(), n) for n, y in enumerate(values))


def _keyframes(clips: Sequence[Sequence[Inputs]], period: int, phase: int) -> dict[int, int]:
    """Return residual frame → its keyframe, with the first keyframe of a clip at ``phase``."""
    found, first = {}, 0
    for clip in clips:
        for position in range(phase, len(clip)):
            if (position - phase) % period:
                found[first + position] = first + position - (position - phase) % period
        first += len(clip)
    return found
