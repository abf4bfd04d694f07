"""Detectors on drawn faces, and YuNet against OpenCV's own FaceDetectorYN."""

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dissonance.config import DetectorConfig
from dissonance.engine.media.boxes import BoxFile
from dissonance.engine.media.detect import Detection, Detector, drop_duplicates, make_detector
from dissonance.engine.media.frame import Frame
from dissonance.engine.media.yunet import YunetDetector
from dissonance.errors import ConfigError, EnvironmentMissingError
from tests.engine.media.drawn_faces import backdrop, draw_face


def _frame(picture: NDArray[np.uint8], *, sample_aspect: float = 1.0) -> Frame:
    return Frame(av.VideoFrame.from_ndarray(picture, format="rgb24"), sample_aspect=sample_aspect, reformatter=VideoReformatter())


def _two_faces(width: int = 640, height: int = 360) -> NDArray[np.uint8]:
    return draw_face(draw_face(backdrop(width, height), (180, 170), 150), (460, 190), 90)


@pytest.fixture(params=["haar", "yunet"])
def detector(request: pytest.FixtureRequest) -> Detector:
    if request.param == "haar":
        found = make_detector(DetectorConfig())
    else:
        model = request.getfixturevalue("shared") / "models" / "yunet_n_dynamic.onnx"
        found = make_detector(DetectorConfig(kind="yunet", yunet_model=model))
    assert not isinstance(found, BoxFile)
    return found


def _expect(found: list[Detection], faces: list[tuple[float, float, float]], *, pixel_aspect: float = 1.0) -> None:
    """One face square for each (centre x, centre y, oval height): about as high as the oval, centred within a tenth of it."""
    assert len(found) == len(faces)
    for detection, (x, y, height) in zip(sorted(found, key=lambda d: d.x0), faces, strict=True):
        wide, high = detection.x1 - detection.x0, detection.y1 - detection.y0
        assert wide * pixel_aspect == pytest.approx(high, rel=0.02)
        assert high == pytest.approx(height, rel=0.12)
        assert (detection.x0 + detection.x1) / 2 == pytest.approx(x, abs=0.1 * height)
        assert (detection.y0 + detection.y1) / 2 == pytest.approx(y, abs=0.1 * height)


def test_both_people_are_found_in_one_face_square_each(detector: Detector) -> None:
    _expect(detector.detect(_frame(_two_faces())), [(180, 170, 150), (460, 190, 90)])


def test_a_large_picture_is_searched_small_and_answered_in_its_own_pixels(detector: Detector) -> None:
    picture = draw_face(backdrop(1920, 1080), (700, 520), 420)
    _expect(detector.detect(_frame(picture)), [(700, 520, 420)])


def test_pixels_that_are_not_square(detector: Detector) -> None:
    upright = draw_face(backdrop(640, 360), (300, 180), 160)
    squeezed = np.asarray(cv2.resize(upright, (400, 360), interpolation=cv2.INTER_AREA), np.uint8)
    (found,) = detector.detect(_frame(squeezed, sample_aspect=1.6))
    back = Detection(found.x0 * 1.6, found.y0, found.x1 * 1.6, found.y1, found.score)
    _expect([back], [(300, 180, 160)])


def test_no_face_and_no_room_for_one(detector: Detector) -> None:
    assert detector.detect(_frame(backdrop(640, 360))) == []
    for width, height in ((1, 1), (16, 300), (23, 23)):
        assert detector.detect(_frame(backdrop(width, height))) == []


def test_a_face_below_the_smallest_is_not_answered(shared: Path) -> None:
    frame = _frame(draw_face(draw_face(backdrop(640, 360), (180, 170), 150), (460, 190), 70))
    kinds: tuple[Literal["haar", "yunet"], ...] = ("haar", "yunet")
    for kind in kinds:
        for smallest, faces in ((0.1, [(180.0, 170.0, 150.0), (460.0, 190.0, 70.0)]), (0.32, [(180.0, 170.0, 150.0)])):
            config = DetectorConfig(kind=kind, yunet_model=shared / "models" / "yunet_n_dynamic.onnx", min_face_fraction=smallest)
            found = make_detector(config)
            assert not isinstance(found, BoxFile)
            _expect(found.detect(frame), faces)


def test_haar_looks_more_closely_where_a_face_was() -> None:
    """A head tilted by 26 degrees is missed in the whole picture, and found by who is told where it was; a wall stays a wall."""
    haar = make_detector(DetectorConfig())
    assert not isinstance(haar, BoxFile)
    place = (105.0, 95.0, 255.0, 245.0)
    upright = draw_face(backdrop(640, 360), (180, 170), 150)
    tilt = cv2.getRotationMatrix2D((180, 170), 26, 1)
    tilted = _frame(np.asarray(cv2.warpAffine(upright, tilt, (640, 360), borderMode=cv2.BORDER_REFLECT), np.uint8))
    assert haar.detect(tilted) == []
    _expect(haar.detect(tilted, near=[place]), [(180, 170, 150)])
    assert haar.detect(_frame(upright), near=[place]) == haar.detect(_frame(upright))  # one box, not two
    assert haar.detect(_frame(backdrop(640, 360)), near=[place]) == []


