"""Which processor this is, even where its name does not tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from resq_tvm import device

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu vme de: pse

processor\t: 1
cpu family\t: 99
"""
ARM = """processor\t: 0
BogoMIPS\t: 108.00
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
"""


@pytest.mark.parametrize(
    ("text", "kind"), [(X86, "26-2-1"), (ARM, "0x41-0xd08-0x0"), ("", ""), (None, "")]
)
def test_kind_of_processor(
    text: str | None, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cpuinfo"
    if text is not None:
        place.write_text(text, "utf-8")
    monkeypatch.setattr(device, "CPUINFO", place)
    assert device.cpu_kind() == device.fingerprint()["kind"] == kind
    assert device.cpu_model() == ("AMD EPYC" if text == X86 else device.cpu_model() or "")
    assert device.fingerprint(2)["threads"] == 2
