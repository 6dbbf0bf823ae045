"""Artifacts are whole or absent, and nothing damaged or foreign is ever loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resq_tvm.artifact import Artifact
from resq_tvm.errors import ArtifactError, CompileError, OutputError, TargetError
from resq_tvm.manifest import Manifest, Versions
from resq_tvm.processing.presets import PRESETS
from tests.resq_tvm import tiny_artifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_artifact.write(tmp_path / "net.resq")
    return tmp_path / "net.resq"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(folder: Path) -> None:
    manifest = Artifact.load(folder).manifest
    assert manifest == Manifest.read(folder)
    assert (manifest.scheme, manifest.period, manifest.state_bytes) == ("W8A8->W8A4", 3, 720)
    assert manifest.versions == Versions.installed()
    assert set(manifest.files) == {"library.so", "params.safetensors", "kernels.json"}
    assert [p.name for p in manifest.params] == ["bias"]


def test_processing_is_kept(tmp_path: Path) -> None:
    from resq_tvm.artifact import write_artifact

    artifact = write_artifact(
        tiny_artifact.compiled(), tmp_path / "n.resq", processing=PRESETS["espnet_camvid"]
    )
    assert artifact.manifest.processing == PRESETS["espnet_camvid"]


def test_no_temporary_folder_remains_and_artifacts_are_replaced(folder: Path) -> None:
    tiny_artifact.write(folder, period=7)
    assert [p.name for p in folder.parent.iterdir()] == ["net.resq"]
    assert Manifest.read(folder).period == 7


def test_other_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").write_text("x")
    with pytest.raises(OutputError, match=r"folder without manifest\.json"):
        tiny_artifact.write(tmp_path / "photos")
    assert (tmp_path / "photos" / "me.png").exists()


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    class NoLinker:
        def export_library(self, path: str) -> None:
            raise RuntimeError("g++ not found\nlong log")

    base = tiny_artifact.compiled()
    broken = tiny_artifact.FakeCompiled(NoLinker(), base.params, base.info)
    from resq_tvm.artifact import write_artifact

    with pytest.raises(CompileError, match="install a C\\+\\+ compiler"):
        write_artifact(broken, tmp_path / "n.resq")
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, contents: bytes) -> None:
    """Write a new file of the same name: the old one may be mapped into this process."""
    path.unlink()
    path.write_bytes(contents)


@pytest.mark.parametrize("name", ["library.so", "params.safetensors"])
def test_altered_file(folder: Path, name: str) -> None:
    contents = bytearray((folder / name).read_bytes())
    contents[len(contents) // 2] ^= 1
    rewrite(folder / name, contents)
    with pytest.raises(ArtifactError, match=f"{name} does not match its SHA-256"):
        Artifact.load(folder)


@pytest.mark.parametrize("name", ["library.so", "params.safetensors"])
def test_truncated_file(folder: Path, name: str) -> None:
    contents = (folder / name).read_bytes()
    rewrite(folder / name, contents[: len(contents) // 2])
    with pytest.raises(ArtifactError, match=f"{name} has .* bytes, the manifest says"):
        Artifact.load(folder)


@pytest.mark.parametrize("name", ["library.so", "params.safetensors", "manifest.json"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        Artifact.load(folder)


def test_missing_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        Artifact.load(tmp_path / "absent.resq")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff", '{"format_version": 99}'])
def test_unreadable_manifest(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError) as caught:
        Artifact.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"period": 0}, {"inputs": []}, {"unknown": 1}, {"processing": {"input": {"std": [0, 1, 1]}}}],
)
def test_manifest_against_the_schema(folder: Path, changes: dict[str, object]) -> None:
    edit(folder, **changes)
    with pytest.raises(ArtifactError, match=f"invalid at '{next(iter(changes))}"):
        Artifact.load(folder)


def test_parameters_against_the_manifest(folder: Path) -> None:
    edit(folder, params=[{"name": "bias", "shape": [4], "dtype": "float32"}])
    with pytest.raises(
        ArtifactError, match=r"bias is float32\[3\], the manifest says float32\[4\]"
    ):
        Artifact.load(folder)


def test_another_tvm(folder: Path) -> None:
    edit(folder, versions={"resq_tvm": "0.1.0", "tvm": "0.1", "tvm_ffi": "0.1"})
    with pytest.raises(ArtifactError, match=r"built with tvm 0\.1"):
        Artifact.load(folder)


def test_wrong_cpu(folder: Path) -> None:
    edit(folder, target={"name": "x86-quantum", "features": ["qubits"]})
    with pytest.raises(TargetError, match="this CPU lacks qubits"):
        Artifact.load(folder)
