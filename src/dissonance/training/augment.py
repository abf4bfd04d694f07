"""Changes of a window that leave its labels true: one draw for all of its frames, so that no change can look like a forgery's tremble.

Pictures: mirror image, a small zoom, shift and rotation, light and colour, resolution, sensor noise, JPEG. Sounds: a noise floor, loudness, an
equaliser, a narrower band. None moves anything in time, in either stream.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dissonance.config import Fraction01, Frozen
from dissonance.engine.media.clip import MEL_FRAMES
from dissonance.engine.media.log_mel import normalise
from dissonance.mel import N_FFT, SAMPLE_RATE_HZ, SILENCE, mel_filters

_RANGE = 8.0  # log10 units that `normalise` keeps under the peak
_RANGE_DB = 10 * _RANGE
_BEST_JPEG = 95  # drawn from min_jpeg_quality to this
_BAND_ORDER = 16  # of the low-pass: 48 dB down at 1.41 times its cutoff
_EQUALISER_TERMS = 3
_NOISE_UNIT = 40.0  # table steps in one standard deviation
_SENSOR_NOISE = np.array([128 + round(_NOISE_UNIT * NormalDist().inv_cdf((k + 0.5) / 256)) for k in range(256)], np.uint8)  # of a random byte


class AugmentConfig(Frozen):
    """How often and how far windows are changed; a 0 switches a change off, and leaves all other draws as they are.

    `_share` is the share of windows that get the change; changes without one are drawn for every window, up to their size either way.
    The defaults are gentle, so that a re-rendered mouth's traces stay to be seen.
    """

    flip_share: Fraction01 = 0.5

    affine_share: Fraction01 = 0.5  # of zoom, shift and rotation together; the other windows keep their pixels
    zoom: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.03  # of the crop's side
    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 4.0

    brightness: Fraction01 = 0.08  # of white, added
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.15  # about mid-grey
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.15  # of the exponent's logarithm
    saturation: Fraction01 = 0.2

    resolution_share: Fraction01 = 0.2
    min_resolution: Annotated[float, Field(ge=0.5, lt=1)] = 0.65  # of the side; under a half, the filter would not keep aliases out
    sensor_noise_share: Fraction01 = 0.3
    sensor_noise: Annotated[float, Field(gt=0, le=64)] = 3.0  # standard deviation, of 255 levels
    jpeg_share: Fraction01 = 0.2
    min_jpeg_quality: Annotated[int, Field(ge=10, le=_BEST_JPEG)] = 60

    gain_db: Annotated[float, Field(ge=0, le=40)] = 6.0
    equaliser_db: Annotated[float, Field(ge=0, le=40)] = 6.0
    noise_floor_share: Fraction01 = 0.3
    noise_floor_gap_db: Annotated[float, Field(ge=0, le=_RANGE_DB)] = 40.0  # the loudest: so far under the window's peak
    band_share: Fraction01 = 0.2
    min_band_hz: Annotated[float, Field(ge=1000, le=SAMPLE_RATE_HZ / 2)] = 3400.0  # a telephone's

    @classmethod
    def off(cls) -> "AugmentConfig":
        """Nothing is changed."""
        always = ("brightness", "contrast", "gamma", "saturation", "gain_db", "equaliser_db")
        return cls.model_validate({name: 0 for name in cls.model_fields if name in always or name.endswith("_share")})


# ------------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class PictureChange:
    """One change of crops, in this order; as it stands without arguments, none.

    zoom: over 1 enlarges. rotation_deg: counter-clockwise. shift: right and down, of the side. brightness: of white. gamma: the exponent.
    saturation: 0 is grey. resolution: of the side, shrunk to and enlarged again. sensor_noise: standard deviation, levels.
    """

    flip: bool = False
    zoom: float = 1.0
    rotation_deg: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    brightness: float = 0.0
    contrast: float = 1.0
    gamma: float = 1.0
    saturation: float = 1.0
    resolution: float = 1.0
    sensor_noise: float = 0.0
    noise_seed: int = 0
    jpeg_quality: int | None = None

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(T, S, S, 3) RGB to the same; black frames at the end are padding and stay black. The input is not written to, but may be returned."""
        frames, side = len(crops), crops.shape[1]
        while frames and not crops[frames - 1].any():
            frames -= 1
        if not frames or self == PictureChange(noise_seed=self.noise_seed):
            return crops
        tall = np.ascontiguousarray(crops[:frames]).reshape(-1, side, 3)  # the frames under each other: one call for all where they stay apart
        if self.flip:
            tall = _bytes(cv2.flip(tall, 1))
        if (self.zoom, self.rotation_deg, self.shift) != (1.0, 0.0, (0.0, 0.0)):
            tall = _each(tall, functools.partial(cv2.warpAffine, M=self._matrix(side), dsize=(side, side), borderMode=cv2.BORDER_REFLECT))
        if (self.brightness, self.contrast, self.gamma) != (0.0, 1.0, 1.0):
            tall = _bytes(cv2.LUT(tall, self._tone()))
        if self.saturation != 1.0:
            grey = np.tile([0.299, 0.587, 0.114], (3, 1))  # BT.601
            tall = _bytes(cv2.transform(tall, grey + self.saturation * (np.eye(3) - grey)))
        if self.resolution != 1.0:
            tall = _each(tall, self._coarser)
        if self.sensor_noise:
            drawn = np.random.Generator(np.random.SFC64(self.noise_seed)).integers(0, 256, tall.shape, np.uint8)
            weight = self.sensor_noise / _NOISE_UNIT
            tall = _bytes(cv2.addWeighted(tall, 1, cv2.LUT(drawn, _SENSOR_NOISE), weight, -128 * weight))
        if self.jpeg_quality is not None:
            tall = _bytes(cv2.cvtColor(_each(_bytes(cv2.cvtColor(tall, cv2.COLOR_RGB2BGR)), self._through_jpeg), cv2.COLOR_BGR2RGB))
        changed = tall.reshape(frames, side, side, 3)
        return changed if frames == len(crops) else np.concatenate([changed, crops[frames:]])

    def _matrix(self, side: int) -> NDArray[np.float64]:
        middle = (side - 1) / 2
        matrix = np.asarray(cv2.getRotationMatrix2D((middle, middle), self.rotation_deg, self.zoom), np.float64)
        matrix[:, 2] += side * np.array(self.shift)
        return matrix

    def _tone(self) -> NDArray[np.uint8]:
        """What each of the 256 levels becomes."""
        level = (np.linspace(0, 1, 256) ** self.gamma - 0.5) * self.contrast + 0.5 + self.brightness
        return np.rint(255 * np.clip(level, 0, 1)).astype(np.uint8)

    def _coarser(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        side = len(frame)
        return _bytes(cv2.resize(cv2.resize(frame, (round(self.resolution * side),) * 2), (side, side)))

    def _through_jpeg(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        _, encoded = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality or 0])
        return _bytes(cv2.imdecode(encoded, cv2.IMREAD_COLOR))


