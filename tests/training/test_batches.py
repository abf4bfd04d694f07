"""Samples and batches: what is cut, what it is paired with, and that nothing but the draw decides."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dissonance.training.augment import AugmentConfig
from dissonance.training.batches import Batch, Names, Sample, SampleLoader, batches, collate, fingerprint
from dissonance.training.cached_clip import CachedClip
from dissonance.training.config import BatchConfig
from dissonance.training.labels import Clip
from dissonance.training.pairs import NO_LAG, UNKNOWN_ORIGIN
from dissonance.training.sampling import BalancedSampler, Draw
from tests.training.tiny import BINS, FRAMES, SIDE, loader_of, named, toy_clip, toy_set

APART = BatchConfig(windows=4, mismatches=3, apart_frames=5)
DRAWS = range(100)


def assert_same(one: Sample, other: Sample) -> None:
    for field in fields(Sample):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def drawn(clip: CachedClip, label: Clip | None = None, *, trim: bool = False, batch: BatchConfig = APART) -> Iterator[Sample]:
    """Many samples of one clip."""
    loader = loader_of(lambda _: clip, batch=batch, trim=trim)
    label = label or named("real")
    return (loader.load(Draw(number, label, 7)) for number in DRAWS)


def test_a_sample_depends_on_its_draw_alone() -> None:
    """With every change on: a new loader, and draws in another order, give the same arrays; another number or seed others."""
    labels, clips = toy_set(8)
    sampler = BalancedSampler(labels, seed=3)
    draws = [sampler.draw(number) for number in range(16)]

    def new_loader() -> SampleLoader:
        return loader_of(clips.__getitem__, batch=APART, augment=AugmentConfig())

    loader = new_loader()
    forwards = [loader.load(draw) for draw in draws]
    for number in (5, 0, 15, 5):
        assert_same(forwards[number], loader.load(draws[number]))
    for sample, draw in zip(reversed(forwards), reversed(draws), strict=True):
        assert_same(sample, new_loader().load(draw))
    for other in (replace(draws[0], number=99), replace(draws[0], seed=4)):
        assert not np.array_equal(forwards[0].crops, loader.load(other).crops)


def test_without_augmentation_windows_and_sounds_are_the_clip_s_bit_for_bit() -> None:
    """Of the face's frames, 2 to 31 of 40: any two windows are far enough apart, and any place comes."""
    clip = toy_clip(0, frames=40, tracks=[(2, 30)])
    of_pictures, of_sounds = set(), set()
    for sample in drawn(clip):
        own, *others = sample.starts.tolist()
        window = clip.window(0, own, frames=FRAMES)
        np.testing.assert_array_equal(sample.crops, window.crops)
        np.testing.assert_array_equal(sample.mask, window.mask)
        np.testing.assert_array_equal(sample.mel[0], window.mel)
        np.testing.assert_array_equal(sample.speech[0], window.speech)
        assert len(others) == APART.mismatches
        for place, start in enumerate(others, start=1):
            mel, speech = clip.sound(start, FRAMES)
            np.testing.assert_array_equal(sample.mel[place], mel)
            np.testing.assert_array_equal(sample.speech[place], speech)
        assert np.diff(sorted(sample.starts)).min() >= APART.apart_frames
        of_pictures |= {own}
        of_sounds |= set(others)
    assert (min(of_pictures), max(of_pictures)) == (min(of_sounds), max(of_sounds)) == (2, 2 + 30 - FRAMES)


def test_where_a_sound_lies_does_not_tell_whether_it_is_the_picture_s_own() -> None:
    """Of two moments the earlier is the picture's in half of the draws, whatever lies between them."""
    starts = np.array([sample.starts for sample in drawn(toy_clip(0), batch=APART.model_copy(update={"mismatches": 1}))])
    early, late = starts.min(axis=1), starts.max(axis=1)
    for group in (late - early < np.median(late - early), late - early >= np.median(late - early)):
        assert 0.3 < (starts[group, 0] == early[group]).mean() < 0.7


def test_where_the_face_is_too_short_there_are_fewer_moments() -> None:
    for frames, moments in ((FRAMES, 1), (FRAMES + 4, 1), (FRAMES + 5, 2), (FRAMES + 10, 3), (FRAMES + 15, 4), (FRAMES + 40, 4)):
        assert {len(sample.starts) for sample in itertools.islice(drawn(toy_clip(0, frames=frames)), 10)} == {moments}


@pytest.mark.parametrize(("picture_fake", "sound_fake"), [(True, False), (False, True), (True, True)])
def test_a_fake_brings_no_other_moments_and_is_of_unknown_origin(picture_fake: bool, sound_fake: bool) -> None:
    label = named("fake", picture_fake=picture_fake, sound_fake=sound_fake, identity="somebody")
    sample = next(drawn(toy_clip(0), label))
    assert sample.starts.shape == (1,)
    batch = collate([sample], clips=Names(["fake"]), identities=Names(["nobody", "somebody"]))
    assert batch.picture_fake.tolist() == [picture_fake]
    assert batch.sound_fake.tolist() == [sound_fake]
    assert batch.clip.tolist() == [UNKNOWN_ORIGIN]
    assert batch.true_lag.tolist() == [NO_LAG]
    assert batch.mismatched.tolist() == [False]
    assert batch.identity.tolist() == [1]


