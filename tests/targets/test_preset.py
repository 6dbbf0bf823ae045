from __future__ import annotations

import subprocess
import sys

import pytest

from resq_tvm.errors import TargetError
from resq_tvm.targets import preset
from resq_tvm.targets.preset import PRESETS, get_target, missing_features


def test_presets_by_name():
    for name, target in PRESETS.items():
        assert get_target(name) is target
        assert target.llvm["kind"] == "llvm"
        assert target.code.zero_point == (128 if target.code.dtype == "uint8" else 0)


def test_unknown_target_lists_the_known_ones():
    with pytest.raises(TargetError, match=r"'x86-mmx' is unknown; use auto, x86-avx512-vnni"):
        get_target("x86-mmx")


@pytest.mark.parametrize("name", PRESETS)
def test_auto_takes_the_best_that_fits(name, monkeypatch):
    chosen = PRESETS[name]
    features = frozenset(chosen.features) | (set() if chosen.arm else {"sse2"})
    monkeypatch.setattr(preset, "cpu_features", lambda: features)
    monkeypatch.setattr(preset, "cpu_cores", lambda: (chosen.core,) if chosen.core else ())
    assert get_target("auto") is PRESETS[name]
    assert missing_features(PRESETS[name]) == ()


def test_auto_on_a_foreign_cpu(monkeypatch):
    monkeypatch.setattr(preset, "cpu_features", lambda: frozenset({"vfpv3"}))
    with pytest.raises(TargetError, match="fits no preset; name one of"):
        get_target()
    assert "avx512_vnni" in missing_features(PRESETS["x86-avx512-vnni"])


def test_reading_features_imports_nothing_heavy():
    code = (
        "import sys; from resq_tvm.targets.preset import cpu_features, get_target;"
        "cpu_features(); get_target('x86-generic');"
        "sys.exit(any(m in sys.modules for m in ('tvm', 'torch', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