def draw_picture_augmentation(config: AugmentConfig, generator: np.random.Generator) -> PictureChange:
    """One change for all frames of a window. It takes the same numbers from `generator` whatever `config` says, and none when it is called."""
    either = generator.uniform(-1, 1, 8)
    chance = generator.random(4)
    strength = generator.random(3)
    noise_seed = int(generator.integers(1 << 63))
    moved = either[:4] * (chance[0] < config.affine_share)
    right, down = config.shift * moved[2:]
    return PictureChange(
        flip=bool(generator.random() < config.flip_share),
        zoom=float((1 + config.zoom) ** moved[0]),
        rotation_deg=float(config.rotation_deg * moved[1]),
        shift=(float(right), float(down)),
        brightness=float(config.brightness * either[4]),
        contrast=float(1 + config.contrast * either[5]),
        gamma=float(np.exp(config.gamma * either[6])),
        saturation=float(1 + config.saturation * either[7]),
        resolution=float(1 - (1 - config.min_resolution) * strength[0] * (chance[1] < config.resolution_share)),
        sensor_noise=float(config.sensor_noise * strength[1] * (chance[2] < config.sensor_noise_share)),
        noise_seed=noise_seed,
        jpeg_quality=_BEST_JPEG - int(strength[2] * (_BEST_JPEG - config.min_jpeg_quality + 1)) if chance[3] < config.jpeg_share else None,
    )


def _each(tall: NDArray[np.uint8], change: Callable[[NDArray[np.uint8]], Any]) -> NDArray[np.uint8]:
    """`change` of every square frame of (frames S, S, 3)."""
    side = tall.shape[1]
    changed = np.empty_like(tall)
    for top in range(0, len(tall), side):
        changed[top : top + side] = change(tall[top : top + side])
    return changed


def _bytes(picture: object) -> NDArray[np.uint8]:
    return np.asarray(picture, np.uint8)


# --------------------------------------------------------------------------------------------------------------- sounds