def test_a_silent_companion_is_not_taken_where_somebody_speaks() -> None:
    """Tracks by where they begin: 0 and 2 speak, 1 does not; where no mouth moves, or no voice is heard, any is taken."""
    tracks = [(0, FRAMES), (10, FRAMES), (20, FRAMES)]

    def taken(clip: CachedClip) -> set[int]:
        return {int(sample.starts[0]) for sample in drawn(clip)}

    assert taken(toy_clip(0, tracks=tracks, silent=[1])) == {0, 20}
    assert taken(toy_clip(0, tracks=tracks, silent=[0, 1])) == {20}
    assert taken(toy_clip(0, tracks=tracks, silent=[0, 1, 2])) == {0, 10, 20}
    assert taken(toy_clip(0, tracks=tracks, silent=[1], speech=False)) == {0, 10, 20}


def test_a_short_track_is_padded_and_masked() -> None:
    clip = toy_clip(0, tracks=[(4, 5)])
    for sample in drawn(clip):
        assert sample.starts.tolist() == [4]
        assert sample.mask.tolist() == [True] * 5 + [False] * 3
        assert sample.crops.shape == (FRAMES, SIDE, SIDE, 3)
        assert sample.mel.shape == (1, BINS, 4 * FRAMES)
        mel, speech = clip.sound(4, 5)
        np.testing.assert_array_equal(sample.crops[:5], clip.tracks[0].cut(4, 5))
        np.testing.assert_array_equal(sample.mel[0, :, :20], mel)
        np.testing.assert_array_equal(sample.speech[0, :5], speech)
        for beyond in (sample.crops[5:], sample.mel[:, :, 20:], sample.speech[:, 5:]):
            assert not beyond.any()


def test_the_leading_silence_is_trimmed_from_windows_and_other_moments() -> None:
    quiet = replace(toy_clip(0), speech=np.arange(30) >= 9)
    trimmed, whole = (np.array([sample.starts[:2] for sample in drawn(quiet, trim=trim)]) for trim in (True, False))  # own, and one other moment
    assert trimmed.min(axis=0).tolist() == [9, 9]
    assert whole.min(axis=0).tolist() == [0, 0]


def test_a_face_that_goes_before_the_first_word_keeps_its_silence() -> None:
    gone = replace(toy_clip(0, tracks=[(0, 10)]), speech=np.arange(30) >= 15)
    assert {int(sample.starts[0]) for sample in drawn(gone, trim=True)} <= {0, 1, 2}


# ------------------------------------------------------------------------------------------------------------- batches


GLIMPSING = APART.model_copy(update={"glimpses": 2})


def stream(first_step: int, *, loader: SampleLoader | None = None) -> Iterator[Batch]:
    labels, clips = toy_set(8)
    loader = loader or loader_of(clips.__getitem__, batch=GLIMPSING, augment=AugmentConfig())
    names = Names([label.uri for label in labels]), Names([label.identity for label in labels])
    return batches(BalancedSampler(labels, seed=3), loader, config=GLIMPSING, first_step=first_step, clips=names[0], identities=names[1])


def take(count: int, first_step: int) -> list[Batch]:
    with closing(stream(first_step)) as found:  # type: ignore[type-var]
        return list(itertools.islice(found, count))


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_stream_that_begins_at_a_step_is_the_whole_stream_from_there(step: int) -> None:
    for expected, found in zip(take(7, 0)[step:], take(7 - step, step), strict=True):
        for name, tensor in tensors_of(expected):
            assert torch.equal(tensor, dict(tensors_of(found))[name]), name


def tensors_of(batch: Batch) -> list[tuple[str, Tensor]]:
    assert batch.glimpses is not None
    own = [(name, value) for name, value in vars(batch).items() if name != "glimpses"]
    return own + [(f"glimpses.{name}", value) for name, value in vars(batch.glimpses).items()]


def test_a_step_takes_its_windows_and_then_its_glimpses_from_one_deck() -> None:
    labels, clips = toy_set(8)
    sampler, loader = BalancedSampler(labels, seed=3), loader_of(clips.__getitem__, batch=GLIMPSING, augment=AugmentConfig())
    for step, batch in enumerate(take(3, 0)):
        windows = [loader.load(sampler.draw(6 * step + place)) for place in range(4)]
        glimpses = [loader.glimpse(sampler.draw(6 * step + place)) for place in (4, 5)]
        assert batch.glimpses is not None
        np.testing.assert_array_equal(batch.pixels.numpy(), np.stack([sample.crops for sample in windows]))
        np.testing.assert_array_equal(batch.glimpses.pixels.numpy(), np.stack([glimpse.crops for glimpse in glimpses]))
        np.testing.assert_array_equal(batch.glimpses.mel.numpy(), np.stack([glimpse.mel for glimpse in glimpses]))
        assert batch.glimpses.picture_fake.tolist() == [glimpse.draw.clip.picture_fake for glimpse in glimpses]
        assert batch.glimpses.sound_fake.tolist() == [glimpse.draw.clip.sound_fake for glimpse in glimpses]


