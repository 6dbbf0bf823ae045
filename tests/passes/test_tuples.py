"""Programs take every item of a tuple once, and do not end what the tuple holds."""

from __future__ import annotations

from collections import Counter

import pytest
import tvm
from tvm import relax

from resq_tvm.passes.graph import op_name
from resq_tvm.passes.pipeline import build_pipeline, run_phases
from resq_tvm.targets.preset import get_target
from tests.dynamic import dynamic, small_network


@pytest.fixture(scope="module")
def built() -> tvm.IRModule:
    mod = dynamic(small_network()).module
    lowered = run_phases(mod, get_target(), state_dtype="float16", recurrent=False)
    with tvm.target.Target(get_target().llvm), tvm.transform.PassContext(opt_level=3):
        return build_pipeline()(lowered.module)


@pytest.mark.parametrize("name", ["keyframe", "probe", "residual"])
def test_items(built: tvm.IRModule, name: str) -> None:
    function = built[name]
    bindings = [b for block in function.body.blocks for b in block.bindings]
    taken = {b.var: b.value for b in bindings if isinstance(b.value, relax.TupleGetItem)}
    places = Counter((item.tuple_value, int(item.index)) for item in taken.values())
    assert places and max(places.values()) == 1
    assert all(place[0] in function.params for place in places), "of a tuple made here"
    ended = [b.value.args[0] for b in bindings if "kill" in op_name(b.value)]
    assert not set(ended) & set(taken)
    tuples = [b.var for b in bindings if isinstance(b.value, relax.Tuple)]
    assert len(tuples) <= 3, "outputs, state, and both"
