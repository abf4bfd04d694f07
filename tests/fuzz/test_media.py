"""Damaged media costs its own file only: what fuzzing found once, and a short run of the fuzzer over the usual containers and codecs."""

from pathlib import Path

import pytest

from dissonance.engine.media.clip import ClipSummary
from tests.fuzz.media import Reader, fuzz, trouble
from tests.fuzz.mutations import Damage
from tests.fuzz.seeds import Seed, make_seeds

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


@pytest.fixture(scope="module")
def seeds() -> list[Seed]:
    return make_seeds(containers=("mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "wav", "ivf", "h264"), thorough=False)


@pytest.mark.parametrize("detector", ["boxes", "haar"])
def test_every_file_of_the_corpus_ends_as_it_should(detector: str) -> None:
    with Reader(detector=detector, workers=1) as reader:
        for number, _, outcome in reader.read((number, path.read_bytes()) for number, path in enumerate(CORPUS)):
            assert trouble(outcome, CORPUS[number].name) is None, (CORPUS[number].name, outcome.message)


def test_a_short_run_finds_nothing(seeds: list[Seed]) -> None:
    report = fuzz(seeds, executions=150, seed=20, workers=1)
    assert report.findings == {}
    assert report.executions == report.outcomes.total() == 150
    assert report.windows > 0, "no file got as far as the crops"


def test_undamaged_seeds_reach_the_crops_and_the_sound(seeds: list[Seed]) -> None:
    with Reader(detector="boxes", workers=1) as reader:
        outcomes = {seeds[number].name: outcome for number, _, outcome in reader.read((number, seed.data) for number, seed in enumerate(seeds))}
    unread = {name for name, outcome in outcomes.items() if not isinstance(outcome.message, ClipSummary)}
    assert unread <= {"wav.-.aac"}, "AAC in WAV has lost its packets' borders; everything else can be read"
    assert sum(outcome.message.faces == 2 for outcome in outcomes.values() if isinstance(outcome.message, ClipSummary)) > len(seeds) / 2


def test_a_file_of_a_run_can_be_made_again(seeds: list[Seed]) -> None:
    again = Damage(make_seeds(containers=("mp4", "matroska"), thorough=False), seed=3)
    first = Damage([seed for seed in seeds if seed.container in ("mp4", "matroska")], seed=3)
    assert [first.file(number) for number in range(20)] == [again.file(number) for number in range(20)]
    assert len({first.file(number).data for number in range(20)}) > 15