def test_a_glimpse_is_the_first_frames_of_a_window_and_all_of_its_sound() -> None:
    """Of frames 2 to 31 of 40, from any place on, bit for bit."""
    clip = toy_clip(0, frames=40, tracks=[(2, 30)])
    loader = loader_of(lambda _: clip, batch=GLIMPSING)
    firsts = set()
    for number in DRAWS:
        glimpse = loader.glimpse(Draw(number, named("real"), 7))
        assert glimpse.crops.shape == (GLIMPSING.glimpse_frames, SIDE, SIDE, 3)
        (first,) = (first for first in range(2, 32 - FRAMES + 1) if np.array_equal(clip.window(0, first, frames=FRAMES).mel, glimpse.mel))
        np.testing.assert_array_equal(glimpse.crops, clip.window(0, first, frames=FRAMES).crops[: GLIMPSING.glimpse_frames])
        assert glimpse.mask.all()
        firsts.add(first)
    assert firsts == set(range(2, 32 - FRAMES + 1))


def test_a_glimpse_of_a_short_track_is_masked_where_it_ends() -> None:
    clip = toy_clip(0, frames=12, tracks=[(4, 5)])
    glimpse = loader_of(lambda _: clip, batch=GLIMPSING).glimpse(Draw(0, named("real"), 7))
    assert glimpse.mask.tolist() == [True] * 5 + [False] * (FRAMES - 5)
    np.testing.assert_array_equal(glimpse.mel, clip.window(0, 4, frames=FRAMES).mel)


def test_a_batch_lists_own_sounds_first_then_the_other_moments_of_the_real() -> None:
    labels, clips = toy_set(8)
    sampler, loader = BalancedSampler(labels, seed=3), loader_of(clips.__getitem__, batch=APART)
    samples = [loader.load(sampler.draw(number)) for number in range(4)]
    uris = sorted(clips)
    batch = collate(samples, clips=Names(uris), identities=Names([label.identity for label in labels]))
    real = [number for number, sample in enumerate(samples) if not sample.draw.clip.fake]
    assert len(real) == 2
    others = [number for number in real for _ in range(APART.mismatches)]
    assert batch.windows == 4
    assert batch.picture.tolist() == [0, 1, 2, 3, *others]
    assert batch.mismatched.tolist() == [False] * 4 + [True] * len(others)
    assert batch.picture_start.tolist() == batch.sound_start.tolist()[:4]
    for pair, (picture, place) in enumerate([(number, 0) for number in range(4)] + [(n, k + 1) for n in real for k in range(APART.mismatches)]):
        sample, label = samples[picture], samples[picture].draw.clip
        np.testing.assert_array_equal(batch.mel[pair].numpy(), sample.mel[place])
        np.testing.assert_array_equal(batch.speech[pair].numpy(), sample.speech[place])
        np.testing.assert_array_equal(batch.pixels[picture].numpy(), sample.crops)
        assert batch.sound_start[pair] == sample.starts[place]
        assert (batch.picture_fake[pair], batch.sound_fake[pair]) == (label.picture_fake, label.sound_fake)
        assert batch.true_lag[pair] == (0 if place == 0 and not label.fake else NO_LAG)
        assert batch.clip[pair] == (UNKNOWN_ORIGIN if label.fake else uris.index(label.uri))


def test_a_clip_that_cannot_be_opened_is_the_consumer_s_error() -> None:
    def missing(uri: str) -> CachedClip:
        raise LookupError(uri)

    open_clip: Callable[[str], CachedClip] = missing
    with pytest.raises(LookupError, match="clip"):
        next(stream(0, loader=loader_of(open_clip)))


def test_the_fingerprint_is_of_content_and_labels_in_any_order() -> None:
    clips, entries = [named("a"), named("b", sound_fake=True)], {"a": "1", "b": "2", "not used": "3"}
    whole = fingerprint(clips, entries)
    assert whole == fingerprint(clips[::-1], entries)
    others = [
        fingerprint(clips[:1], entries),
        fingerprint(clips, {"a": "2", "b": "1"}),
        fingerprint([clips[0], named("c", sound_fake=True)], {**entries, "c": "2"}),
        fingerprint([clips[0], replace(clips[1], picture_fake=True)], entries),
        fingerprint([clips[0], replace(clips[1], sound_fake=False)], entries),
        fingerprint([clips[0], replace(clips[1], manipulation="another")], entries),
        fingerprint([clips[0], replace(clips[1], identity="another")], entries),
        fingerprint([clips[0], replace(clips[1], split="validation")], entries),
    ]
    assert len({whole, *others}) == 9
