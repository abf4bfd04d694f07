"""A real server for each file of tests, and windows to send to it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bench._server import LocalServer, demo_repository, environment_is_there

from dissonance.bundle import Bundle, open_bundle
from dissonance.config import ScanConfig, ServeConfig
from dissonance.engine.media.clip import Window
from dissonance.engine.scan.single import read_file
from dissonance.engine.serve.interface import Arrays
from dissonance.synth.config import SynthConfig
from dissonance.synth.dataset import generate


@pytest.fixture(scope="session")
def demo() -> Bundle:
    return open_bundle("demo")


@pytest.fixture(scope="session")
def folder_of_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def clips(folder_of_clips: Path) -> list[Path]:
    """Four talking heads; real and forged."""
    return [folder_of_clips / row.file for row in generate(folder_of_clips, count=4, seed=15, config=SynthConfig(duration_s=2.6))]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, folder_of_clips: Path) -> Path:
    """The demo bundle's: small queues, little to upload, files of one folder allowed."""
    config = ServeConfig(allowed_folders=(folder_of_clips,), max_queue=24, max_upload_mib=8, max_queued_videos=4)
    return demo_repository(tmp_path_factory.mktemp("served"), config)


@pytest.fixture(scope="module")  # not longer: other tests look at which processes there are
def server(repository: Path) -> Iterator[LocalServer]:
    if not environment_is_there():
        pytest.skip("the server's environment is not there: make .venv-serve/.serve")
    with LocalServer(repository) as running:
        yield running


def windows_of(path: Path, bundle: Bundle) -> list[Window]:
    """The whole windows of a file's faces, with sound."""
    messages = (event.message for event in read_file(path, spec=bundle.spec, config=ScanConfig()))
    frames = bundle.spec.model.frames
    return [each for each in messages if isinstance(each, Window) and len(each.new_crops) == frames and each.mel is not None]


def feeds_of(windows: list[Window]) -> Arrays:
    """What `dissonance_windows` is sent."""
    mels = [window.mel for window in windows if window.mel is not None]
    masks = np.stack([np.arange(len(window.new_crops)) < window.frames for window in windows])
    return {"crops": np.stack([window.new_crops for window in windows]), "mel": np.stack(mels), "mask": masks}


@pytest.fixture(scope="session")
def feeds(clips: list[Path], demo: Bundle) -> Arrays:
    """Windows of all clips."""
    return feeds_of([window for clip in clips for window in windows_of(clip, demo)])


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One test process for what uses a server, so that there is one at a time."""
    for item in items:
        if {"server", "own_server"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("server"))
