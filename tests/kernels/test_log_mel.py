"""The mel kernels against Whisper's own extractor, and against the stream that a scan on a CPU uses."""

import itertools

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from dissonance.engine.media.log_mel import LogMelStream, normalise
from dissonance.kernels.log_mel import log_mel, mel_windows
from dissonance.mel import SILENCE
from tests.kernels.cases import DEVICE

HOP, HALF = 160, 200


def sound_of(samples: int) -> NDArray[np.float32]:
    """A sweep with noise, then near silence, so that the floor and the 8 under the peak both matter."""
    time = np.arange(samples) / 16000
    noise = np.random.default_rng(0).standard_normal(samples)
    loud = 0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time) + 0.01 * noise
    return np.where(time < 0.8 * samples / 16000, loud, 1e-6 * noise).astype(np.float32)


def raw(sound: NDArray[np.float32], bins: int = 80, **edges: bool) -> torch.Tensor:
    return log_mel(torch.from_numpy(sound).to(DEVICE), bins=bins, **edges)


def windows_of(frames: torch.Tensor, first: list[int], length: list[int], **options: object) -> torch.Tensor:
    return mel_windows(frames, *(torch.tensor(each, dtype=torch.int64, device=DEVICE) for each in (first, length)), **options).cpu()  # type: ignore[arg-type]


def stream(sound: NDArray[np.float32], bins: int = 80) -> NDArray[np.float32]:
    """(frames, bins) of the CPU's stream."""
    cpu = LogMelStream(bins)
    return np.concatenate([cpu.push(sound), cpu.finish()])


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [16000, 16001, 16159, 24123])
def test_a_whole_sound_equals_whispers_extractor(samples: int, bins: int) -> None:
    sound = sound_of(samples)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    expected = extractor._np_extract_fbank_features(sound[None], "cpu")[0]
    frames = samples // HOP
    found = windows_of(raw(sound, bins), [0], [frames], size=frames)[0].numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 161, 200, 201, 399, 401, 4000])
def test_any_length_equals_the_stream_of_a_scan(samples: int) -> None:
    sound = sound_of(samples)
    np.testing.assert_allclose(raw(sound).cpu().numpy(), stream(sound), rtol=0, atol=2e-4)


def test_a_sound_in_stretches_has_the_frames_of_the_whole() -> None:
    sound = sound_of(16000 + 37)
    cuts = [0, 13, 14, 70, len(sound) // HOP]
    parts = []
    for begin, end in itertools.pairwise(cuts):
        first, last = begin == 0, end == cuts[-1]
        stretch = sound[0 if first else HOP * begin - HALF : None if last else HOP * (end - 1) + HALF]
        parts.append(raw(stretch, mirror_start=first, mirror_end=last))
        assert len(parts[-1]) == end - begin
    torch.testing.assert_close(torch.cat(parts), raw(sound), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_windows_are_normalised_each_over_its_own_frames(dtype: torch.dtype) -> None:
    """From before the sound, over its end, beyond it, and shorter than the rest: what follows a short one is louder than its silence."""
    frames = raw(sound_of(16000))
    first, length, size = [-5, 0, 40, 70, 95, 300, -3], [40, 40, 40, 17, 40, 40, 3], 40
    found = windows_of(frames, first, length, size=size, dtype=dtype)
    assert found.dtype == dtype
    whole = frames.cpu().numpy()
    for begin, count, window in zip(first, length, found, strict=True):
        own = np.full((count, 80), SILENCE, np.float32)
        for t in range(count):
            if 0 <= begin + t < len(whole):
                own[t] = whole[begin + t]
        expected = np.zeros((80, size), np.float32)
        expected[:, :count] = normalise(own).T
        np.testing.assert_allclose(window.float().numpy(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_sound_that_is_no_number_spoils_its_window_and_no_other() -> None:
    sound = sound_of(16000)
    sound[3000] = np.nan
    frames = raw(sound)
    found = windows_of(frames, [0, 50], [40, 40], size=40)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], windows_of(raw(sound_of(16000)), [50], [40], size=40)[0])


def test_windows_are_named_by_any_strides_and_types_and_no_longer_than_their_place() -> None:
    """Columns of a table in 32 bits, one length for all of them, and lengths beyond the size, which what is left out must not influence."""
    frames = raw(sound_of(16000))
    spans = torch.tensor([[0, 40], [50, 40], [20, 30]], dtype=torch.int32, device=DEVICE)
    expected = windows_of(frames, [0, 50, 20], [40, 40, 30], size=40)
    torch.testing.assert_close(mel_windows(frames, spans[:, 0], spans[:, 1], size=40).cpu(), expected)
    everywhere = spans[:, :1].flatten(), torch.tensor([24], dtype=torch.int32, device=DEVICE).expand(3)
    torch.testing.assert_close(mel_windows(frames, *everywhere, size=24).cpu(), windows_of(frames, [0, 50, 20], [24] * 3, size=24))
    torch.testing.assert_close(windows_of(frames, [70], [30], size=8), windows_of(frames, [70], [8], size=8))


def test_no_windows_and_silence() -> None:
    assert windows_of(raw(np.zeros(4000, np.float32)), [], [], size=8).shape == (0, 80, 8)
    silence = windows_of(raw(np.zeros(4000, np.float32)), [0], [8], size=8)
    torch.testing.assert_close(silence, torch.full((1, 80, 8), (SILENCE + 4.0) / 4.0))


def test_what_does_not_fit_is_refused() -> None:
    number = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"Invalid sound: torch.float64"):
        log_mel(torch.zeros(100, dtype=torch.float64), bins=80)
    with pytest.raises(ValueError, match=r"Invalid sound: .*\(1, 100\)"):
        log_mel(torch.zeros(1, 100), bins=80)
    with pytest.raises(ValueError, match=r"Invalid log-mel: torch.float16"):
        mel_windows(torch.zeros(8, 80, dtype=torch.float16), number, number, size=8)
    with pytest.raises(ValueError, match=r"Invalid windows: first torch.int64 \(2,\), length torch.int64 \(1,\)"):
        mel_windows(torch.zeros(8, 80), torch.zeros(2, dtype=torch.int64), number, size=8)
    with pytest.raises(ValueError, match=r"Invalid dtype torch.float64"):
        mel_windows(torch.zeros(8, 80), number, number, size=8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"Invalid windows: first torch.float32"):
        mel_windows(torch.zeros(8, 80), torch.zeros(1), number, size=8)
