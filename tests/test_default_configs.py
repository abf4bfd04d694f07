"""The shipped configurations of scans and of serving say what the code does."""

from pathlib import Path

import pytest
import yaml

from dissonance.config import Frozen, ScanConfig, ServeConfig, load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
KINDS = {"scan": ScanConfig, "serve": ServeConfig}


@pytest.mark.parametrize("name", KINDS)
def test_the_default_file_holds_every_default_and_leaves_no_field_out(name: str) -> None:
    path, kind = CONFIGS / name / "default.yaml", KINDS[name]
    default: Frozen = kind()
    assert load_config(kind, path) == default
    assert yaml.safe_load(path.read_text()) == default.model_dump(mode="json")
