"""Configuration: unknown keys and impossible values are refused by name; the fingerprint holds what can change a row."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dissonance.config import (
    DetectorConfig,
    ExecutionConfig,
    LimitsConfig,
    ModelConfig,
    ScanConfig,
    list_presets,
    load_config,
    load_preset,
    parse_config,
)
from dissonance.errors import ConfigError


def test_presets_have_the_published_geometry() -> None:
    assert list_presets() == ["base", "demo", "large"]
    visual = {name: load_preset(name).visual for name in ("base", "large")}
    audio = {name: load_preset(name).audio for name in ("base", "large")}
    assert {name: (each.hidden_size, each.layers, each.patch_size) for name, each in visual.items()} == {
        "base": (768, 12, 16),
        "large": (1024, 24, 14),
    }
    assert {name: (each.hidden_size, each.layers, each.heads) for name, each in audio.items()} == {"base": (512, 6, 8), "large": (768, 12, 12)}
    for preset in map(load_preset, list_presets()):
        assert (preset.frames, preset.hop, preset.head.tau, preset.head.max_lag) == (32, 32, 0.07, 8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hop": 33}, "hop 33 is longer"),
        ({"frames": 1000}, "max_positions"),
        ({"fps": 30}, "fps"),
        ({"head": {"max_lag": 32}}, "max_lag 32"),
        ({"visual": {"heads": 7}}, "not a multiple of heads 7"),
        ({"visual": {"prompts": {"count": 0, "readout": "prompt"}}}, "needs prompts"),
        ({"visual": {"prompts": {"carry": "juggle"}}}, "visual.prompts.carry"),
        ({"audio": {"prompts": {"shape": 1}}}, "audio.prompts.shape: unknown key"),
        ({"head": {"tau": float("nan")}}, "head.tau"),
    ],
)
def test_impossible_models_are_refused_by_field_and_value(change: dict[str, object], says: str) -> None:
    data = load_preset("base").model_dump()
    for key, value in change.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=says):
        parse_config(ModelConfig, data, origin="test")


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="base, demo, large"):
        load_preset("huge")


def test_the_fingerprint_ignores_the_layout_of_the_work_and_nothing_else() -> None:
    plain = ScanConfig()
    assert ScanConfig(execution=ExecutionConfig(workers=3, batch_frames=1)).fingerprint() == plain.fingerprint()
    assert ScanConfig(extensions=(".mp4",)).fingerprint() == plain.fingerprint()
    assert ScanConfig(limits=LimitsConfig(min_frames=11)).fingerprint() != plain.fingerprint()
    assert ScanConfig(detector=DetectorConfig(every_frames=5)).fingerprint() != plain.fingerprint()


def test_the_fingerprint_holds_the_content_of_named_files(tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("one")
    config = ScanConfig(detector=DetectorConfig(kind="boxes", boxes_file=boxes))
    before = config.fingerprint()
    boxes.write_text("two")
    assert config.fingerprint() != before
    boxes.unlink()
    with pytest.raises(ConfigError, match="boxes_file"):
        config.fingerprint()


@given(st.binary(max_size=200))
def test_no_yaml_can_do_more_than_be_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    try:
        config = load_config(ScanConfig, path)
    except ConfigError:
        return
    assert config == ScanConfig() or yaml.safe_load(content) is not None
