"""What clip number i of a seed is: who, what forgery, with whose speech. Depends on nothing but the two numbers and the options."""

from dataclasses import dataclass
from typing import Literal

from dissonance.errors import UsageError
from dissonance.synth.config import SynthConfig, TimingForgery
from dissonance.synth.identity import RACES
from dissonance.synth.randomness import Stream, stream

DonorKind = Literal["none", "moment", "speaker"]


@dataclass(frozen=True)
class ClipPlan:
    """One clip, before it is drawn."""

    seed: int
    index: int
    identity: int  # number of the person who speaks
    forgery: TimingForgery
    donor_kind: DonorKind  # where a forgery's other speech is from: another moment of the same voice, or another speaker
    donor: int  # number of the person whose voice the other speech has; `identity` where there is none
    companion: int | None  # number of the silent person beside the speaker
    speaker_place: int  # 0 left, 1 right
    shift_frames: int  # the sound comes so many frames later than the picture


def plan_clip(seed: int, index: int, config: SynthConfig) -> ClipPlan:
    """The plan of clip `index`. Companions and donors are of the speaker's race, hence of the same split. Raises UsageError."""
    if seed < 0:
        raise UsageError(f"Invalid seed ({seed}). Supported values are whole numbers from 0 up.")
    rng = stream(seed, Stream.PLAN, index)
    races = len(RACES)
    kinds = config.forgeries
    # A block of clips has every race with every kind of forgery; within it race r starts with kind r, so that even few clips are mixed.
    block, within = divmod(index, races * len(kinds))
    race = within % races
    person = block * races + race
    forgery: TimingForgery = "none" if config.shift_frames else kinds[(within // races + race) % len(kinds)]
    donor_draw, donor_step, companion_draw, companion_step, place_draw = rng.random(5)
    donor_kind: DonorKind = "none" if forgery == "none" else "moment" if donor_draw < 0.5 else "speaker"
    # Two blocks further is the same race and gender.
    donor = person + 2 * races * (1 + int(donor_step * 20)) if donor_kind == "speaker" else person
    companion = person + races * (1 + int(companion_step * 40)) if companion_draw < config.two_person_share else None
    return ClipPlan(
        seed, index, person, forgery, donor_kind, donor, companion, int(place_draw * 2) if companion is not None else 0, config.shift_frames
    )
