"""The cache: what is cut from it is what a scan gets, bit for bit; it survives kills and damage, and says what it left out."""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from dissonance.bundle import CropSpec, MelSpec
from dissonance.config import DetectorConfig, ModelConfig, ScanConfig, SpeechConfig, load_preset
from dissonance.engine.media.audio import SoundReader
from dissonance.engine.media.clip import ClipSummary, Window, read_clip
from dissonance.engine.media.detect import make_detector
from dissonance.engine.media.probe import probe
from dissonance.engine.media.sound import SoundTrack
from dissonance.engine.scan import workers
from dissonance.engine.scan.messages import Task
from dissonance.errors import MediaError, OutputError, UsageError
from dissonance.synth import SynthConfig, generate
from dissonance.training import cache as cache_module
from dissonance.training.cache import CacheReport, ClipCache
from dissonance.training.cached_clip import CachedClip, Track, check_entry, leading_silence
from dissonance.training.fakeavceleb import read_fakeavceleb
from dissonance.training.labels import Clip
from tests.engine.media.clips import noise_frames, tone, write_clip

MODEL = load_preset("demo")
SCAN = ScanConfig()
SEED = 2  # one of its first four clips has a second face
SHORT = SynthConfig(width=240, height=180, duration_s=1.8)


def named(path: Path) -> Clip:
    return Clip(str(path), path, False, False, "none", "A", "somebody", "", "train")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, ...]:
    """Four clips of 45 frames, one of them with two faces."""
    folder = tmp_path_factory.mktemp("synth")
    assert len(list(generate(folder, count=4, seed=SEED, config=SHORT))) == 4
    return read_fakeavceleb(folder).clips


@pytest.fixture(scope="module")
def built(clips: Sequence[Clip], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CacheReport]:
    folder = tmp_path_factory.mktemp("cache")
    return folder, ClipCache(folder, model=MODEL, scan=SCAN).build(clips)


def copied(built: tuple[Path, CacheReport], folder: Path) -> ClipCache:
    """A cache of its own, with the entries of `built`."""
    shutil.copytree(built[0], folder / "cache")
    return ClipCache(folder / "cache", model=MODEL, scan=SCAN)


def outcomes(cache: ClipCache, clips: Sequence[Clip]) -> tuple[CacheReport, list[str]]:
    """A build, and what it said of each clip in the order of `clips`."""
    said: dict[str, str] = {}
    counts = []

    def progress(done: int, total: int, uri: str, outcome: str) -> None:
        counts.append((done, total))
        said[uri] = outcome

    report = cache.build(clips, progress=progress)
    assert counts == [(number + 1, len(clips)) for number in range(len(clips))]
    return report, [said[clip.uri] for clip in clips]


# ------------------------------------------------------------------------------------------------- the same as a scan's


@pytest.mark.parametrize(("frames", "hop"), [(32, 32), (16, 5), (60, 60)])
def test_windows_are_those_that_a_scan_gets_bit_for_bit(clips: Sequence[Clip], built: tuple[Path, CacheReport], frames: int, hop: int) -> None:
    """Of other lengths and starts than the cache was built with, too; 60 frames are more than a clip has."""
    model = ModelConfig(**{**MODEL.model_dump(), "frames": frames, "hop": hop, "audio": MODEL.audio.model_copy(update={"max_positions": 200})})
    cache = ClipCache(built[0], model=model, scan=SCAN)
    detector = make_detector(SCAN.detector)
    compared = 0
    for clip in clips:
        found = cache.open(built[1].entries[clip.uri])
        scanned = read_clip(clip.path, model=model, crop=CropSpec(size_px=64), mel=MelSpec(), scan=SCAN, detector=detector)
        windows = [part for part in scanned if isinstance(part, Window)]
        places = [(found.tracks[track].number, start) for track in range(len(found.tracks)) for start in found.starts(track, model)]
        assert sorted(places) == sorted((window.track, window.first_frame) for window in windows)
        for window in windows:
            track = next(index for index, track in enumerate(found.tracks) if track.number == window.track)
            cut = found.window(track, window.first_frame, frames=frames)
            valid, new = window.frames, len(window.new_crops)
            assert cut.mask.tolist() == [True] * valid + [False] * (frames - valid)
            assert window.mel is not None
            np.testing.assert_array_equal(cut.mel, window.mel)
            np.testing.assert_array_equal(cut.crops[valid - new : valid], window.new_crops)
            np.testing.assert_array_equal(cut.speech[:valid], window.speech)
            np.testing.assert_array_equal(cut.mouth_motion[:valid], window.mouth_motion)
            begin = window.first_frame - found.tracks[track].first_frame
            np.testing.assert_array_equal(found.tracks[track].boxes[begin : begin + valid], window.boxes)
            for beyond in (cut.crops[valid:], cut.mel[:, 4 * valid :], cut.speech[valid:], cut.mouth_motion[valid:]):
                assert not beyond.any()
            compared += 1
    assert compared >= len(clips)
    assert built[1].skipped == ()


