"""The tables of cores are whole."""

from __future__ import annotations

import pytest

from resq_tvm.errors import TargetError
from resq_tvm.targets.emulated import instructions
from resq_tvm.targets.emulated.cores import CORES, VARIANTS, Core, get_core
from resq_tvm.targets.preset import PRESETS

LISTED = {kind for _, kind in instructions._VECTOR_KINDS}


@pytest.mark.parametrize("core", (CORES | VARIANTS).values(), ids=lambda c: c.name)
def test_every_kind_has_a_timing(core: Core) -> None:
    assert not LISTED - core.timings.keys()
    assert core.timings.keys() == CORES["cortex-a53"].timings.keys()
    for timing in core.timings.values():
        assert 1 <= timing.latency < 64 and 0 <= timing.chain <= timing.latency
        assert len(timing.wide) <= 4 and len(timing.narrow) <= 4
        assert all(use.cycles <= 64 for use in (*timing.wide, *timing.narrow))


def test_every_preset_with_a_core_can_be_emulated() -> None:
    cores = {preset.core for preset in PRESETS.values() if preset.core}
    assert cores == CORES.keys()


def test_an_unknown_core_is_told() -> None:
    with pytest.raises(TargetError, match="'cortex-m4' cannot be emulated; use one of cortex-a53"):
        get_core("cortex-m4")
