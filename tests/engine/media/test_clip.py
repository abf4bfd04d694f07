"""Files to windows: numbered pictures say which frame a crop is of, a click says which frame a mel column is of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dissonance.bundle import CropSpec, MelSpec
from dissonance.config import AudioConfig, DetectorConfig, HeadConfig, ModelConfig, ScanConfig, VisualConfig, VisualPromptConfig
from dissonance.engine.media.boxes import BoxFile
from dissonance.engine.media.clip import ClipSummary, Window, read_clip
from dissonance.engine.media.detect import Detector, HaarDetector
from dissonance.engine.media.yunet import YunetDetector
from dissonance.errors import MediaError
from dissonance.synth.config import SynthConfig
from dissonance.synth.dataset import generate
from tests.engine.media.clips import click, flash_frames, numbered_frames, read_number, write_clip
from tests.engine.media.drawn_faces import backdrop, draw_face
from tests.engine.media.test_speech import silence, voice

SIZE = 16
CROP = CropSpec(size_px=SIZE)


def _model(frames: int = 32, hop: int = 32, *, per_frame: bool = False) -> ModelConfig:
    prompts = VisualPromptConfig(per_frame=per_frame)
    return ModelConfig(
        preset="test",
        frames=frames,
        hop=hop,
        visual=VisualConfig(hidden_size=8, layers=1, heads=1, intermediate_size=8, image_size=SIZE, patch_size=8, prompts=prompts),
        audio=AudioConfig(hidden_size=8, layers=1, heads=1, intermediate_size=8),
        head=HeadConfig(max_lag=2),
    )


def _read(
    path: Path,
    detector: Detector | BoxFile,
    *,
    model: ModelConfig | None = None,
    scan: ScanConfig | None = None,
    crop: CropSpec = CROP,
    **options: Any,
) -> tuple[list[Window], ClipSummary]:
    model = model or _model()
    *windows, summary = read_clip(path, model=model, crop=crop, mel=MelSpec(), scan=scan or ScanConfig(), detector=detector, **options)
    assert isinstance(summary, ClipSummary)
    found = []
    for window in windows:
        assert isinstance(window, Window)
        assert window.mel is None or window.mel.shape == (80, 4 * model.frames)
        assert window.boxes.shape == ((window.frames, 4) if window.track >= 0 else (0, 4))
        assert window.speech.shape == window.mouth_motion.shape == (window.frames,)
        assert window.new_crops.shape[1:] == (crop.size_px, crop.size_px, 3)
        assert window.end_s - window.start_s == pytest.approx(window.frames / 25)
        found.append(window)
    return found, summary


def _boxes(folder: Path, uri: str, rows: Sequence[tuple[int, float, float, float, float, float]]) -> BoxFile:
    lines = ["uri,track,time_s,x0,y0,x1,y1", *(f"{uri},{','.join(map(str, row))}" for row in rows)]
    (folder / "boxes.csv").write_text("\n".join(lines))
    return BoxFile(folder / "boxes.csv")


# -------------------------------------------------------------------------------------------------------- one clock


@pytest.mark.parametrize(("frames", "hop", "per_frame"), [(8, 8, False), (8, 3, False), (8, 3, True), (32, 32, False)])
def test_crops_are_of_the_frames_they_say(tmp_path: Path, frames: int, hop: int, per_frame: bool) -> None:
    """One track over frames 5 to 24 of a clip of numbered pictures; the crop is of the whole picture (96 x 96, square)."""
    path = write_clip(tmp_path / "clip.mp4", frames=numbered_frames(30, width=96, height=96))
    boxes = _boxes(tmp_path, "clip", [(7, 0.2, 0, 0, 96, 96), (7, 0.96, 0, 0, 96, 96)])
    windows, summary = _read(path, boxes, model=_model(frames, hop, per_frame=per_frame), crop=CropSpec(size_px=48), uri="clip")
    assert {window.track for window in windows} == {7}
    came: list[int] = []
    for window in windows:
        numbers = [read_number(crop) for crop in window.new_crops]
        expected = list(range(window.first_frame, window.first_frame + window.frames))
        assert numbers == expected[len(expected) - len(numbers) :]
        assert per_frame is False or numbers == expected
        assert window.start_s == pytest.approx(window.first_frame / 25)
        came += numbers
    assert windows[0].first_frame == 5
    assert windows[-1].first_frame + windows[-1].frames == 25
    assert sorted(set(came)) == list(range(5, 25))
    assert per_frame or came == list(range(5, 25))
    assert (summary.faces, summary.frames, summary.frames_decoded, summary.frames_dropped) == (1, 30, 30, 0)
    assert (summary.speech_fraction, summary.modalities) == (None, "v")
    assert summary.duration_s == pytest.approx(1.2)


def test_sound_and_picture_of_a_window_are_of_the_same_moment(tmp_path: Path) -> None:
    """A flash in frame 40 and a click at its time, in a file whose clock starts late and whose sound starts before its picture."""
    path = write_clip(
        tmp_path / "clip.mkv",
        frames=flash_frames(70, 40),
        times_s=[0.5 + k / 25 for k in range(70)],
        sound=click(3.3, 0.3 + 40 / 25),
        sound_start_s=0.2,
        sound_codec="flac",
    )
    boxes = _boxes(tmp_path, str(path), [(0, 0.5, 10, 10, 50, 50), (0, 9, 10, 10, 50, 50)])
    windows, summary = _read(path, boxes)
    assert [window.first_frame for window in windows] == [0, 32, 38]
    assert summary.origin_s == pytest.approx(0.5, abs=1e-3)
    assert windows[1].start_s == pytest.approx(0.5 + 32 / 25, abs=1e-3)
    assert windows[1].new_crops.mean(axis=(1, 2, 3)).argmax() == 8
    assert windows[1].mel is not None
    # A transform of 400 samples centred on sample 160 n holds the click's 32 samples from n - 1 on, and rises steepest at the click itself.
    energy = windows[1].mel.max(axis=0)
    assert 32 <= energy.argmax() <= 33
    assert windows[2].new_crops.shape[0] == 6  # anchored to the end; the others came with the window before
    assert windows[2].mel is not None
    assert 8 <= windows[2].mel.max(axis=0).argmax() <= 9


def test_a_padded_window_is_zero_beyond_its_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", frames=numbered_frames(10), sound=voice(2.0), sound_rate_hz=16_000)
    (window,), _ = _read(path, _boxes(tmp_path, "c", [(0, 0, 0, 0, 40, 40), (0, 9, 0, 0, 40, 40)]), uri="c")
    assert (window.first_frame, window.frames, len(window.new_crops)) == (0, 10, 10)
    assert window.mel is not None
    assert window.mel[:, :40].any()
    assert not window.mel[:, 40:].any()


def test_a_clip_of_one_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", frames=numbered_frames(1))
    (window,), summary = _read(path, _boxes(tmp_path, "c", [(0, 0, 0, 0, 40, 40)]), uri="c")
    assert (window.frames, summary.frames) == (1, 1)
    windows, summary = _read(path, HaarDetector(DetectorConfig()))
    assert (windows, summary.faces) == ([], 0)


def test_boxes_of_another_file_are_not_used(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", frames=numbered_frames(10))
    windows, summary = _read(path, _boxes(tmp_path, "other", [(0, 0, 0, 0, 40, 40)]))
    assert (windows, summary.faces, summary.modalities) == ([], 0, "")


# -------------------------------------------------------------------------------------------------- detected faces


def _covered(windows: list[Window], track: int) -> list[int]:
    return sorted({k for w in windows if w.track == track for k in range(w.first_frame, w.first_frame + w.frames)})


def test_a_moving_face_is_followed(tmp_path: Path) -> None:
    wall = backdrop(320, 240)
    centres = [(110 + 1.5 * k, 120.0) for k in range(60)]
    path = write_clip(tmp_path / "clip.mp4", frames=[draw_face(wall, centre, 110) for centre in centres])
    windows, summary = _read(path, HaarDetector(DetectorConfig()))
    assert (summary.faces, _covered(windows, 0)) == (1, list(range(60)))
    for window in windows:
        for k, box in enumerate(window.boxes, start=window.first_frame):
            assert (box[0] + box[2]) / 2 == pytest.approx(centres[k][0], abs=8)
            assert (box[1] + box[3]) / 2 == pytest.approx(centres[k][1], abs=8)
            assert box[2] - box[0] == pytest.approx(110, rel=0.15)


def test_a_cut_ends_a_track_at_the_very_frame(tmp_path: Path) -> None:
    """The same place, another person in another room, from frame 31 on (detections are at 24 and 36); a flash at frame 12 is no cut."""
    first, second = backdrop(320, 240, seed=1), 255 - backdrop(320, 240, seed=2)
    shot = [draw_face(first, (150, 120), 110)] * 31 + [draw_face(second, (160, 125), 100)] * 29
    shot[12] = np.clip(shot[12].astype(int) + 50, 0, 255).astype(np.uint8)
    path = write_clip(tmp_path / "clip.mp4", frames=shot)
    windows, summary = _read(path, HaarDetector(DetectorConfig()), model=_model(8, 8))
    assert summary.faces == 2
    assert _covered(windows, 0) == list(range(31))
    assert _covered(windows, 1) == list(range(31, 60))


def test_frames_without_the_face_are_not_scored(tmp_path: Path) -> None:
    """Seen in frames 0 to 29 and, for the second track, from 90 on: the last sighting before it leaves is at 24."""
    wall = backdrop(320, 240)
    face = draw_face(wall, (150, 120), 110)
    path = write_clip(tmp_path / "clip.mp4", frames=[face] * 30 + [wall] * 60 + [face] * 20)
    windows, summary = _read(path, HaarDetector(DetectorConfig()), model=_model(8, 8))
    assert summary.faces == 2
    assert _covered(windows, 0) == list(range(25))
    assert _covered(windows, 1) == list(range(96, 110))


def test_a_face_hidden_for_a_moment_is_one_track(tmp_path: Path) -> None:
    wall = backdrop(320, 240)
    face = draw_face(wall, (150, 120), 110)
    path = write_clip(tmp_path / "clip.mp4", frames=[face] * 20 + [wall] * 10 + [face] * 20)  # missed at 24 alone
    windows, summary = _read(path, HaarDetector(DetectorConfig()), model=_model(8, 8))
    assert (summary.faces, _covered(windows, 0)) == (1, list(range(50)))


def test_a_head_that_stays_tilted_is_one_track(tmp_path: Path) -> None:
    """By 26 degrees, from frame 46 to 100: the whole-picture search misses it there for longer than a track may be unseen."""
    upright = draw_face(backdrop(320, 240), (160, 120), 110)
    frames = []
    for angle in [*[0] * 20, *range(26), *[26] * 55, *range(26, 0, -1), *[0] * 10]:
        turn = cv2.getRotationMatrix2D((160, 120), angle, 1)
        frames.append(np.asarray(cv2.warpAffine(upright, turn, (320, 240), borderMode=cv2.BORDER_REFLECT), np.uint8))
    path = write_clip(tmp_path / "clip.mp4", frames=frames)
    windows, summary = _read(path, HaarDetector(DetectorConfig()), model=_model(8, 8))
    assert (summary.faces, _covered(windows, 0)) == (1, list(range(len(frames))))


def test_a_face_seen_too_shortly_is_dropped(tmp_path: Path) -> None:
    wall = backdrop(320, 240)
    path = write_clip(tmp_path / "clip.mp4", frames=[draw_face(wall, (150, 120), 110)] * 9 + [wall] * 20)
    assert _read(path, HaarDetector(DetectorConfig()))[1].faces == 0


# ------------------------------------------------------------------------------------------- one stream, or neither


def _wall_clip(path: Path, seconds: float, sound: NDArray[np.float32] | None) -> Path:
    return write_clip(path, frames=[backdrop(96, 64)] * round(25 * seconds), sound=sound, sound_rate_hz=16_000)


def test_a_voice_without_a_face_gives_windows_of_sound(tmp_path: Path) -> None:
    """Speech from 4 s to 6 s of 10: of 7 whole windows and the anchored one only those that hold it come, numbered from 0."""
    path = _wall_clip(tmp_path / "clip.mp4", 10, np.concatenate([silence(4), voice(2), silence(4)]))
    windows, summary = _read(path, HaarDetector(DetectorConfig()))
    assert [window.first_frame for window in windows] in ([96, 128], [64, 96, 128])  # 3.84 s and 5.12 s; the hangover may reach back
    assert [window.index for window in windows] == list(range(len(windows)))
    assert all(window.track == -1 and window.mel is not None and window.speech.any() and len(window.new_crops) == 0 for window in windows)
    assert summary.speech_fraction == pytest.approx(0.2, abs=0.06)
    assert (summary.modalities, summary.faces, summary.frames) == ("a", 0, 250)


def test_sound_alone_is_cut_into_windows_to_its_end(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", sound=voice(3.0), sound_rate_hz=16_000)
    windows, summary = _read(path, HaarDetector(DetectorConfig()))
    last = round(25 * summary.duration_s)
    assert [window.first_frame for window in windows] == [0, 32, last - 32]
    assert summary.duration_s == pytest.approx(3.0, abs=0.1)
    assert (summary.modalities, summary.frames, summary.frames_decoded) == ("a", 0, 0)
    (window,), _ = _read(write_clip(tmp_path / "short.mp4", sound=voice(0.6), sound_rate_hz=16_000), HaarDetector(DetectorConfig()))
    assert window.mel is not None
    assert window.frames < 20
    assert not window.mel[:, 4 * window.frames :].any()


def test_silence_without_a_face_gives_no_window(tmp_path: Path) -> None:
    windows, summary = _read(_wall_clip(tmp_path / "clip.mp4", 2, silence(2)), HaarDetector(DetectorConfig()))
    assert (windows, summary.speech_fraction, summary.modalities) == ([], 0.0, "")


def _spoil(path: Path, kind: str) -> None:
    """Overwrite every packet of one stream."""
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(**{kind: 0}) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in places:
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)


def test_broken_sound_leaves_the_picture(tmp_path: Path) -> None:
    path = _wall_clip(tmp_path / "clip.mp4", 2, voice(2))
    _spoil(path, "audio")
    windows, summary = _read(path, _boxes(tmp_path, "c", [(0, 0, 0, 0, 40, 40), (0, 9, 0, 0, 40, 40)]), uri="c")
    assert len(windows) == 2
    assert all(window.mel is None and not window.speech.any() for window in windows)
    assert summary.sound_error is not None
    assert summary.sound_error.startswith("corrupt")
    assert (summary.speech_fraction, summary.picture_error, summary.modalities) == (None, None, "v")


def test_a_broken_picture_leaves_the_sound(tmp_path: Path) -> None:
    path = _wall_clip(tmp_path / "clip.mp4", 2, voice(2))
    _spoil(path, "video")
    windows, summary = _read(path, HaarDetector(DetectorConfig()))
    assert windows
    assert {window.track for window in windows} == {-1}
    assert summary.picture_error is not None
    assert summary.picture_error.startswith("corrupt")
    assert (summary.sound_error, summary.modalities) == (None, "a")


def test_both_broken_is_an_error(tmp_path: Path) -> None:
    path = _wall_clip(tmp_path / "clip.mp4", 2, voice(2))
    _spoil(path, "video")
    _spoil(path, "audio")
    with pytest.raises(MediaError, match="corrupt"):
        _read(path, HaarDetector(DetectorConfig()))
    picture = _wall_clip(tmp_path / "picture.mp4", 2, None)
    _spoil(picture, "video")
    with pytest.raises(MediaError, match="corrupt"):
        _read(picture, HaarDetector(DetectorConfig()))


def test_progress_is_told_while_nothing_comes_out(tmp_path: Path) -> None:
    read_s: list[float] = []
    _read(_wall_clip(tmp_path / "clip.mp4", 4, silence(4)), HaarDetector(DetectorConfig()), progress=read_s.append)
    assert len(read_s) > 100 + 3  # every frame, and the sound's chunks
    assert read_s.count(0.0) > 100  # every packet: damaged ones make no frame
    assert max(read_s) == pytest.approx(4, abs=0.1)


# ------------------------------------------------------------------------------------------- real and drawn people


def test_real_clips_without_faces(shared: Path) -> None:
    for path in sorted((shared / "media").glob("*.m[kp][v4]")):
        windows, summary = _read(path, HaarDetector(DetectorConfig()))
        assert summary.info.video is not None
        with av.open(str(path)) as container:
            expected = sum(1 for _ in container.decode(container.streams[summary.info.video.index]))
        assert (summary.faces, summary.frames_decoded) == (0, expected), path
        assert all(window.track == -1 for window in windows)


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight synthetic clips, two of them with two people (every race, four seconds)."""
    folder = tmp_path_factory.mktemp("talking")
    single = [folder / "one" / row.file for row in generate(folder / "one", count=6, seed=5, config=SynthConfig(two_person_share=0))]
    pairs = [folder / "two" / row.file for row in generate(folder / "two", count=2, seed=5, config=SynthConfig(two_person_share=1))]
    return single + pairs


def test_haar_finds_drawn_people(talking: list[Path]) -> None:
    frames = found = 0
    for path in talking[:6]:
        windows, summary = _read(path, HaarDetector(DetectorConfig()))
        frames += summary.frames
        found += len({k for track in range(summary.faces) for k in _covered(windows, track)})
        assert summary.modalities == "av"
    assert found >= 0.95 * frames


def test_yunet_tracks_both_people(talking: list[Path], shared: Path) -> None:
    detector = YunetDetector(shared / "models" / "yunet_n_dynamic.onnx", DetectorConfig())
    for path in talking[6:]:
        windows, summary = _read(path, detector)
        assert summary.faces == 2
        assert all(_covered(windows, track) == list(range(summary.frames)) for track in (0, 1))
        left, right = sorted(np.mean([w.boxes[:, 2].mean() for w in windows if w.track == track]) for track in (0, 1))
        assert right - left > 60
