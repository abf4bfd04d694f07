"""What only a GPU can prove of the TensorRT runtime: plans that are built here, loaded, captured and run. No GPU has run these yet."""

from collections.abc import Iterator

import numpy as np
import pytest

from dissonance.bundle import Bundle, open_bundle, write_bundle
from dissonance.config import BuildConfig, ProfileConfig
from dissonance.engine.runtime import open_runtime
from dissonance.engine.runtime.base import Runtime
from dissonance.engine.runtime.tensorrt_library import TITLES, Flavour, probe_library
from dissonance.errors import EnvironmentMissingError
from dissonance.export.tensorrt import build_plans
from dissonance.machine import find_gpus
from tests.engine.runtime.test_torch_runtime import everything

DEMO = open_bundle("demo")
SIZE = DEMO.spec.model.visual.image_size
PROFILE = ProfileConfig(min=1, opt=8, max=16)


def _gpus() -> int:
    try:
        return len(find_gpus())
    except (FileNotFoundError, RuntimeError):
        return 0


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not _gpus(), reason="needs an NVIDIA GPU; the driver finds none here")]


@pytest.fixture(scope="module", params=TITLES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """The demo bundle with plans in float32, built here by one flavour."""
    flavour: Flavour = request.param
    try:
        probe_library(flavour)
    except EnvironmentMissingError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp(flavour)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        copy = write_bundle(folder / "b", DEMO.spec, {name: DEMO.read(name) for name in DEMO.spec.sha256})
        yield build_plans(copy.path, flavour=flavour, precisions=["float32"], config=BuildConfig(frames=PROFILE, windows=PROFILE))[0]


@pytest.fixture(scope="module")
def runtime(built: Bundle) -> Runtime:
    return open_runtime(built, name="tensorrt", precision="float32")


def test_graphs_say_what_the_cpu_says(runtime: Runtime) -> None:
    """Twice: the second time the graphs are there already."""
    expected = everything(open_runtime(DEMO, threads=1))
    for _ in range(2):
        for name, values in everything(runtime).items():
            assert values.dtype == expected[name].dtype, name
            np.testing.assert_allclose(values, expected[name], atol=1e-3, err_msg=name)


def test_a_smaller_batch_says_the_same_and_a_larger_one_is_run_in_parts(runtime: Runtime) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)
    whole = runtime.encode_frames(crops, np.arange(40))
    np.testing.assert_array_equal(runtime.encode_frames(crops[:13], np.arange(13)), whole[:13])
    np.testing.assert_allclose(whole, open_runtime(DEMO, threads=1).encode_frames(crops, np.arange(40)), atol=1e-3)
