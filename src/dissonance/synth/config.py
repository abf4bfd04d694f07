"""What a synthetic data set looks like: one frozen configuration."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from dissonance.config import Fraction01, Frozen

FRAMES_PER_SECOND = 25

Forgery = Literal["none", "visual_timing", "visual_artefact", "audio_timing", "audio_artefact", "both"]
"""Every value the `forgery` column of meta_data.csv may hold."""

TimingForgery = Literal["none", "visual_timing", "audio_timing"]
"""The ones that are generated: real clips, and forgeries that only their timing gives away."""

FORGERIES: tuple[Forgery, ...] = get_args(Forgery)


class SynthConfig(Frozen):
    """Options of `dissonance synth`. A clip depends on these, on the seed and on its own index, and on nothing else."""

    width: Annotated[int, Field(ge=96, le=7680, multiple_of=2)] = 320
    height: Annotated[int, Field(ge=96, le=4320, multiple_of=2)] = 240
    duration_s: Annotated[float, Field(ge=0.2, le=36000)] = 4.0  # rounded to whole frames of 1/25 s
    sample_rate_hz: Literal[16000, 44100, 48000] = 16000
    forgeries: Annotated[tuple[TimingForgery, ...], Field(min_length=1)] = ("none", "visual_timing", "none", "audio_timing")  # taken in turn
    shift_frames: Annotated[int, Field(ge=-250, le=250)] = 0  # not 0: every clip is real but its sound comes so many frames later
    two_person_share: Fraction01 = 0.125  # of clips with a second, silent face beside the speaker
    crf: Annotated[int, Field(ge=0, le=51)] = 23  # of x264
    audio_bit_rate: Annotated[int, Field(ge=16000, le=320000)] = 64000

    @model_validator(mode="after")
    def _two_people_fit(self) -> Self:
        if self.two_person_share > 0 and self.width < self.height:
            raise ValueError(f"{self.width}x{self.height} is too narrow for two people: set two_person_share to 0, or width to {self.height} or more")
        return self

    @property
    def frames(self) -> int:
        """Video frames in a clip."""
        return max(1, round(self.duration_s * FRAMES_PER_SECOND))
