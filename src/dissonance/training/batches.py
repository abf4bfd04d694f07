"""From draws to tensors: which window of a clip, which other sounds it is paired with, augmented, loaded ahead of the step that needs it.

A picture is the costly part, so each is encoded once and paired with several sounds: its own, and, if picture and sound are real, sounds of other
moments of the same clip. Such mismatches are timing forgeries whose picture and sound are those of real clips by construction.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dissonance.config import ModelConfig, SpeechConfig
from dissonance.training.augment import AugmentConfig, draw_picture_augmentation, draw_sound_augmentation
from dissonance.training.cached_clip import CachedClip, Track
from dissonance.training.config import BatchConfig
from dissonance.training.labels import Clip
from dissonance.training.pairs import NO_LAG, UNKNOWN_ORIGIN
from dissonance.training.sampling import BalancedSampler, Draw

_OPEN_CLIPS = 256  # kept open; each holds its clip's log-mel, 32 KB a second


@dataclass(frozen=True)
class Sample:
    """One draw: a picture window, its own sound, and sounds of other moments.

    crops: (T, S, S, 3) uint8. mel: (1 + M, bins, 4T) float32. speech: (1 + M, T) bool. mask: (T,) bool. starts: (1 + M,) first frames, own first.
    """

    draw: Draw
    crops: NDArray[np.uint8]
    mel: NDArray[np.float32]
    speech: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class Glimpse:
    """One draw for the visual and the audio head alone.

    crops: (F, S, S, 3) uint8, the first frames of a window. mel: (bins, 4T) float32, all of its sound. mask: (T,) bool, of both.
    """

    draw: Draw
    crops: NDArray[np.uint8]
    mel: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Glimpses:
    """N glimpses. pixels: (N, F, S, S, 3) uint8. mel: (N, bins, 4T) float32. mask: (N, T) bool. picture_fake, sound_fake: (N,) bool."""

    pixels: Tensor
    mel: Tensor
    mask: Tensor
    picture_fake: Tensor
    sound_fake: Tensor

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Glimpses":
        """The same on a device."""
        return replace(self, **{name: value.to(device, non_blocking=non_blocking) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Batch:
    """B pictures, A sounds, P = A pairs: sound k goes with picture `picture`[k], the B own sounds first.

    pixels: (B, T, S, S, 3) uint8. mel: (A, bins, 4T) float32. mask: (B, T) bool, of a picture and of all its sounds. speech: (A, T) bool.
    picture, true_lag, clip, identity, sound_start: (A,) int64; picture_start: (B,) int64; picture_fake, sound_fake, mismatched: (A,) bool.
    glimpses: what the single heads see besides; None where the settings ask for none.
    """

    pixels: Tensor
    mel: Tensor
    mask: Tensor
    speech: Tensor
    picture: Tensor
    picture_fake: Tensor
    sound_fake: Tensor
    mismatched: Tensor
    true_lag: Tensor
    clip: Tensor
    identity: Tensor
    picture_start: Tensor
    sound_start: Tensor
    glimpses: Glimpses | None = None

    @property
    def windows(self) -> int:
        """B."""
        return self.pixels.shape[0]

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in vars(self).items() if value is not None})


class SampleLoader:
    """Cuts samples out of cached clips. A sample depends on its draw and the settings alone."""

    def __init__(
        self,
        open_clip: Callable[[str], CachedClip],
        *,
        model: ModelConfig,
        speech: SpeechConfig,
        batch: BatchConfig,
        augment: AugmentConfig,
        trim_leading_silence: bool = False,
    ) -> None:
        """`open_clip` gives the cached clip of a uri."""
        self._open_clip = open_clip
        self._frames = model.frames
        self._speech = speech
        self._batch = batch
        self._augment = augment
        self._trim = trim_leading_silence
        self._clips: OrderedDict[str, CachedClip] = OrderedDict()

    def load(self, draw: Draw) -> Sample:
        """One sample. Where several mouths speak, or none, any of the tracks may be taken: nobody says which one a label means."""
        generator = draw.generator()
        clip, track = self._track(draw, generator)
        found = clip.tracks[track]
        valid = min(self._frames, found.frames)
        first, *others = self._moments(found, valid, generator)
        window = clip.window(track, first, frames=self._frames)
        sounds = [(first, window.mel, window.speech)]
        for start in others if not draw.clip.fake else []:
            mel, speech = clip.sound(start, valid)
            padding = self._frames - valid
            sounds.append((start, np.pad(mel, ((0, 0), (0, window.mel.shape[1] - mel.shape[1]))), np.pad(speech, (0, padding))))
        picture_change = draw_picture_augmentation(self._augment, generator)
        sound_change = draw_sound_augmentation(self._augment, generator)
        return Sample(
            draw=draw,
            crops=picture_change(window.crops),
            mel=np.stack([sound_change(mel, window.mask) for _, mel, _ in sounds]),
            speech=np.stack([flags for _, _, flags in sounds]),
            mask=window.mask,
            starts=np.array([start for start, _, _ in sounds], dtype=np.int64),
        )

    def glimpse(self, draw: Draw) -> Glimpse:
        """One glimpse, anywhere in a track that is chosen as for a sample."""
        generator = draw.generator()
        clip, track = self._track(draw, generator)
        found = clip.tracks[track]
        first = found.first_frame + int(generator.integers(found.frames - min(self._frames, found.frames) + 1))
        window = clip.window(track, first, frames=self._frames)
        picture_change = draw_picture_augmentation(self._augment, generator)
        sound_change = draw_sound_augmentation(self._augment, generator)
        return Glimpse(
            draw=draw,
            crops=picture_change(window.crops[: self._batch.glimpse_frames]),
            mel=sound_change(window.mel, window.mask),
            mask=window.mask,
        )

    def _track(self, draw: Draw, generator: np.random.Generator) -> tuple[CachedClip, int]:
        clip = self._clip(draw.clip.uri)
        tracks = range(len(clip.tracks))
        speaking = [track for track in tracks if clip.speaks(track, self._speech)]
        return clip, int(generator.choice(speaking or list(tracks)))

    def _moments(self, track: Track, valid: int, generator: np.random.Generator) -> list[int]:
        """First frames of windows of the track, any two far enough apart; fewer than asked for where it is short. The first is the picture's.

        Which of them that is is drawn last, so where a sound lies in the clip does not tell whether it is the picture's own.
        """
        gap = self._batch.apart_frames - 1
        places = track.frames - valid + 1
        count = min(1 + self._batch.mismatches, (places + gap) // (gap + 1))
        chosen = np.sort(generator.choice(places - (count - 1) * gap, count, replace=False)) + gap * np.arange(count)
        return [track.first_frame + int(place) for place in generator.permutation(chosen)]

    def _clip(self, uri: str) -> CachedClip:
        if uri not in self._clips:
            clip = self._open_clip(uri)
            trimmed = clip.trimmed() if self._trim else clip
            self._clips[uri] = trimmed if trimmed.tracks else clip  # somebody whose face goes before the first word keeps the silence
            if len(self._clips) > _OPEN_CLIPS:
                self._clips.popitem(last=False)
        return self._clips[uri]


class Names:
    """Numbers for texts: the same text, the same number."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._numbers = {text: number for number, text in enumerate(sorted(set(texts)))}

    def __getitem__(self, text: str) -> int:
        return self._numbers[text]