def test_sound_is_a_scan_s_to_its_end_and_beyond(clips: Sequence[Clip], built: tuple[Path, CacheReport]) -> None:
    """The last samples fill no whole frame; after them a scan hears silence."""
    cache = ClipCache(built[0], model=MODEL, scan=SCAN)
    for clip in clips[:2]:
        found = cache.open(built[1].entries[clip.uri])
        info = probe(clip.path, limits=SCAN.limits)
        assert info.audio is not None
        for first in (found.sound_frames - 12, found.sound_frames - 6):
            scanned = SoundTrack(SoundReader(clip.path, info, origin_s=0.0), mel=MelSpec(), speech=SCAN.speech)
            mel, speech = found.sound(first, 12)
            np.testing.assert_array_equal(mel, scanned.mel(first, 12))
            np.testing.assert_array_equal(speech, scanned.speech(first, 12))


def test_the_face_that_speaks_is_told_from_the_one_beside_it(clips: Sequence[Clip], built: tuple[Path, CacheReport]) -> None:
    cache = ClipCache(built[0], model=MODEL, scan=SCAN)
    found = [cache.open(built[1].entries[clip.uri]) for clip in clips]
    assert sorted(len(clip.tracks) for clip in found) == [1, 1, 1, 2]
    for clip in found:
        assert sum(clip.speaks(track, SCAN.speech) for track in range(len(clip.tracks))) == 1


def test_a_lag_above_zero_is_sound_that_comes_later(tmp_path: Path) -> None:
    """As synth's own: the same clip, made with its sound 3 frames later, sounds at lag 0 as the plain one does at lag 3."""
    folders = {shift: tmp_path / str(shift) for shift in (0, 3)}
    for shift, folder in folders.items():
        assert list(generate(folder, count=1, seed=5, config=SHORT.model_copy(update={"forgeries": ("none",), "shift_frames": shift})))
    cache = ClipCache(tmp_path / "cache", model=MODEL, scan=SCAN)
    pair = [read_fakeavceleb(folder).clips[0] for folder in folders.values()]
    entries = cache.build(pair).entries
    straight, shifted = (cache.open(entries[clip.uri]) for clip in pair)
    heard = shifted.window(0, 8, frames=32).mel
    away = {lag: float(np.abs(straight.window(0, 8, frames=32, lag=lag).mel - heard).mean()) for lag in range(-5, 6)}
    assert min(away, key=lambda lag: away[lag]) == 3


# ------------------------------------------------------------------------------------------- what is kept, and found again


def test_a_second_build_finds_everything(clips: Sequence[Clip], built: tuple[Path, CacheReport], tmp_path: Path) -> None:
    cache = copied(built, tmp_path)
    index = (tmp_path / "cache" / "index.jsonl").read_text()
    report, said = outcomes(cache, clips)
    assert said == ["known"] * 4
    assert report.entries == built[1].entries
    assert (tmp_path / "cache" / "index.jsonl").read_text() == index
    lines = [json.loads(line) for line in index.splitlines()]
    assert {line["uri"]: line["key"] for line in lines} == built[1].entries
    assert [line["sound_frames"] for line in lines] == [cache.open(line["key"]).sound_frames for line in lines]
    assert all(abs(line["frames"] - 45) <= 1 and line["speech_fraction"] > 0.5 for line in lines)


