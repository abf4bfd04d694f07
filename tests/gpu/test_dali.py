"""What only a GPU can prove of `--decoder dali`: NVDEC's pictures, on their places, in PyAV's colours. No GPU has run these yet."""

from pathlib import Path

import numpy as np
import pytest

from dissonance.engine.media import segments
from dissonance.engine.media.dali import DaliDecoder, DaliReader, require_decoder
from dissonance.engine.media.probe import probe
from dissonance.engine.media.video import VideoReader
from dissonance.errors import EnvironmentMissingError
from tests.engine.media.clips import numbered_frames, read_number, write_clip
from tests.engine.media.test_dali import soft_frames
from tests.engine.media.test_segments import STREAMS


def _reason() -> str:
    try:
        require_decoder("dali")
    except EnvironmentMissingError as error:
        return str(error)
    return ""


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(_reason()), reason=_reason() or "there is a GPU")]


@pytest.fixture(scope="module")
def decoder() -> DaliDecoder:
    return DaliDecoder("gpu")


@pytest.mark.parametrize("name", STREAMS)
def test_every_picture_is_on_its_place_in_its_colours(tmp_path: Path, decoder: DaliDecoder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_PICTURES", 20)
    codec, container, options = STREAMS[name]
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    for number, frames in enumerate((numbered_frames(100, width=320, height=240), soft_frames(30, width=320, height=240))):
        path = tmp_path / f"{number}.{container}"
        write_clip(path, frames=frames, fps=30, codec=codec, codec_options=options, pixel_format=pixel_format)
        ours, theirs = DaliReader(path, probe(path), decoder), VideoReader(path, probe(path))
        for (k, one), (j, other) in zip(ours, theirs, strict=True):
            assert k == j
            if number == 0:
                assert read_number(one.grey(96)) == read_number(other.grey(96))
            else:
                assert np.abs(one.rgb_region(3, 5, 77, 200).astype(int) - other.rgb_region(3, 5, 77, 200)).max() <= 3
        assert (ours.frames_decoded, ours.frames_dropped) == (theirs.frames_decoded, theirs.frames_dropped)
