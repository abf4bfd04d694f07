"""The shipped scan configuration says what the code does."""

from pathlib import Path

import yaml

from dissonance.config import ScanConfig, load_config

DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "scan" / "default.yaml"


def test_the_default_file_holds_every_default() -> None:
    assert load_config(ScanConfig, DEFAULT) == ScanConfig()


def test_the_default_file_leaves_no_field_out() -> None:
    assert yaml.safe_load(DEFAULT.read_text()) == ScanConfig().model_dump(mode="json")
