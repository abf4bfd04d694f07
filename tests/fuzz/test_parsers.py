"""What reads outside bytes raises its documented errors and nothing else, however the bytes were made; and what fuzzing found once stays mended."""

import traceback
from pathlib import Path

import pytest

from tests.fuzz.parsers import fuzz
from tests.fuzz.targets import TARGETS

# Inputs that once got something else out of a reader. (target, input)
FOUND = [
    ("config.yaml", b"speech: !!int x\n"),  # PyYAML raises ValueError, ...
    ("config.yaml", b"speech: !!float ''\n"),  # ... IndexError, ...
    ("config.yaml", b"speech: !!bool maybe\n"),  # ... KeyError ...
    ("config.yaml", b"speech: !!timestamp soon\n"),  # ... and AttributeError here
    ("config.yaml", b"x: 2020-13-45\n"),
    ("config.yaml", b"x: 2020-01-01 25:00:00\n"),
    ("config.yaml", b"x: 0b_\n"),
    ("config.yaml", b"x: 0x_\n"),
    (
        "config.yaml",
        b"a: &a0 [x]\n" + b"".join(b"b%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)) + b"speech: *a11\n",
    ),
]


def undocumented(name: str, data: bytes) -> str | None:
    """What came out of a reader that should not have."""
    try:
        TARGETS[name].check(data)
    except Exception:
        return traceback.format_exc()
    return None


@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors_come_out(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install 'dissonance[test]' on Linux with Python 3.11")
    report = fuzz(name, executions=2000, seed=7, keep=tmp_path)
    assert report.findings == [], "\n".join((tmp_path / finding).read_text(errors="replace") for finding in report.findings)
    assert report.executions >= 2000


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_an_input_that_the_reader_takes_or_refuses(name: str) -> None:
    assert [found for data in TARGETS[name].seeds if (found := undocumented(name, data))] == []


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_once_stays_mended(name: str, data: bytes) -> None:
    assert undocumented(name, data) is None
