"""Who speaks: a face and a voice for every identity number, and the split the person belongs to.

Identity number n belongs to race n mod 5, so splits by race are splits by identity as well.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dissonance.synth.config import Renderer
from dissonance.synth.randomness import Stream, stream

Race = Literal["African", "Asian (East)", "Asian (South)", "Caucasian (American)", "Caucasian (European)"]
Gender = Literal["men", "women"]
Split = Literal["train", "validation", "test"]
HairStyle = Literal["bald", "buzz", "short", "side_part", "fringe", "bob", "long", "tied"]
GlassesStyle = Literal["none", "round", "square"]
Colour = tuple[float, float, float]  # RGB, 0 to 255

RACES: tuple[Race, ...] = ("African", "Asian (East)", "Asian (South)", "Caucasian (American)", "Caucasian (European)")

SPLIT_OF_RACE: dict[Race, Split] = {  # the split of the paper: by ethnicity
    "African": "validation",
    "Asian (East)": "train",
    "Asian (South)": "train",
    "Caucasian (American)": "train",
    "Caucasian (European)": "test",
}

_BLACK, _DARK_BROWN, _BROWN, _BLOND, _RED, _GREY = (
    (26.0, 23.0, 22.0), (52.0, 37.0, 28.0), (92.0, 64.0, 43.0), (186.0, 150.0, 98.0), (138.0, 70.0, 38.0), (150.0, 148.0, 146.0),
)  # fmt: skip
_DARK_EYE, _HAZEL, _GREEN, _BLUE = (48.0, 30.0, 20.0), (104.0, 76.0, 42.0), (86.0, 104.0, 72.0), (84.0, 120.0, 156.0)


@dataclass(frozen=True)
class _Looks:
    """What varies between groups of people: ranges of skin colour, choices of hair and iris colour."""

    darkest_skin: Colour
    lightest_skin: Colour
    hair: tuple[Colour, ...]
    iris: tuple[Colour, ...]


_CAUCASIAN = _Looks(
    (186, 142, 118), (222, 184, 162), (_DARK_BROWN, _BROWN, _BROWN, _BLOND, _BLOND, _RED, _BLACK, _GREY), (_BLUE, _GREEN, _HAZEL, _DARK_EYE)
)
_LOOKS: dict[Race, _Looks] = {
    "African": _Looks((104, 68, 48), (158, 110, 82), (_BLACK, _BLACK, _BLACK, _DARK_BROWN, _DARK_BROWN, _GREY), (_DARK_EYE,)),
    "Asian (East)": _Looks((188, 146, 116), (220, 182, 150), (_BLACK, _BLACK, _BLACK, _DARK_BROWN, _DARK_BROWN, _GREY), (_DARK_EYE,)),
    "Asian (South)": _Looks((146, 102, 74), (194, 146, 114), (_BLACK, _BLACK, _BLACK, _DARK_BROWN, _DARK_BROWN, _GREY), (_DARK_EYE, _HAZEL)),
    "Caucasian (American)": _CAUCASIAN,
    "Caucasian (European)": _CAUCASIAN,
}
_HAIR_STYLES: dict[Gender, tuple[HairStyle, ...]] = {
    "men": ("bald", "buzz", "short", "short", "side_part", "side_part", "fringe"),
    "women": ("bob", "bob", "long", "long", "tied", "side_part", "fringe"),
}


@dataclass(frozen=True)
class Face:
    """How a person looks, and in which style. Lengths are in units of half the face's width; the eye line is y = 0, y grows downwards."""

    skin: Colour
    hair: Colour
    iris: Colour
    hair_style: HairStyle
    glasses: GlassesStyle
    beard: float  # 0 none to 1 full
    jaw_exponent: float  # larger is squarer
    chin_y: float
    eye_x: float
    eye_half_width: float
    eye_half_height: float
    eye_tilt: float  # outer corner's rise over the eye's half width
    brow_y: float
    brow_thickness: float
    nose_width: float
    nose_y: float
    mouth_y: float
    mouth_half_width: float
    lip_thickness: float
    lip_redness: float
    hair_volume: float
    texture_seed: int
    style: Renderer = "relief"


@dataclass(frozen=True)
class Voice:
    """How a person sounds."""

    f0_hz: float
    f0_span: float  # of intonation, in octaves
    formant_scale: float  # vocal tract length, 1 for an average man
    breathiness: float
    syllables_per_s: float
    tilt_db_per_octave: float  # of the voiced spectrum
    model: Renderer = "relief"
    jitter: float = 0.0  # of the pitch, relative: roughness


@dataclass(frozen=True)
class Identity:
    """One person. `name` is the folder's name in the data set."""

    number: int
    name: str
    race: Race
    gender: Gender
    split: Split
    face: Face
    voice: Voice


def race_of(number: int) -> Race:
    """The race of an identity number."""
    return RACES[number % len(RACES)]


