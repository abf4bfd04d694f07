"""The bundle: whole or not there, and every byte is checked before it is used."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dissonance.bundle import REQUIRED_FILES, Bundle, BundleSpec, CropSpec, list_bundles, open_bundle, write_bundle
from dissonance.config import load_preset
from dissonance.errors import BundleError

FILES = {name: name.encode() * 3 for name in REQUIRED_FILES}
SPEC = BundleSpec(model=load_preset("demo"), crop=CropSpec(size_px=64), trained=True, trained_on="test")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "b", SPEC, FILES)


def edit(bundle: Bundle, **changes: Any) -> None:
    path = bundle.path / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_written_is_read_back(bundle: Bundle) -> None:
    again = open_bundle(bundle.path)
    assert again == bundle
    assert again.spec.model == SPEC.model
    assert again.id == hashlib.sha256((bundle.path / "bundle.json").read_bytes()).hexdigest()
    assert again.spec.sha256 == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert again.read("visual.onnx") == FILES["visual.onnx"]
    assert sorted(path.name for path in bundle.path.parent.iterdir()) == ["b"], "nothing is left beside it"


@settings(max_examples=30)
@given(name=st.sampled_from(REQUIRED_FILES), where=st.integers(0, 10), change=st.integers(1, 255))
def test_any_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, name: str, where: int, change: int) -> None:
    bundle = write_bundle(tmp_path_factory.mktemp("x") / "b", SPEC, FILES)
    data = bytearray(FILES[name])
    data[where] ^= change
    (bundle.path / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"'{name}' was changed"):
        open_bundle(bundle.path)


def test_a_file_changed_after_opening_is_found_when_it_is_read(bundle: Bundle) -> None:
    (bundle.path / "head.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="was changed"):
        bundle.read("head.onnx")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema_version": 1}, "schema version 1"),
        ({"colour": "red"}, "colour"),
        ({"trained": "perhaps"}, "trained"),
        ({"sha256": {}}, "does not list weights.safetensors"),
        ({"sha256": {**dict.fromkeys(REQUIRED_FILES, "0" * 64), "../../etc/passwd": "0" * 64}}, "not a plain path"),
        ({"sha256": {**dict.fromkeys(REQUIRED_FILES, "0" * 64), "/etc/passwd": "0" * 64}}, "not a plain path"),
        ({"calibration": {"av": {"scale": -1}}}, "calibration.av.scale"),
        ({"calibration": {"av": {}}}, "av, v and a each need one"),
        ({"calibration": {"av": {"likely_real_below": 0.9, "likely_fake_from": 0.1}, "v": {}, "a": {}}}, "above likely_fake_from"),
        ({"crop": {"size_px": 7}}, "crop.size_px 7"),
        ({"mel": {"bins": 128}}, "mel.bins 128"),
    ],
)
def test_a_bad_bundle_json_names_the_field(bundle: Bundle, changes: dict[str, Any], says: str) -> None:
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=says):
        open_bundle(bundle.path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000])
def test_a_bundle_json_that_is_none_is_refused(bundle: Bundle, content: bytes) -> None:
    (bundle.path / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError):
        open_bundle(bundle.path)


@pytest.mark.parametrize(
    ("training", "warns"),
    [
        (None, False),
        ({"scan": {"detector": {"kind": "haar"}}}, False),
        ({"scan": {"detector": {"kind": "boxes"}}}, True),
        ({"scan": 7}, False),
        ({"scan": {"detector": ["haar"]}}, False),
    ],
)
def test_another_detector_than_the_calibration_s_is_warned_of(bundle: Bundle, training: dict[str, Any] | None, warns: bool) -> None:
    edit(bundle, training=training)
    warning = open_bundle(bundle.path).warning_of_detector("haar")
    assert (warning is not None and "faces that 'boxes' found" in warning) == warns


def test_a_missing_file_and_a_missing_bundle_are_named(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "audio.onnx").unlink()
    with pytest.raises(BundleError, match=r"cannot read 'audio\.onnx'"):
        open_bundle(bundle.path)
    with pytest.raises(BundleError, match=r"No bundle 'nowhere'.*demo"):
        open_bundle("nowhere")
    with pytest.raises(BundleError, match="not a bundle"):
        open_bundle(tmp_path)


def test_a_folder_is_replaced_only_when_told_and_only_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="--overwrite"):
        write_bundle(bundle.path, SPEC, FILES)
    changed = write_bundle(bundle.path, SPEC, {**FILES, "head.onnx": b"new"}, overwrite=True)
    assert changed.read("head.onnx") == b"new"
    (tmp_path / "thesis").mkdir()
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(tmp_path / "thesis", SPEC, FILES, overwrite=True)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="No space left"):
        write_bundle(tmp_path / "b", SPEC, FILES)
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_bundles_hold() -> None:
    assert "demo" in list_bundles()
    demo = open_bundle("demo")
    assert demo.warning is not None, "a demo bundle must say that its verdicts mean nothing"
    assert sum(path.stat().st_size for path in demo.path.iterdir()) <= 10e6