def test_content_and_preprocessing_make_the_key(clips: Sequence[Clip], built: tuple[Path, CacheReport], tmp_path: Path) -> None:
    cache = copied(built, tmp_path)
    moved = tmp_path / "another name.mp4"
    shutil.copy(clips[0].path, moved)
    report, said = outcomes(cache, [named(moved)])
    assert said == ["known"]
    assert report.entries[str(moved)] == built[1].entries[clips[0].uri]

    def key(model: ModelConfig = MODEL, scan: ScanConfig = SCAN, content: str = "c0") -> str:
        return ClipCache(tmp_path, model=model, scan=scan).key(clips[0], content)

    larger = MODEL.model_copy(update={"visual": MODEL.visual.model_copy(update={"image_size": 72})})
    more_bins = MODEL.model_copy(update={"audio": MODEL.audio.model_copy(update={"mel_bins": 128})})
    others = [
        key(content="c1"),
        key(model=larger),
        key(model=more_bins),
        key(scan=ScanConfig(speech=SpeechConfig(min_snr_db=8))),
        key(scan=ScanConfig(detector=DetectorConfig(every_frames=6))),
    ]
    assert len({key(), *others}) == 6
    assert key() == key(model=MODEL.model_copy(update={"frames": 16, "hop": 5}))  # nothing that is kept depends on the window


def test_given_boxes_belong_to_a_name_so_the_key_does_too(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("uri,track,time_s,x0,y0,x1,y1\na,0,0,0,0,50,50\n")
    cache = ClipCache(tmp_path, model=MODEL, scan=ScanConfig(detector=DetectorConfig(kind="boxes", boxes_file=tmp_path / "boxes.csv")))
    assert cache.key(named(Path("a")), "c0") != cache.key(named(Path("b")), "c0")


def test_damaged_entries_are_found_and_made_anew(clips: Sequence[Clip], built: tuple[Path, CacheReport], tmp_path: Path) -> None:
    cache = copied(built, tmp_path)
    keys = [built[1].entries[clip.uri] for clip in clips]
    for key, damage in zip(keys, ("flip", "cut", "empty"), strict=False):
        path = cache.path(key)
        whole = path.read_bytes()
        at = len(whole) // 2
        path.write_bytes({"flip": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], "cut": whole[:at], "empty": b""}[damage])
        assert check_entry(path) is None
    for key in keys[1:3]:
        with pytest.raises(UsageError, match=r"is damaged .* Build the cache again"):
            cache.open(key)
    _, said = outcomes(cache, clips)
    assert said == ["cached", "cached", "cached", "known"]
    for key in keys:
        assert cache.path(key).read_bytes() == ClipCache(built[0], model=MODEL, scan=SCAN).path(key).read_bytes()


def test_every_byte_of_an_entry_is_checked(clips: Sequence[Clip], built: tuple[Path, CacheReport], tmp_path: Path) -> None:
    cache = copied(built, tmp_path)
    path = cache.path(built[1].entries[clips[0].uri])
    whole = path.read_bytes()
    assert check_entry(path) is not None
    for at in np.random.default_rng(0).integers(0, len(whole), 40).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert check_entry(path) is None, at


