"""Augmentations against closed forms, Pillow's JPEG and sounds that were really changed: one draw a window, and nothing moved in time."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dissonance.engine.media.log_mel import HOP_LENGTH, LogMelStream, normalise
from dissonance.training.augment import AugmentConfig, PictureChange, SoundChange, draw_picture_augmentation, draw_sound_augmentation

FRAMES, SIDE, BINS = 32, 64, 80
ALL = np.ones(FRAMES, bool)

PICTURE_SWITCHES: dict[str, dict[str, float]] = {
    "flip": {"flip_share": 1},
    "affine": {"affine_share": 1},
    "brightness": {"brightness": 0.3},
    "contrast": {"contrast": 0.3},
    "gamma": {"gamma": 0.3},
    "saturation": {"saturation": 0.5},
    "resolution": {"resolution_share": 1},
    "noise": {"sensor_noise_share": 1},
    "jpeg": {"jpeg_share": 1},
}
SOUND_SWITCHES: dict[str, dict[str, float]] = {
    "noise": {"noise_floor_share": 1},
    "gain": {"gain_db": 6},
    "equaliser": {"equaliser_db": 6},
    "band": {"band_share": 1},
}
EVERYTHING = AugmentConfig.model_validate({name: 1 for name in AugmentConfig.model_fields if name.endswith("_share")})


def only(switches: dict[str, float]) -> AugmentConfig:
    return AugmentConfig.model_validate(AugmentConfig.off().model_dump() | switches)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def crops(frames: int = FRAMES, side: int = SIDE) -> NDArray[np.uint8]:
    """Smooth random colours, so that JPEG and resizing leave something."""
    coarse = rng(1).integers(40, 216, (frames, 9, 9, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)) for frame in coarse])


def even(level: int, *, frames: int = FRAMES) -> NDArray[np.uint8]:
    return np.full((frames, SIDE, SIDE, 3), level, np.uint8)


def log_mel_of(samples: NDArray[np.float64], bins: int = BINS) -> NDArray[np.float32]:
    """(bins, frames), log10, not normalised."""
    stream = LogMelStream(bins)
    return np.concatenate([stream.push(samples.astype(np.float32)), stream.finish()]).T


def voice(seconds: float = 4 * FRAMES / 100) -> NDArray[np.float64]:
    """A buzz with harmonics that fall by 6 dB an octave, with pauses in which a faint hiss is left."""
    times = np.arange(round(16000 * seconds)) / 16000
    buzz = sum(np.sin(2 * np.pi * 130 * k * times + k * k) / k for k in range(1, 58))
    return 0.05 * buzz * np.maximum(0, np.sin(2 * np.pi * 2.3 * times)) ** 2 + rng(5).normal(0, 2e-5, len(times))


def mel_of(samples: NDArray[np.float64]) -> NDArray[np.float32]:
    return normalise(log_mel_of(samples))


# --------------------------------------------------------------------------------------------------------- both streams


def test_switched_off_nothing_changes() -> None:
    pictures, mel = rng().integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8), mel_of(voice())
    for seed in range(20):
        generator = rng(seed)
        assert np.array_equal(draw_picture_augmentation(AugmentConfig.off(), generator)(pictures), pictures)
        assert np.array_equal(draw_sound_augmentation(AugmentConfig.off(), generator)(mel, ALL), mel)


@pytest.mark.parametrize("switches", PICTURE_SWITCHES.values(), ids=PICTURE_SWITCHES)
def test_each_picture_switch_alone_changes_pictures_and_no_other_draw(switches: dict[str, float]) -> None:
    pictures, before = crops(), crops()
    generator, other = rng(3), rng(3)
    changed = draw_picture_augmentation(only(switches), generator)(pictures)
    draw_picture_augmentation(AugmentConfig.off(), other)
    assert (changed != pictures).mean() > 0.05
    assert (changed.shape, changed.dtype) == (pictures.shape, np.uint8)
    assert np.array_equal(pictures, before), "the input was written to"
    assert generator.random() == other.random()


@pytest.mark.parametrize("switches", SOUND_SWITCHES.values(), ids=SOUND_SWITCHES)
def test_each_sound_switch_alone_changes_sound_and_no_other_draw(switches: dict[str, float]) -> None:
    mel, before = mel_of(voice()), mel_of(voice())
    generator, other = rng(3), rng(3)
    changed = draw_sound_augmentation(only(switches), generator)(mel, ALL)
    draw_sound_augmentation(AugmentConfig.off(), other)
    assert (np.abs(changed - mel) > 1e-3).mean() > 0.02
    assert (changed.shape, changed.dtype) == (mel.shape, np.float32)
    assert np.array_equal(mel, before), "the input was written to"
    assert generator.random() == other.random()


def test_the_same_generator_state_gives_the_same_window() -> None:
    def window(seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
        generator = rng(seed)
        picture, sound = draw_picture_augmentation(EVERYTHING, generator), draw_sound_augmentation(EVERYTHING, generator)
        assert np.array_equal(picture(crops()), picture(crops()))
        return picture(crops()), sound(mel_of(voice()), ALL)

    for one, same, other in zip(window(8), window(8), window(9), strict=True):
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("valid", [0, 1, 21])
def test_padding_stays_black_and_silent(valid: int) -> None:
    pictures, mel = crops(), np.pad(mel_of(voice())[:, : 4 * valid], ((0, 0), (0, 4 * (FRAMES - valid))))
    pictures[valid:] = 0
    for seed in range(5):
        generator = rng(seed)
        picture, sound = draw_picture_augmentation(EVERYTHING, generator), draw_sound_augmentation(EVERYTHING, generator)
        assert not picture(pictures)[valid:].any()
        assert not sound(mel, np.arange(FRAMES) < valid)[:, 4 * valid :].any()
        assert np.array_equal(picture(pictures)[:valid], picture(pictures[:valid])), "padding changed what is valid"
        assert np.array_equal(sound(mel, np.arange(FRAMES) < valid)[:, : 4 * valid], sound(mel[:, : 4 * valid], np.ones(valid, bool)))


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("side", [SIDE, 50, 224])
def test_every_frame_gets_the_same_change(side: int) -> None:
    config = EVERYTHING.model_copy(update={"sensor_noise_share": 0.0})
    still = np.repeat(crops(1, side), FRAMES, axis=0)
    for seed in range(4):
        changed = draw_picture_augmentation(config, rng(seed))(still)
        assert np.array_equal(changed, np.repeat(changed[:1], FRAMES, axis=0))
        assert np.array_equal(changed[:1], draw_picture_augmentation(config, rng(seed))(still[:1]))
        assert not np.array_equal(changed, still)


def test_frames_do_not_touch_each_other() -> None:
    """A change of the others leaves a frame as it was."""
    config = EVERYTHING.model_copy(update={"sensor_noise_share": 0.0})
    pictures = crops()
    inverted = 255 - pictures
    inverted[7] = pictures[7]
    for seed in range(4):
        change = draw_picture_augmentation(config, rng(seed))
        assert np.array_equal(change(pictures)[7], change(inverted)[7])


def test_flip_is_numpys() -> None:
    assert np.array_equal(PictureChange(flip=True)(crops()), np.flip(crops(), axis=2))
    drawn = [draw_picture_augmentation(only({"flip_share": 0.5}), rng(seed)).flip for seed in range(400)]
    assert 0.4 < np.mean(drawn) < 0.6


LEVELS = np.arange(256) / 255
TONES: list[tuple[PictureChange, NDArray[np.float64]]] = [
    (PictureChange(brightness=0.1), LEVELS + 0.1),
    (PictureChange(brightness=-0.2), LEVELS - 0.2),
    (PictureChange(contrast=1.3), 0.5 + 1.3 * (LEVELS - 0.5)),
    (PictureChange(contrast=0.7), 0.5 + 0.7 * (LEVELS - 0.5)),
    (PictureChange(gamma=1.2), LEVELS**1.2),
    (PictureChange(brightness=0.1, contrast=0.7, gamma=0.8), 0.5 + 0.7 * (LEVELS**0.8 - 0.5) + 0.1),
]


@pytest.mark.parametrize(("change", "expected"), TONES, ids=lambda value: repr(value) if isinstance(value, PictureChange) else "")
def test_light_in_closed_form(change: PictureChange, expected: NDArray[np.float64]) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert np.abs(change(levels)[0, ..., 0].ravel() - 255 * np.clip(expected, 0, 1)).max() <= 0.51


def test_saturation_keeps_the_grey_and_scales_the_colour() -> None:
    picture = crops().astype(float)
    grey = picture @ [0.299, 0.587, 0.114]
    for saturation in (0.0, 0.6, 1.2):
        expected = np.clip(grey[..., None] + saturation * (picture - grey[..., None]), 0, 255)
        assert np.abs(PictureChange(saturation=saturation)(crops()) - expected).max() <= 1


def test_zoom_rotation_and_shift_are_one_similarity() -> None:
    """Of ramps along x and y, what is seen at a place tells where it came from."""
    y, x = np.mgrid[:SIDE, :SIDE]
    ramps = np.stack([3 * x + 30, 3 * y + 30, np.full_like(x, 99)], axis=-1).astype(np.uint8)[None]
    for zoom, angle_deg, (right, down) in [(1.1, 0, (0, 0)), (1.0, 10, (0, 0)), (1.0, 0, (0.125, -0.0625)), (0.93, -7, (-0.05, 0.03))]:
        seen = PictureChange(zoom=zoom, rotation_deg=angle_deg, shift=(right, down))(ramps)[0].astype(float)
        turn = np.deg2rad(angle_deg)
        inverse = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / zoom  # rows point down, so this turns back
        from_middle = np.stack([x - 31.5 - SIDE * right, y - 31.5 - SIDE * down])
        expected = 3 * (np.einsum("ij,jhw->hwi", inverse, from_middle) + 31.5) + 30
        inner = np.s_[16:-16, 16:-16]
        assert np.abs(seen[..., :2] - expected)[inner].max() < 0.75, (zoom, angle_deg)
        assert (seen[..., 2] == 99).all(), "the border is not filled from the picture"


def test_drawn_geometry_stays_within_its_sizes() -> None:
    config = only({"affine_share": 1, "zoom": 0.1, "shift": 0.05, "rotation_deg": 5})
    drawn = [draw_picture_augmentation(config, rng(seed)) for seed in range(300)]
    for values, least, most in [
        ([change.zoom for change in drawn], 1 / 1.1, 1.1),
        ([change.rotation_deg for change in drawn], -5, 5),
        ([change.shift[0] for change in drawn], -0.05, 0.05),
        ([change.shift[1] for change in drawn], -0.05, 0.05),
    ]:
        assert least <= min(values) < least + 0.1 * (most - least)
        assert most - 0.1 * (most - least) < max(values) <= most


def test_half_the_resolution_is_the_mean_of_four_pixels_enlarged_again() -> None:
    noise = rng().integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    halves = np.rint(noise.reshape(4, SIDE // 2, 2, SIDE // 2, 2, 3).mean(axis=(2, 4))).astype(np.uint8)
    expected = np.stack([np.asarray(Image.fromarray(half).resize((SIDE, SIDE), Image.Resampling.BILINEAR), int) for half in halves])
    assert np.abs(PictureChange(resolution=0.5)(noise) - expected).max() <= 1


def test_drawn_resolutions_reach_down_to_the_least() -> None:
    config = only({"resolution_share": 0.5, "min_resolution": 0.7})
    drawn = np.array([draw_picture_augmentation(config, rng(seed)).resolution for seed in range(400)])
    assert 0.7 <= drawn.min() < 0.72
    assert 0.4 < (drawn < 1).mean() < 0.6


@pytest.mark.parametrize("strength", [0.7, 3.0, 8.0])
def test_sensor_noise_is_gaussian_fresh_in_every_frame_and_of_one_strength(strength: float) -> None:
    noise = PictureChange(sensor_noise=strength, noise_seed=4)(even(128)).astype(float) - 128
    spread = float(np.hypot(strength, 1 / np.sqrt(12)))  # the levels' rounding adds its own
    assert abs(noise.mean()) < 0.02 * strength
    assert noise.std() == pytest.approx(spread, rel=0.02)
    assert (noise**4).mean() / noise.std() ** 4 == pytest.approx(3, abs=0.15)
    assert noise.reshape(FRAMES, -1).std(axis=1) == pytest.approx(spread, rel=0.05)
    between = np.corrcoef(noise.reshape(FRAMES, -1))
    assert np.abs(between - np.eye(FRAMES)).max() < 0.05
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.05


@pytest.mark.parametrize("quality", [40, 75, 95])
def test_jpeg_is_pillows(quality: int) -> None:
    changed = PictureChange(jpeg_quality=quality)(crops())
    for frame, theirs in zip(changed, crops(), strict=True):
        file = io.BytesIO()
        Image.fromarray(theirs).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        assert np.abs(frame.astype(int) - np.asarray(Image.open(file), int)).max() <= 2


def test_jpeg_qualities_reach_from_the_least_to_95() -> None:
    config = only({"jpeg_share": 1, "min_jpeg_quality": 93})
    assert {draw_picture_augmentation(config, rng(seed)).jpeg_quality for seed in range(60)} == {93, 94, 95}


# --------------------------------------------------------------------------------------------------------------- sounds


@pytest.mark.parametrize(("noise_rms", "bins"), [(1e-4, 80), (1e-3, 80), (1e-3, 128), (1e-2, 80)])
def test_a_noise_floor_is_white_noise_added_to_the_samples(noise_rms: float, bins: int) -> None:
    clean, hiss = voice(20), rng(6).normal(0, noise_rms, 320_000)
    clean_mel, noise_power = log_mel_of(clean, bins), (10.0 ** log_mel_of(hiss, bins)).mean()
    change = SoundChange(noise_gap_db=float(10 * (clean_mel.max() - np.log10(noise_power))), noise_seed=7)
    expected, found = normalise(log_mel_of(clean + hiss, bins)), change(normalise(clean_mel), np.ones(500, bool))
    assert np.abs(normalise(clean_mel) - expected).mean() > 0.05, "nothing to tell apart"
    assert (found - expected).mean() == pytest.approx(0, abs=0.005)
    assert np.abs((found - expected).mean(axis=1)).max() < 0.03, "a bin is off by more than 1.2 dB"
    assert np.abs(found.std(axis=1) - expected.std(axis=1)).mean() < 0.006
    assert (found.max() - found.min()) <= 2 + 1e-6


def test_gain_is_louder_samples() -> None:
    for gain_db in (-9.0, 5.0):
        expected = mel_of(voice() * 10 ** (gain_db / 20))
        assert SoundChange(gain_db=gain_db)(mel_of(voice()), ALL) == pytest.approx(expected, abs=1e-4)


def filtered(samples: NDArray[np.float64], power: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
    spectrum = np.fft.rfft(samples) * np.sqrt(power(np.fft.rfftfreq(len(samples), 1 / 16000)))
    return np.fft.irfft(spectrum, len(samples))


def test_a_narrower_band_is_a_butterworth_filter_on_the_samples() -> None:
    sound = voice(5)
    expected = mel_of(filtered(sound, lambda hz: 1 / (1 + (hz / 4000) ** 32)))
    found = SoundChange(band_hz=4000.0)(mel_of(sound), np.ones(125, bool))
    assert np.abs(mel_of(sound) - expected).mean() > 0.05, "nothing to tell apart"
    assert np.abs(found - expected).mean() < 0.005
    assert np.abs((found - expected).mean(axis=1)).max() < 0.1, "a bin is off by more than 4 dB"


def test_the_equaliser_is_a_filter_of_cosines_over_the_mel_scale() -> None:
    """Slaney's mel of f: 3 f / 200 up to 1 kHz, then 15 + 27 log(f / 1000) / log(6.4)."""
    sound, amplitudes_db = voice(5), (3.0, -2.0, 1.5)

    def response(hz: NDArray[np.float64]) -> NDArray[np.float64]:
        mel = np.where(hz < 1000, 3 * hz / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))
        place = mel / (15 + 27 * np.log(8) / np.log(6.4))
        return 10 ** (sum(db * np.cos(np.pi * k * place) for k, db in enumerate(amplitudes_db, 1)) / 10)

    expected = mel_of(filtered(sound, response))
    found = SoundChange(equaliser_db=amplitudes_db)(mel_of(sound), np.ones(125, bool))
    assert np.abs(mel_of(sound) - expected).max() > 0.1, "nothing to tell apart"
    assert np.abs(found - expected).mean() < 0.005


