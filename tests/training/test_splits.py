"""Splits: nobody is in two, both classes in each, and what is left out is seen in the test only."""

from dataclasses import replace
from pathlib import Path

import pytest

from dissonance.errors import UsageError
from dissonance.synth.identity import SPLIT_OF_RACE
from dissonance.training.labels import SPLITS, Clip, Split
from dissonance.training.splits import check_splits, leave_out, of_split, split_by_identity


def clip(name: str, manipulation: str, split: Split, identity: str, category: str = "") -> Clip:
    fake = manipulation != "none"
    return Clip(name, Path(name), fake, False, manipulation, category or ("C" if fake else "A"), identity, "", split)


@pytest.fixture
def clips() -> list[Clip]:
    """Of every split: 4 real clips, 2 of each manipulation and, of wav2lip, 2 in each of two categories."""
    found = []
    for split in SPLITS:
        kinds = [*["none"] * 4, *["faceswap"] * 2, *["faceswap-wav2lip"] * 2, *["wav2lip"] * 2]
        found += [clip(f"{split}{number}", kind, split, f"{split}-{number}") for number, kind in enumerate(kinds)]
        found += [clip(f"{split}D{number}", "wav2lip", split, f"{split}-D{number}", "D") for number in range(2)]
    return found


def test_the_paper_s_split_is_by_ethnicity() -> None:
    """FACTS of the paper: train South Asian + East Asian + Caucasian American, validation African, test Caucasian European."""
    assert SPLIT_OF_RACE == {
        "Asian (South)": "train",
        "Asian (East)": "train",
        "Caucasian (American)": "train",
        "African": "validation",
        "Caucasian (European)": "test",
    }


def test_a_person_in_two_splits_is_told(clips: list[Clip]) -> None:
    check_splits(clips)
    with pytest.raises(UsageError, match=r"identity 'test-0' is in test and train \(1 such"):
        check_splits([*clips, clip("new", "none", "train", "test-0")])


def test_a_split_of_one_class_is_told(clips: list[Clip]) -> None:
    fakes_only = [found for found in clips if found.fake or found.split != "validation"]
    with pytest.raises(UsageError, match="validation has 0 real and 8 fake clips"):
        check_splits(fakes_only)
    check_splits(fakes_only, needed=("train", "test"))
    with pytest.raises(UsageError, match="train has 0 real and 0 fake clips"):
        check_splits(of_split(clips, "test"))


def test_left_out_manipulations_are_in_the_test_alone(clips: list[Clip]) -> None:
    kept = leave_out(clips, ["wav2lip"])
    assert {found.manipulation for found in kept if found.split != "test"} == {"none", "faceswap", "faceswap-wav2lip"}
    assert of_split(kept, "test") == of_split(clips, "test")
    assert [found for found in clips if found.manipulation != "wav2lip"] == [found for found in kept if found.manipulation != "wav2lip"]


def test_a_manipulation_of_one_category_can_be_left_out(clips: list[Clip]) -> None:
    kept = leave_out(clips, ["D/wav2lip"])
    assert {found.category for found in kept if found.split == "train" and found.manipulation == "wav2lip"} == {"C"}
    assert len(clips) - len(kept) == 4


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["rtvc"], r"Invalid manipulation \('rtvc'\)\. Supported values are .*wav2lip"),
        (["none"], r"Invalid manipulation \('none'\)"),
        (["faceswap", "faceswap-wav2lip", "wav2lip"], "train has 4 real and 0 fake clips"),
    ],
)
def test_what_cannot_be_left_out_is_told(clips: list[Clip], names: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        leave_out(clips, names)


def test_leaving_out_what_the_test_lacks_shows_nothing(clips: list[Clip]) -> None:
    with pytest.raises(UsageError, match="test has no clip of it"):
        leave_out([found for found in clips if found.split != "test" or found.manipulation != "faceswap"], ["faceswap"])


def test_a_split_by_identity_keeps_people_together_and_stays_when_clips_come(clips: list[Clip]) -> None:
    many = [replace(clips[0], uri=f"{person}-{number}", identity=f"p{person}") for person in range(2000) for number in range(2)]
    split = split_by_identity(many, seed=1, validation=0.1, test=0.2)
    place = {found.identity: found.split for found in split}
    assert all(found.split == place[found.identity] for found in split)
    shares = {name: sum(value == name for value in place.values()) / 2000 for name in SPLITS}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.03)  # 3 deviations of a binomial of 2,000
    assert split_by_identity(many[:500], seed=1, validation=0.1, test=0.2) == split[:500]
    assert split_by_identity(many, seed=2, validation=0.1, test=0.2) != split
    with pytest.raises(UsageError, match="together below 1"):
        split_by_identity(many, seed=1, validation=0.5, test=0.5)
