from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.runtime.vm import VirtualMachine

from resq_tvm.passes.pipeline import build_pipeline, generate_code, run_phases
from resq_tvm.targets.preset import get_target
from tests.graphs import annotated, frames, random_network


@pytest.fixture(scope="module")
def lowered():
    mod = annotated(random_network(3), "W8A8->W8A4")
    return run_phases(mod, get_target(), state_dtype="float16", recurrent=False)


def test_only_frames_are_checked(lowered):
    with tvm.target.Target(get_target().llvm), tvm.transform.PassContext(opt_level=3):
        built = build_pipeline()(lowered.module)
    for name in ("keyframe", "residual"):
        function = built[name]
        checked = [
            b.value.args[0]
            for block in function.body.blocks
            for b in block.bindings
            if isinstance(b.value, relax.Call)
            and isinstance(b.value.op, relax.ExternFunc)
            and str(b.value.op.global_symbol) == "vm.builtin.check_tensor_info"
        ]
        assert [v.name for v in checked] == [p.name for p in function.params if p.name == "x"]
        assert len(lowered.params) > 5


def test_programs_refuse_other_frames(lowered):
    mod = annotated(random_network(3), "W8A8->W8A4")
    machine = VirtualMachine(generate_code(lowered, get_target()), tvm.cpu())
    params = [tvm.runtime.tensor(a) for a in lowered.params.values()]
    (frame,) = frames(mod, 1, 0)
    machine["keyframe"](tvm.runtime.tensor(frame), params)
    for wrong in (frame[:, :-1], frame.astype(np.float64)):
        with pytest.raises(Exception, match=r"(?i)shape|dtype|expect"):
            machine["keyframe"](tvm.runtime.tensor(np.ascontiguousarray(wrong)), params)