def test_what_lay_at_the_floor_stays_there_however_it_is_equalised() -> None:
    sound = filtered(voice(), lambda hz: (hz < 2000) * 1.0)  # digital silence above
    mel = mel_of(sound)
    floor = mel == mel.min()
    assert 0.2 < floor.mean() < 0.8
    for seed in range(10):
        changed = draw_sound_augmentation(only({"equaliser_db": 20, "gain_db": 10}), rng(seed))(mel, ALL)
        assert (changed[floor] == changed.min()).all()
        assert changed.max() - changed.min() == pytest.approx(2, abs=1e-6)


def test_silence_stays_silence() -> None:
    silent = normalise(log_mel_of(np.zeros(20480)))
    for seed in range(10):
        config = EVERYTHING.model_copy(update={"noise_floor_share": 0.0})
        assert np.array_equal(draw_sound_augmentation(config, rng(seed))(silent, ALL), silent)


def test_nothing_moves_in_time() -> None:
    """A sound with one click keeps it where it was, under everything at once; so does a film with one white frame."""
    samples = rng(2).normal(0, 1e-4, 20480)
    samples[HOP_LENGTH * 50] = 0.9
    for seed in range(20):
        generator = rng(seed)
        film = even(60)
        film[13] = 200
        assert draw_picture_augmentation(EVERYTHING, generator)(film).mean(axis=(1, 2, 3)).argmax() == 13
        loudness = draw_sound_augmentation(EVERYTHING, generator)(mel_of(samples), ALL).mean(axis=0)
        assert loudness.argmax() in (49, 50, 51)
        assert sorted(np.argsort(loudness)[-3:]) == [49, 50, 51]


def test_impossible_sizes_are_refused() -> None:
    for wrong in ({"flip_share": 1.5}, {"contrast": 1.0}, {"min_jpeg_quality": 99}, {"min_resolution": 0.4}, {"speed": 1.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AugmentConfig.model_validate(wrong)