def collate(samples: Sequence[Sample], glimpses: Sequence[Glimpse] = (), *, clips: Names, identities: Names) -> Batch:
    """Samples, and glimpses beside them, as one batch.

    Streams of a fake come from nobody knows which recording (a re-lipped clip keeps a real one's sound), so they are nobody's negatives.
    """
    pairs = [(number, 0) for number in range(len(samples))]
    pairs += [(number, place) for number, sample in enumerate(samples) for place in range(1, len(sample.starts))]
    of_pair = [samples[number].draw.clip for number, _ in pairs]
    return Batch(
        pixels=torch.from_numpy(np.stack([sample.crops for sample in samples])),
        mel=torch.from_numpy(np.stack([samples[number].mel[place] for number, place in pairs])),
        mask=torch.from_numpy(np.stack([sample.mask for sample in samples])),
        speech=torch.from_numpy(np.stack([samples[number].speech[place] for number, place in pairs])),
        picture=torch.tensor([number for number, _ in pairs]),
        picture_fake=torch.tensor([clip.picture_fake for clip in of_pair]),
        sound_fake=torch.tensor([clip.sound_fake for clip in of_pair]),
        mismatched=torch.tensor([place > 0 for _, place in pairs]),
        true_lag=torch.tensor([NO_LAG if place or clip.fake else 0 for clip, (_, place) in zip(of_pair, pairs, strict=True)]),
        clip=torch.tensor([UNKNOWN_ORIGIN if clip.fake else clips[clip.uri] for clip in of_pair]),
        identity=torch.tensor([identities[clip.identity] for clip in of_pair]),
        picture_start=torch.tensor([int(sample.starts[0]) for sample in samples]),
        sound_start=torch.tensor([int(samples[number].starts[place]) for number, place in pairs]),
        glimpses=stack(glimpses) if glimpses else None,
    )


def stack(glimpses: Sequence[Glimpse]) -> Glimpses:
    """Glimpses side by side."""
    return Glimpses(
        pixels=torch.from_numpy(np.stack([glimpse.crops for glimpse in glimpses])),
        mel=torch.from_numpy(np.stack([glimpse.mel for glimpse in glimpses])),
        mask=torch.from_numpy(np.stack([glimpse.mask for glimpse in glimpses])),
        picture_fake=torch.tensor([glimpse.draw.clip.picture_fake for glimpse in glimpses]),
        sound_fake=torch.tensor([glimpse.draw.clip.sound_fake for glimpse in glimpses]),
    )


def batches(
    sampler: BalancedSampler, loader: SampleLoader, *, config: BatchConfig, first_step: int, clips: Names, identities: Names
) -> Generator[Batch]:
    """The batch of `first_step`, of the next step, and so on for ever; each is made while the one before is used. Close it when done."""
    draws = config.windows + config.glimpses

    def make(step: int) -> Batch:
        samples = [loader.load(sampler.draw(step * draws + place)) for place in range(config.windows)]
        glimpses = [loader.glimpse(sampler.draw(step * draws + place)) for place in range(config.windows, draws)]
        return collate(samples, glimpses, clips=clips, identities=identities)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        ahead = thread.submit(make, first_step)
        step = first_step
        while True:
            ready = ahead.result()
            step += 1
            ahead = thread.submit(make, step)
            yield ready


def fingerprint(clips: Iterable[Clip], entries: Mapping[str, str]) -> str:
    """SHA-256 over every clip's content (its key in the cache), labels and split: a run resumes on the same only."""
    lines = [
        repr((clip.uri, entries[clip.uri], clip.picture_fake, clip.sound_fake, clip.manipulation, clip.identity, clip.split))
        for clip in sorted(clips, key=lambda clip: clip.uri)
    ]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
