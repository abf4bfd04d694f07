"""What clip number i of a seed is: who, what forgery, with whose speech. Depends on nothing but the two numbers and the options."""

from dataclasses import dataclass
from typing import Literal

from dissonance.errors import UsageError
from dissonance.synth.config import Compression, Forgery, Renderer, SynthConfig
from dissonance.synth.identity import RACES
from dissonance.synth.randomness import Stream, stream

DonorKind = Literal["none", "moment", "speaker"]

_CAST = 8  # people of a race who lend each other their voices and stand beside each other: a voice that is only ever borrowed gives a forgery away


@dataclass(frozen=True)
class ClipPlan:
    """One clip, before it is drawn."""

    seed: int
    index: int
    identity: int  # number of the person who speaks
    forgery: Forgery
    donor_kind: DonorKind  # where a timing forgery's other speech is from: another moment of the same voice, or another speaker
    donor: int  # number of the person whose voice the other speech has; `identity` where there is none
    companion: int | None  # number of the silent person beside the speaker
    speaker_place: int  # 0 left, 1 right
    shift_frames: int  # the sound comes so many frames later than the picture
    renderer: Renderer
    compression: Compression


def plan_clip(seed: int, index: int, config: SynthConfig) -> ClipPlan:
    """The plan of clip `index`. Companions and donors are of the speaker's race, hence of the same split. Raises UsageError."""
    if seed < 0:
        raise UsageError(f"Invalid seed ({seed}). Supported values are whole numbers from 0 up.")
    races = len(RACES)
    kinds = config.forgeries
    # A block of clips has every race with every kind of forgery; within it race r starts with kind 3 r, so that even few clips are mixed.
    block, within = divmod(index, races * len(kinds))
    race = within % races
    forgery: Forgery = "none" if config.shift_frames else kinds[(within // races + 3 * race) % len(kinds)]
    donor_draw, donor_step, companion_draw, companion_step, place_draw, compression_draw = stream(seed, Stream.PLAN, index).random(6)

    def castmate(steps: int) -> int:
        cast, member = divmod(block, _CAST)
        return (cast * _CAST + (member + steps) % _CAST) * races + race

    retimed = forgery in ("visual_timing", "audio_timing")
    donor_kind: DonorKind = "none" if not retimed else "moment" if donor_draw < 0.5 else "speaker"
    return ClipPlan(
        seed=seed,
        index=index,
        identity=castmate(0),
        forgery=forgery,
        donor_kind=donor_kind,
        donor=castmate(2 * (1 + int(donor_step * (_CAST // 2 - 1)))) if donor_kind == "speaker" else castmate(0),  # two blocks on: the same gender
        companion=castmate(1 + int(companion_step * (_CAST - 1))) if companion_draw < config.two_person_share else None,
        speaker_place=int(place_draw * 2) if companion_draw < config.two_person_share else 0,
        shift_frames=config.shift_frames,
        renderer=config.renderer,
        compression=config.compressions[int(compression_draw * len(config.compressions))],
    )