@dataclass(frozen=True)
class SoundChange:
    """One change of a window's sound, in this order; as it stands without arguments, none.

    noise_gap_db: of a white noise whose power over all mel bins is so far under the window's peak cell; None: no noise. noise_seed: of the noise.
    gain_db: of all. equaliser_db: amplitudes of the cosines of 1, 2, ... half periods over the mel bins. band_hz: where the low-pass is 3 dB down.
    """

    noise_gap_db: float | None = None
    noise_seed: int = 0
    gain_db: float = 0.0
    equaliser_db: tuple[float, ...] = ()
    band_hz: float | None = None

    def __call__(self, mel: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Normalised (bins, 4 T) and (T,) valid frames, which come first, to what the changed sound would be normalised to; padding stays 0.

        What lay at the window's floor is unknown but for that it is no louder: it counts as silence. The input is not written to.
        """
        valid = MEL_FRAMES * int(mask.sum())
        if not valid or (self.noise_gap_db is None and not self.gain_db and not any(self.equaliser_db) and self.band_hz is None):
            return mel
        bins = len(mel)
        log_mel = 4.0 * mel[:, :valid].astype(np.float64) - 4.0
        peak = float(log_mel.max())
        log_mel[log_mel <= max(SILENCE, peak - _RANGE) + 1e-5] = -np.inf  # 1e-5: float32's rounding
        if self.noise_gap_db is not None:
            log_mel = np.log10(10.0**log_mel + 10.0 ** (peak - self.noise_gap_db / 10) * self._noise(bins, valid))
        change_db = self.gain_db + self._equaliser(bins)
        if self.band_hz is not None:
            change_db = change_db + 10 * np.log10(_low_pass(bins, self.band_hz))
        changed = np.zeros_like(mel)
        changed[:, :valid] = normalise(np.maximum(log_mel + change_db[:, None] / 10, SILENCE))
        return changed

    def _noise(self, bins: int, frames: int) -> NDArray[np.float64]:
        """Powers (bins, frames) of white noise: its spectrum fluctuates, in narrow bins more than in wide ones; mean 1 over all."""
        level, shape = _white_noise(bins)
        generator = np.random.Generator(np.random.SFC64(self.noise_seed))
        drawn: NDArray[np.float64] = generator.standard_gamma(shape[:, None], (bins, frames)) * (level / shape / level.mean())[:, None]
        return drawn

    def _equaliser(self, bins: int) -> NDArray[np.float64]:
        place = (np.arange(bins) + 0.5) / bins
        cosines = [db * np.cos(np.pi * (k + 1) * place) for k, db in enumerate(self.equaliser_db)]
        return np.asarray(np.sum(cosines or [0 * place], axis=0))


def draw_sound_augmentation(config: AugmentConfig, generator: np.random.Generator) -> SoundChange:
    """One change for a window. It takes the same numbers from `generator` whatever `config` says, and none when it is called."""
    either = generator.uniform(-1, 1, 1 + _EQUALISER_TERMS)
    chance, strength = generator.random(2), generator.random(2)
    noise_seed = int(generator.integers(1 << 63))
    highest_hz = SAMPLE_RATE_HZ / 2
    return SoundChange(
        noise_gap_db=float(_RANGE_DB - (_RANGE_DB - config.noise_floor_gap_db) * strength[0]) if chance[0] < config.noise_floor_share else None,
        noise_seed=noise_seed,
        gain_db=float(config.gain_db * either[0]),
        equaliser_db=tuple(float(db) for db in config.equaliser_db * either[1:] / _EQUALISER_TERMS),
        band_hz=float(highest_hz * (config.min_band_hz / highest_hz) ** strength[1]) if chance[1] < config.band_share else None,
    )


@functools.cache
def _white_noise(bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of white noise's mel powers: mean (bins,), relative, and shape (bins,) of the gamma distribution that has their mean and variance.

    Neighbours in a Hann window's spectrum correlate with 2/3 and 1/6, so their powers with the squares of these.
    """
    weights: NDArray[np.float64] = mel_filters(bins).astype(np.float64)
    level: NDArray[np.float64] = weights.sum(1)
    square: NDArray[np.float64] = (weights**2).sum(1)
    for distance, correlation in ((1, 4 / 9), (2, 1 / 36)):
        square = square + 2 * correlation * (weights[:, distance:] * weights[:, :-distance]).sum(1)
    return level, level**2 / square


def _low_pass(bins: int, cutoff_hz: float) -> NDArray[np.float64]:
    """Power (bins,) that a Butterworth low-pass leaves of a sound that is even within each bin."""
    weights: NDArray[np.float64] = mel_filters(bins).astype(np.float64)
    response = 1 / (1 + (np.linspace(0, SAMPLE_RATE_HZ / 2, N_FFT // 2 + 1) / cutoff_hz) ** (2 * _BAND_ORDER))
    return np.asarray(weights @ response / weights.sum(1))
