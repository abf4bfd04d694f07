"""The crop kernel against PIL, against the crops that a scan makes on a CPU, and its own plain version."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dissonance.bundle import CropSpec
from dissonance.engine.media.boxes import Box
from dissonance.engine.media.crop import crop_face, crop_square
from dissonance.kernels.crop_resize_normalize import CropTiling, Normalisation, crop_resize_normalize, crop_resize_normalize_reference
from tests.kernels.cases import DEVICE

HEIGHT, WIDTH = 90, 130
BOXES: dict[str, Box] = {
    "shrunk, with a fraction": (10.3, 5.1, 70.9, 66.2),
    "the whole frame": (0.0, 0.0, 130.0, 90.0),
    "enlarged, in a corner": (100.2, 60.5, 130.0, 90.0),
    "much enlarged": (30.1, 30.2, 32.7, 33.9),
    "flat": (3.3, 2.0, 123.3, 12.0),
}
MISROUNDED = 0.02  # of the pixels, at most, are one level off
COARSE = CropTiling(block_y=16, block_x=16, block_i=16, block_j=16, warps=4, stages=1)  # many tiles, many steps


def noise(frames: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def cut(frames: NDArray[np.uint8], boxes: list[Box], frame: list[int], *, size_px: int, **options: object) -> torch.Tensor:
    pictures, where = torch.from_numpy(frames).to(DEVICE), torch.tensor(boxes, dtype=torch.float64, device=DEVICE).reshape(-1, 4)
    return crop_resize_normalize(pictures, where, torch.tensor(frame, dtype=torch.int64, device=DEVICE), size_px=size_px, **options).cpu()  # type: ignore[arg-type]


def of_pil(picture: NDArray[np.uint8], box: Box, size_px: int) -> NDArray[np.uint8]:
    resized = Image.fromarray(picture).resize((size_px, size_px), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).transpose(2, 0, 1)


@pytest.mark.parametrize(("size_px", "tiling"), [(16, CropTiling()), (50, CropTiling()), (24, COARSE)], ids=["small", "large", "in many tiles"])
def test_equals_pil_within_one_level_and_nearly_everywhere_exactly(size_px: int, tiling: CropTiling) -> None:
    """PIL's weights have 22 bits, so a sum that is nearly a half rounds to either side: often where a ratio is simple, as the whole frame's."""
    frames, boxes = noise(), list(BOXES.values())
    frame = [index % 2 for index in range(len(boxes))]
    found = cut(frames, boxes, frame, size_px=size_px, dtype=torch.float32, tiling=tiling).numpy() * 255
    for name, box, number, crop in zip(BOXES, boxes, frame, found, strict=True):
        difference = np.abs(crop - of_pil(frames[number], box, size_px))
        assert difference.max() <= 1.001, name
        assert (difference > 0.01).mean() <= MISROUNDED, name


class Whole:
    """A picture that is RGB already, as much of it as `crop_face` asks for."""

    aspect = 1.0

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self.height, self.width, _ = pixels.shape

    def rgb_region(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        return self.pixels[y0:y1, x0:x1]

    def grey(self, max_side_px: int) -> NDArray[np.uint8]:
        raise NotImplementedError


def test_equals_the_crops_of_a_scan() -> None:
    """The same faces through `crop_face`, which a scan on a CPU uses, at coordinates of which float32 keeps few digits after the point."""
    frames, spec = np.random.default_rng(1).integers(0, 256, (1, HEIGHT, 4000, 3), dtype=np.uint8), CropSpec(size_px=32)
    faces: list[Box] = [(3020.123456, 10.37, 3060.654321, 50.71), (3900.1, 70.0, 3929.77, 89.0)]
    squares = [crop_square(box, width=4000, height=HEIGHT, aspect=1.0, enlargement=spec.enlargement) for box in faces]
    found = cut(frames, squares, [0, 0], size_px=32, dtype=torch.float32).numpy() * 255
    for box, crop in zip(faces, found, strict=True):
        expected = crop_face(Whole(frames[0]), box, spec)
        difference = np.abs(crop - expected.transpose(2, 0, 1))
        assert difference.max() <= 1.001
        assert (difference > 0.01).mean() <= 0.001


def test_equals_its_plain_version() -> None:
    frames = torch.from_numpy(noise())
    boxes, frame = torch.tensor(list(BOXES.values())), torch.tensor([1, 0, 1, 0, 1])
    found = cut(noise(), list(BOXES.values()), frame.tolist(), size_px=24, dtype=torch.float32).double()
    difference = (found - crop_resize_normalize_reference(frames, boxes, frame, size_px=24)).abs() * 255
    assert difference.max() <= 1.001
    assert (difference > 0.01).double().mean() <= MISROUNDED


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_values_are_normalised_by_colour_in_the_type_that_is_asked_for(dtype: torch.dtype) -> None:
    normalisation = Normalisation((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    found = cut(noise(1), [BOXES["flat"]], [0], size_px=16, dtype=dtype, normalisation=normalisation)
    plain = cut(noise(1), [BOXES["flat"]], [0], size_px=16, dtype=torch.float32).double()
    mean, deviation = (torch.tensor(each, dtype=torch.float64)[None, :, None, None] for each in normalisation)
    assert found.dtype == dtype
    torch.testing.assert_close(found, ((plain - mean) / deviation).to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_a_box_far_out_in_a_large_frame_loses_no_precision() -> None:
    """Near column 8000 float32 holds a position to 1/2000 pixel; a weight taken from it would be off by as much. PIL gets what is around the box."""
    frames = np.random.default_rng(1).integers(0, 256, (1, 20, 8000, 3), dtype=np.uint8)
    box = (7950.1234567, 1.1, 7991.4321765, 18.771)
    found = cut(frames, [box], [0], size_px=32, dtype=torch.float32).numpy()[0] * 255
    difference = np.abs(found - of_pil(frames[0, :, 7936:], (box[0] - 7936, box[1], box[2] - 7936, box[3]), 32))
    assert difference.max() <= 1.001
    assert (difference > 0.01).mean() <= 0.001


def test_no_boxes_are_no_crops_and_what_lies_outside_is_the_border() -> None:
    assert cut(noise(), [], [], size_px=16).shape == (0, 3, 16, 16)
    outside = cut(noise(1), [(200.0, 100.0, 260.0, 150.0)], [0], size_px=16, dtype=torch.float32)
    assert torch.isfinite(outside).all()
    assert 0.0 <= outside.min() <= outside.max() <= 1.0


@pytest.mark.parametrize(
    ("frames", "boxes", "frame", "dtype", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 4), torch.zeros(1).long(), torch.float16, r"Invalid frames: .*\(1, 3, 8, 8\)"),
        (torch.zeros(1, 8, 8, 3), torch.zeros(1, 4), torch.zeros(1).long(), torch.float16, "Invalid frames: torch.float32"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(2, 4), torch.zeros(1).long(), torch.float16, r"Invalid boxes \(2, 4\)"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 4).long(), torch.zeros(1).long(), torch.float16, "Invalid boxes .*int64"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 4), torch.zeros(1), torch.float16, "frame numbers .*float32"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 4), torch.zeros(1).long(), torch.uint8, "Invalid dtype torch.uint8"),
        (torch.zeros(0, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 4), torch.zeros(1).long(), torch.float16, "1 boxes, but no frames"),
    ],
)
def test_what_does_not_fit_is_refused(frames: torch.Tensor, boxes: torch.Tensor, frame: torch.Tensor, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crop_resize_normalize(frames, boxes, frame, size_px=16, dtype=dtype)