def gender_of(number: int) -> Gender:
    """The gender of an identity number: half of each race."""
    return "women" if (number // len(RACES) + number % len(RACES)) % 2 else "men"


def identity(seed: int, number: int, renderer: Renderer = "relief") -> Identity:
    """The person with this number; the same in every clip of a seed and a renderer."""
    rng = stream(seed, Stream.IDENTITY, number)
    race, gender = race_of(number), gender_of(number)
    face, voice = _face(rng, race, gender), _voice(rng, gender)
    if renderer == "cel":
        face, voice = _cel_face(rng, face), _cel_voice(rng, gender)
    return Identity(number, f"id{number:05d}", race, gender, SPLIT_OF_RACE[race], face, voice)


def _face(rng: np.random.Generator, race: Race, gender: Gender) -> Face:
    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def jitter(colour: Colour, amount: float) -> Colour:
        red, green, blue = (float(np.clip(channel * gain, 4, 250)) for channel, gain in zip(colour, rng.normal(1.0, amount, 3), strict=True))
        return red, green, blue

    looks, man = _LOOKS[race], gender == "men"
    lightness = between(0, 1)
    dark, light = looks.darkest_skin, looks.lightest_skin
    skin: Colour = (
        dark[0] + lightness * (light[0] - dark[0]),
        dark[1] + lightness * (light[1] - dark[1]),
        dark[2] + lightness * (light[2] - dark[2]),
    )
    styles = _HAIR_STYLES[gender]
    return Face(
        skin=jitter(skin, 0.02),
        hair=jitter(looks.hair[rng.integers(len(looks.hair))], 0.04),
        iris=jitter(looks.iris[rng.integers(len(looks.iris))], 0.1),
        hair_style=styles[rng.integers(len(styles))],
        glasses=("none", "none", "none", "none", "round", "square")[rng.integers(6)],
        beard=max(0.0, between(-0.7, 1.0)) if man else 0.0,
        jaw_exponent=between(2.8, 4.0) if man else between(2.4, 3.2),
        chin_y=between(1.6, 1.74) if man else between(1.52, 1.66),
        eye_x=between(0.42, 0.48),
        eye_half_width=between(0.19, 0.225),
        eye_half_height=between(0.07, 0.085) if race == "Asian (East)" else between(0.08, 0.105),
        eye_tilt=between(-0.02, 0.14),
        brow_y=between(-0.34, -0.28) if man else between(-0.37, -0.3),
        brow_thickness=between(0.045, 0.07) if man else between(0.03, 0.05),
        nose_width=between(0.19, 0.25) if race != "African" else between(0.23, 0.29),
        nose_y=between(0.62, 0.7),
        mouth_y=between(1.0, 1.07),
        mouth_half_width=between(0.33, 0.41),
        lip_thickness=between(0.07, 0.11) if race != "African" else between(0.1, 0.14),
        lip_redness=between(0.1, 0.5) if man else between(0.35, 1.0),
        hair_volume=between(0.85, 1.2),
        texture_seed=int(rng.integers(2**31)),
    )


def _voice(rng: np.random.Generator, gender: Gender) -> Voice:
    man = gender == "men"
    return Voice(
        f0_hz=float(rng.uniform(88, 142) if man else rng.uniform(162, 235)),
        f0_span=float(rng.uniform(0.15, 0.4)),
        formant_scale=float(rng.uniform(0.94, 1.06) if man else rng.uniform(1.1, 1.22)),
        breathiness=float(rng.uniform(0.01, 0.05)),
        syllables_per_s=float(rng.uniform(3.6, 5.4)),
        tilt_db_per_octave=float(rng.uniform(-8.0, -4.5)),
    )


def _cel_face(rng: np.random.Generator, face: Face) -> Face:
    """The cel style's proportions: large eyes, a short and pointed chin, a small nose, heavy brows; colours of its own."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    vivid = np.asarray(face.skin) ** 1.25
    red, green, blue = np.clip(vivid * (np.mean(face.skin) / vivid.mean()) * rng.normal(1.05, 0.025, 3), 4, 250)
    colours: tuple[Colour, ...] = ((40.0, 34.0, 60.0), (96.0, 40.0, 34.0), (60.0, 74.0, 110.0), (196.0, 120.0, 50.0), (24.0, 60.0, 58.0))
    return replace(
        face,
        style="cel",
        skin=(float(red), float(green), float(blue)),
        hair=colours[rng.integers(len(colours))],
        jaw_exponent=between(2.0, 2.6),
        chin_y=between(1.44, 1.56),
        eye_x=between(0.42, 0.47),
        eye_half_width=between(0.24, 0.28),
        eye_half_height=between(0.115, 0.15),
        eye_tilt=between(0.1, 0.3),
        brow_y=between(-0.4, -0.34),
        brow_thickness=between(0.055, 0.085),
        nose_width=between(0.13, 0.18),
        nose_y=between(0.54, 0.62),
        mouth_y=between(0.92, 0.99),
        mouth_half_width=between(0.3, 0.37),
        lip_thickness=between(0.03, 0.045),
    )


def _cel_voice(rng: np.random.Generator, gender: Gender) -> Voice:
    man = gender == "men"
    return Voice(
        f0_hz=float(rng.uniform(78, 118) if man else rng.uniform(180, 265)),
        f0_span=float(rng.uniform(0.3, 0.6)),
        formant_scale=float(rng.uniform(0.9, 1.02) if man else rng.uniform(1.12, 1.26)),
        breathiness=float(rng.uniform(0.06, 0.12)),
        syllables_per_s=float(rng.uniform(3.2, 6.0)),
        tilt_db_per_octave=float(rng.uniform(-5.0, -2.5)),
        model="cel",
        jitter=float(rng.uniform(0.003, 0.01)),
    )