def test_a_build_that_is_cut_short_goes_on_where_it_was(clips: Sequence[Clip], tmp_path: Path) -> None:
    cache = ClipCache(tmp_path / "cache", model=MODEL, scan=SCAN)
    stale = tmp_path / "cache" / "entries" / "ab" / ".abcd.safetensors.partial"

    def interrupt(done: int, *_: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.build(clips[:3], progress=interrupt)
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.write_bytes(b"of a build that was killed")
    assert len((tmp_path / "cache" / "index.jsonl").read_text().splitlines()) == 2
    (tmp_path / "cache" / "index.jsonl").write_text('{"uri": "cut')  # the index is no loss: entries tell what they are
    _, said = outcomes(cache, clips[:3])
    assert said == ["known", "known", "cached"]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_folder_that_cannot_be_written_and_one_that_is_in_use_are_told(clips: Sequence[Clip], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="Cannot write cache"):
        ClipCache(tmp_path / "file", model=MODEL, scan=SCAN).build(clips)
    cache = ClipCache(tmp_path / "cache", model=MODEL, scan=SCAN)

    def again(*_: object) -> None:
        ClipCache(tmp_path / "cache", model=MODEL, scan=SCAN).build(clips)

    with pytest.raises(UsageError, match="Another build is at work"):
        cache.build([named(tmp_path / "nothing.mp4")], progress=again)


# ------------------------------------------------------------------------------------------------------------ left out


def test_clips_that_cannot_be_used_are_counted_and_listed(clips: Sequence[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[tuple[str, bool]] = []

    class Watched(workers.WorkerPool):
        def run(self, next_task: Callable[[], Task | None], *, poll: Callable[[], float]) -> Iterator[workers.Event]:
            def noted() -> Task | None:
                if (task := next_task()) is not None:
                    tries.append((Path(task.path).name, task.fresh))
                return task

            return super().run(noted, poll=poll)

    monkeypatch.setattr(cache_module, "WorkerPool", Watched)
    monkeypatch.setattr(workers, "WORKER_MODULE", "tests.engine.scan.faulty_worker")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # a worker does not look for modules in the folder it is started from
    noise, beep = noise_frames(30, width=160, height=120), tone(1.2)
    faceless = write_clip(tmp_path / "faceless.mp4", frames=noise, sound=beep)
    brief = write_clip(tmp_path / "brief.mp4", frames=noise[:5], sound=tone(0.2))
    (tmp_path / "garbage.mp4").write_bytes(b"\0" * 1000)
    (tmp_path / "folder.mp4").mkdir()
    faults = [Path(shutil.copy(clips[0].path, tmp_path / f"a.fault-{fault}.mp4")) for fault in ("abort", "liar")]
    odd = [faceless, brief, tmp_path / "garbage.mp4", tmp_path / "folder.mp4", tmp_path / "missing.mp4", *faults]
    cache = ClipCache(tmp_path / "cache", model=MODEL.model_copy(update={"frames": 16}), scan=SCAN)
    report, said = outcomes(cache, [named(path) for path in odd] + [clips[0]])
    assert said == ["skipped"] * len(odd) + ["cached"]
    assert {skip.path.name: skip.reason for skip in report.skipped} == {
        "faceless.mp4": "no_face",
        "brief.mp4": "too_short",
        "garbage.mp4": "corrupt",
        "folder.mp4": "unreadable",
        "missing.mp4": "unreadable",
        "a.fault-abort.mp4": "decoder_crash",
        "a.fault-liar.mp4": "decoder_crash",
    }
    assert report.reasons() == {"unreadable": 2, "no_face": 1, "too_short": 1, "corrupt": 1, "decoder_crash": 2}
    assert list(report.entries) == [clips[0].uri]
    assert [fresh for name, fresh in tries if name == "a.fault-abort.mp4"] == [False, True]  # as in a scan: once more, in a process of its own
    lines = [json.loads(line) for line in (tmp_path / "cache" / "index.jsonl").read_text().splitlines()]
    assert Counter(line.get("reason") for line in lines) == {None: 1, **report.reasons()}

    monkeypatch.setattr(workers, "WORKER_MODULE", "nothing.that.could.start")  # what has no face never will: it is not read again
    again, said = outcomes(cache, [named(faceless), named(brief), clips[0]])
    assert said == ["skipped", "skipped", "known"]
    assert again.reasons() == {"no_face": 1, "too_short": 1}


def test_windows_that_do_not_fit_their_file_make_no_entry(clips: Sequence[Clip], built: tuple[Path, CacheReport]) -> None:
    """Windows of the longest overlap and with all their crops are joined to the same clip; another file's sound is noticed."""
    prompts = MODEL.visual.prompts.model_copy(update={"per_frame": True})
    visual = MODEL.visual.model_copy(update={"prompts": prompts})
    model = MODEL.model_copy(update={"frames": 16, "hop": 3, "visual": visual})
    path, detector = clips[0].path, make_detector(SCAN.detector)
    *windows, summary = read_clip(path, model=model, crop=CropSpec(size_px=64), mel=MelSpec(), scan=SCAN, detector=detector)
    assert isinstance(summary, ClipSummary)
    found = [window for window in windows if isinstance(window, Window)]
    cache = ClipCache(built[0], model=MODEL, scan=SCAN)
    kept = cache.open(built[1].entries[clips[0].uri])
    for joined, track in zip(cache.assemble(path, found, summary).tracks, kept.tracks, strict=True):
        np.testing.assert_array_equal(joined.cut(joined.first_frame, joined.frames), track.cut(track.first_frame, track.frames))
        np.testing.assert_array_equal(joined.mouth_motion, track.mouth_motion)
    for where, parts, end, reason in (
        (clips[1].path, found, summary, "changed"),
        (path, found, replace(summary, sound_error="corrupt: it ends"), "damaged"),
        (path, found[1:], summary, "decoder_crash"),
        (path, [found[0], *found[9:]], summary, "decoder_crash"),
    ):
        with pytest.raises(MediaError) as caught:
            cache.assemble(where, parts, end)
        assert caught.value.reason == reason


def test_a_face_without_sound_is_left_out(clips: Sequence[Clip], tmp_path: Path) -> None:
    silent = tmp_path / "silent.mp4"
    with av.open(str(clips[0].path)) as source, av.open(str(silent), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    report = ClipCache(tmp_path / "cache", model=MODEL, scan=SCAN).build([named(silent)])
    assert report.reasons() == {"no_sound": 1}


# ------------------------------------------------------------------------------------------------------------ trimming


@pytest.fixture
def counted() -> CachedClip:
    """40 frames whose crops and mel carry their frame's number; speech from frame 12 on; one track from 5 to 39, one from 0 to 9."""
    frames = np.arange(40)
    crops = np.broadcast_to(frames[:, None, None, None], (40, 4, 4, 3)).astype(np.uint8)
    log_mel = np.repeat(frames, 4)[:, None].astype(np.float32) / 100

    def track(number: int, first: int, end: int) -> Track:
        count = end - first
        return Track(number, first, crops[first:end], np.zeros((count, 4), np.float32), frames[first:end].astype(np.float32))

    return CachedClip((track(0, 5, 40), track(1, 0, 10)), log_mel, frames >= 12)


def test_trimming_takes_the_same_stretch_from_picture_and_sound(counted: CachedClip) -> None:
    trimmed = counted.trimmed()
    assert trimmed.begin == 12
    assert [track.number for track in trimmed.tracks] == [0]  # the other ended before anyone spoke
    assert (trimmed.tracks[0].first_frame, trimmed.tracks[0].end_frame) == (12, 40)
    model = MODEL.model_copy(update={"frames": 10, "hop": 10})
    assert trimmed.starts(0, model) == [12, 22, 30]
    first = trimmed.window(0, 12, frames=10)
    assert first.crops[:, 0, 0, 0].tolist() == list(range(12, 22)) == first.mouth_motion.tolist()
    np.testing.assert_array_equal(first.mel, counted.window(0, 12, frames=10).mel)
    np.testing.assert_allclose(first.mel[0] * 4 - 4, np.repeat(np.arange(12, 22), 4) / 100, atol=1e-6)
    assert first.speech.all()
    with pytest.raises(ValueError, match="begins at 12"):
        trimmed.sound(11, 10)
    with pytest.raises(ValueError, match="track 0 has 12 to 39"):
        trimmed.window(0, 11, frames=10)
    assert trimmed.trimmed() == trimmed


def test_silence_throughout_is_not_trimmed(counted: CachedClip) -> None:
    silent = replace(counted, speech=np.zeros(40, bool))
    assert silent.trimmed().begin == 0
    assert leading_silence(np.array([False, False, True, False])) == 2
    assert leading_silence(np.ones(3, bool)) == 0


def test_a_window_with_a_lag_has_its_sound_from_earlier(counted: CachedClip) -> None:
    later = counted.window(0, 15, frames=10, lag=4)
    assert later.crops[:, 0, 0, 0].tolist() == list(range(15, 25))
    np.testing.assert_allclose(later.mel[0] * 4 - 4, np.repeat(np.arange(11, 21), 4) / 100, atol=1e-6)
    assert later.speech.tolist() == [False] + [True] * 9
    with pytest.raises(ValueError, match="begins at 0"):
        counted.window(0, 5, frames=10, lag=6)
