from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resq_tvm.errors import CompileError
from resq_tvm.schedules.decision import Decision

tiles = st.integers(1, 28)


@given(st.builds(Decision, st.text(), st.text(), tiles, tiles, tiles, st.booleans(), st.booleans()))
def test_json_round_trip(decision):
    assert Decision.from_json(decision.to_json()) == decision


def test_prints_on_one_line():
    assert str(Decision("dot", "dot", 1, 4, 2, inner_o=True)) == "dot 1x4x2 inner-o parallel"


def test_differences_are_told():
    one = Decision("dot", "dot", 1, 4, 2, inner_o=True)
    other = Decision("tuned", "dot", 1, 8, 2, inner_o=True, prefetch=2)
    assert one.difference(other) == "tile_x 4 -> 8, prefetch 0 -> 2"
    assert one.difference(one) == "the same"
    assert str(other) == "tuned 1x8x2 inner-o prefetch-2 parallel"


@pytest.mark.parametrize(
    "text,reason",
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"rule": "dot"}', "cannot be read"),
        ('{"rule": "dot", "method": "dot", "colour": 1}', "cannot be read"),
        ('{"rule": "dot", "method": "dot", "tile_x": "4"}', "cannot be read"),
        ('{"rule": "dot", "method": "dot", "tile_x": 0}', "empty tile"),
        ('{"rule": "dot", "method": "dot", "prefetch": -1}', "backwards"),
    ],
)
def test_broken_decisions_are_refused(text, reason):
    with pytest.raises(CompileError, match=reason):
        Decision.from_json(text)
