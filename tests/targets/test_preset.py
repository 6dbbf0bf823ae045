from __future__ import annotations

import subprocess
import sys

import pytest

from resq_tvm.errors import TargetError
from resq_tvm.targets import preset
from resq_tvm.targets.npu.description import preset_npus
from resq_tvm.targets.preset import PRESETS, get_target, missing_features


def test_presets_by_name():
    for name, target in PRESETS.items():
        assert get_target(name) is target
        assert target.llvm["kind"] == "llvm"
        assert target.code.zero_point == (128 if target.code.dtype == "uint8" else 0)


def test_unknown_target_lists_the_known_ones():
    with pytest.raises(TargetError, match=r"'x86-mmx' is unknown; use auto, x86-avx512-vnni"):
        get_target("x86-mmx")


@pytest.mark.parametrize("name", preset_npus())
def test_npus_by_name(name, tmp_path):
    target = get_target(name)
    assert target == get_target(name) and hash(target) == hash(get_target(name))
    assert (target.name, target.isa, target.npu) == (name, "npu", preset_npus()[name])
    assert (target.code.dtype, target.code.zero_point) == ("int8", 0)
    # Code for its host runs on every CPU of this architecture.
    assert target.llvm["kind"] == "llvm" and not target.triple and not missing_features(target)
    path = tmp_path / "mine.json"
    path.write_text(target.npu.model_copy(update={"name": "npu-mine"}).model_dump_json())
    mine = get_target(str(path))
    assert mine.name == "npu-mine" and mine != target
    assert mine.npu.matrix == target.npu.matrix


def test_wrong_npus(tmp_path):
    with pytest.raises(TargetError, match=r"'npu-none' is unknown; use auto, .*npu-micro, .*json"):
        get_target("npu-none")
    with pytest.raises(TargetError, match="cannot be read"):
        get_target(str(tmp_path / "none.json"))
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(TargetError, match=r"name is wrong: Field required"):
        get_target(str(tmp_path / "a.json"))


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
