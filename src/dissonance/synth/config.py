"""What a synthetic data set looks like: one frozen configuration."""

from typing import Annotated, Literal, NamedTuple, Self, get_args

from pydantic import Field, model_validator

from dissonance.config import Fraction01, Frozen

FRAMES_PER_SECOND = 25

Forgery = Literal["none", "visual_timing", "visual_artefact", "audio_timing", "audio_artefact", "both"]
"""What was forged. Timing kinds have no artefact; artefact kinds are in sync; `both` is both artefacts, in sync as FakeAVCeleb's."""

FORGERIES: tuple[Forgery, ...] = get_args(Forgery)
PICTURE_ARTEFACTS: tuple[Forgery, ...] = ("visual_artefact", "both")
SOUND_ARTEFACTS: tuple[Forgery, ...] = ("audio_artefact", "both")

Renderer = Literal["relief", "cel"]
"""How people are drawn and how they sound: `relief` is shaded skin and a cascade of formants; `cel` is flat colours with drawn outlines and
a hoarse voice of parallel formants with vowels of its own. They share no face, no voice and no background."""

Compression = Literal["c18", "c23", "c28", "c35"]
"""Named after the rate factor of H.264, as in FaceForensics++."""


class CodecRates(NamedTuple):
    """What the encoders are told."""

    crf: int  # of x264
    audio_bit_rate: int  # of AAC, bit/s


RATES: dict[Compression, CodecRates] = {
    "c18": CodecRates(18, 96000),  # AAC allows no more than 6,144 bits in 1,024 samples: 96 kbit/s at 16 kHz
    "c23": CodecRates(23, 64000),
    "c28": CodecRates(28, 48000),
    "c35": CodecRates(35, 32000),
}


class SynthConfig(Frozen):
    """Options of `dissonance synth`. A clip depends on these, on the seed and on its own index, and on nothing else."""

    width: Annotated[int, Field(ge=96, le=7680, multiple_of=2)] = 320
    height: Annotated[int, Field(ge=96, le=4320, multiple_of=2)] = 240
    duration_s: Annotated[float, Field(ge=0.2, le=36000)] = 4.0  # rounded to whole frames of 1/25 s
    sample_rate_hz: Literal[16000, 44100, 48000] = 16000
    forgeries: Annotated[tuple[Forgery, ...], Field(min_length=1)] = (  # taken in turn: half of the clips are real
        "none", "visual_timing", "none", "audio_artefact", "none", "visual_artefact", "none", "audio_timing", "none", "both",
    )  # fmt: skip
    shift_frames: Annotated[int, Field(ge=-250, le=250)] = 0  # not 0: every clip is real but its sound comes so many frames later
    two_person_share: Fraction01 = 0.125  # of clips with a second, silent face beside the speaker
    renderer: Renderer = "relief"
    compressions: Annotated[tuple[Compression, ...], Field(min_length=1)] = ("c23",)  # each clip draws one, whatever its forgery

    @model_validator(mode="after")
    def _two_people_fit(self) -> Self:
        if self.two_person_share > 0 and self.width < self.height:
            raise ValueError(f"{self.width}x{self.height} is too narrow for two people: set two_person_share to 0, or width to {self.height} or more")
        return self

    @property
    def frames(self) -> int:
        """Video frames in a clip."""
        return max(1, round(self.duration_s * FRAMES_PER_SECOND))