def test_the_same_picture_gives_the_same_list(detector: Detector) -> None:
    assert detector.detect(_frame(_two_faces())) == detector.detect(_frame(_two_faces()))


def test_crops_of_both_detectors_agree(shared: Path) -> None:
    haar, yunet = make_detector(DetectorConfig()), YunetDetector(shared / "models" / "yunet_n_dynamic.onnx", DetectorConfig())
    assert not isinstance(haar, BoxFile)
    sides, drops = [], []
    for height in (90, 130, 180, 240, 300):
        frame = _frame(draw_face(backdrop(640, 360, seed=height), (320, 180), height))
        (a,), (b,) = haar.detect(frame), yunet.detect(frame)
        sides.append((a.x1 - a.x0) / (b.x1 - b.x0))
        drops.append(((a.y0 + a.y1) - (b.y0 + b.y1)) / 2 / height)
    assert np.mean(sides) == pytest.approx(1, abs=0.05)
    assert np.mean(drops) == pytest.approx(0, abs=0.03)


def test_drop_duplicates_keeps_the_best_of_one_face() -> None:
    whole, inner, beside = Detection(0, 0, 10, 10, 5), Detection(2, 2, 8, 8, 9), Detection(9, 0, 19, 10, 1)
    assert drop_duplicates([whole, beside, inner]) == [inner, beside]


# ------------------------------------------------------------------------------------------------------------- yunet


def _opencv_yunet(model: Path, folder: Path, width: int, height: int) -> Any:
    """OpenCV's detector; its ONNX reader wants fixed sizes, so they are written in and folded by ONNX Runtime."""
    fixed = onnx.load(model)
    for axis, side in enumerate((1, 3, height, width)):
        fixed.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = side
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "fixed.onnx")
    onnxruntime.InferenceSession(fixed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return cv2.FaceDetectorYN.create(str(folder / "fixed.onnx"), "", (width, height), 0.6, 0.3, 1000)


@pytest.mark.parametrize(("width", "height"), [(640, 352), (633, 350)])  # the second is padded to the first, as OpenCV does
def test_yunet_decodes_as_opencv_does(shared: Path, tmp_path: Path, width: int, height: int) -> None:
    model = shared / "models" / "yunet_n_dynamic.onnx"
    picture = _two_faces(width, height)
    padded = np.zeros((352, 640, 3), np.uint8)
    padded[:height, :width] = picture
    _, expected = _opencv_yunet(model, tmp_path, 640, 352).detect(np.ascontiguousarray(padded[:, :, ::-1]))
    boxes, scores = YunetDetector(model, DetectorConfig()).detect_tight(picture)
    order, expected_order = np.argsort(boxes[:, 0]), np.argsort(expected[:, 0])
    assert len(boxes) == 2
    np.testing.assert_allclose(boxes[order], expected[expected_order, :4], atol=1e-2)
    np.testing.assert_allclose(scores[order], expected[expected_order, 14], atol=1e-4)


def _save(path: Path, shape: list[int | str], outputs: list[str]) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], [name]) for name in outputs],
        "other",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


NAMES = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox") for stride in (8, 16, 32)]
FREE: list[int | str] = ["b", 3, "h", "w"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path, "Cannot read"),
        (lambda path: path.write_bytes(b"no model") and path, "not a model"),
        (lambda path: _save(path, FREE, ["cls_8"]), "no output 'cls_16'"),
        (lambda path: _save(path, ["b", 3, 640, 640], NAMES), "has the input input ['b', 3, 640, 640]"),
        (lambda path: _save(path, ["b", 1, "h", "w"], NAMES), "has the input"),
        (lambda path: _save(path, FREE, NAMES), "'cls_8' has shape"),
    ],
)
def test_a_file_that_is_no_yunet_is_named(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    path = tmp_path / "other.onnx"
    make(path)
    with pytest.raises(ConfigError) as caught:
        make_detector(DetectorConfig(kind="yunet", yunet_model=path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_without_onnxruntime_the_extra_is_named(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnvironmentMissingError, match=r"dissonance\[cpu\]"):
        make_detector(DetectorConfig(kind="yunet", yunet_model=shared / "models" / "yunet_n_dynamic.onnx"))


def test_given_boxes_are_opened(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("uri,track,time_s,x0,y0,x1,y1\na,0,0,1,2,3,4\n")
    found = make_detector(DetectorConfig(kind="boxes", boxes_file=tmp_path / "boxes.csv"))
    assert isinstance(found, BoxFile)
    assert len(found.tracks("a")) == 1
