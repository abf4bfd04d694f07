"""Which tiling is chosen: the fastest that was measured, remembered on disk, and the default where nothing is known."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import triton

from dissonance.errors import EnvironmentMissingError
from dissonance.kernels.tiling import Tiling
from dissonance.kernels.tune_match_fuse import candidates, main
from dissonance.kernels.tuning import cache_file, remembered, size_key, tune

DEFAULT = Tiling.default((9, 0), dtype=torch.float16, dim=256, outputs=256)
SMALL = Tiling.default((8, 0), dtype=torch.float32, dim=64, outputs=64)
KEY = size_key("match_fuse", dtype=torch.float16, dim=256, outputs=256, longest=33)


def measure(call: Callable[[], object]) -> float:
    return float(str(call()))


def test_the_fastest_is_remembered_for_its_size(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "gpu.json"
    times = {DEFAULT: 2.0, SMALL: 1.0}
    assert remembered(path) == {}
    assert tune(path, KEY, times, times.__getitem__, measure=measure) == SMALL
    assert tune(path, "another size", [DEFAULT], times.__getitem__, measure=measure) == DEFAULT
    assert remembered(path) == {KEY: SMALL, "another size": DEFAULT}
    assert [name.name for name in path.parent.iterdir()] == ["gpu.json"]


def test_what_does_not_fit_the_gpu_is_left_out(tmp_path: Path) -> None:
    def launch(tiling: Tiling) -> float:
        if tiling == DEFAULT:
            raise triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory")
        return 1.0

    assert tune(tmp_path / "gpu.json", KEY, [DEFAULT, SMALL], launch, measure=measure) == SMALL
    with pytest.raises(RuntimeError, match="no tiling"):
        tune(tmp_path / "gpu.json", KEY, [DEFAULT], launch, measure=measure)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": {"block_m": 1}}', '{"key": 3}', '{"key": {"block_m": "x"}}'])
def test_a_file_that_tune_did_not_write_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "gpu.json").write_text(content)
    assert remembered(tmp_path / "gpu.json") == {}


def test_sizes_and_gpus_have_places_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file("NVIDIA A/B 9").parent == tmp_path / "dissonance" / "kernels"
    assert cache_file("NVIDIA A").name != cache_file("NVIDIA B").name
    assert size_key("match_fuse", dtype=torch.float16, dim=256, outputs=256, longest=64) == KEY
    assert size_key("match_fuse", dtype=torch.float16, dim=256, outputs=256, longest=65) != KEY


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissingError, match="needs an NVIDIA GPU"):
        tune(tmp_path / "gpu.json", KEY, [DEFAULT], lambda _: None)
    with pytest.raises(EnvironmentMissingError, match="needs an NVIDIA GPU"):
        main([])


def test_candidates_begin_with_the_default_and_are_all_different() -> None:
    found = list(candidates(DEFAULT))
    assert found[0] == DEFAULT
    assert len(set(found)) == len(found) == 72
