"""`dissonance`, the video endpoint, as a decoupled model of Triton's Python backend: a video in, events out (see `events.py`).

Only importable inside the server, whose backend brings `triton_python_backend_utils`.
"""

import hashlib
import json
from contextlib import ExitStack
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from dissonance.bundle import open_bundle, parse_precision
from dissonance.config import ServeConfig, parse_config
from dissonance.engine.scan.scoring import WindowScore
from dissonance.engine.scan.verdict import FileVerdict
from dissonance.engine.serve.events import verdict_events, window_event
from dissonance.engine.serve.interface import EVENT, VIDEO_INPUTS
from dissonance.engine.serve.networks import CallError, call, parameters_of, version_folder
from dissonance.engine.serve.runtime import ServedRuntime
from dissonance.engine.serve.video import Stopped, VideoService, allowed_path, as_file
from dissonance.errors import MediaError

SETTINGS = "serve.json"
YUNET = "yunet.onnx"


class Counters:
    """What the endpoint adds to the server's metrics."""

    ENDS = ("scored", "abstained", "failed", "stopped", "error")

    def __init__(self) -> None:
        self._families: list[Any] = []  # which must outlive their metrics
        self._videos = self._metrics("dissonance_videos_total", "Videos by how they ended", [{"end": end} for end in self.ENDS])
        (self.windows,) = self._metrics("dissonance_windows_total", "Windows scored for videos", [{}])
        (self.media_s,) = self._metrics("dissonance_media_seconds_total", "Seconds of video that were judged", [{}])
        (self.spent_s,) = self._metrics("dissonance_video_seconds_total", "Seconds spent on videos that were judged", [{}])

    def _metrics(self, name: str, description: str, labels: list[dict[str, str]]) -> list[Any]:
        self._families.append(pb_utils.MetricFamily(name, description, pb_utils.MetricFamily.COUNTER))
        return [self._families[-1].Metric(labels=each) for each in labels]

    def ended(self, end: str) -> None:
        """One more video ended so."""
        self._videos[self.ENDS.index(end)].increment(1)


class Video:
    """One instance reads one video at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the decode worker. Raises DissonanceError, which keeps the model from becoming ready."""
        parameters, folder = parameters_of(args), version_folder(args)
        self._bundle = open_bundle(folder, sha256=parameters["bundle_id"], only=())
        data = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if data["scan"]["detector"]["kind"] == "yunet":
            data["scan"]["detector"]["yunet_model"] = str((folder / YUNET).resolve())
        self._config = parse_config(ServeConfig, data, origin=str(folder / SETTINGS))
        runtime = ServedRuntime(
            call,
            spec=self._bundle.spec,
            name=f"server-{parameters['runtime']}",
            precision=parse_precision(parameters["precision"]),
            max_batch=int(parameters["max_batch"]),
        )
        self._open = ExitStack()
        self._service = self._open.enter_context(VideoService(self._bundle, runtime, self._config))
        self._counters = Counters()

    def execute(self, requests: list[Any]) -> None:
        """Answer each request by its response sender: a decoupled model returns nothing."""
        for request in requests:
            self._answer(request, request.get_response_sender())

    def finalize(self) -> None:
        """End the decode worker."""
        self._open.close()

    def _answer(self, request: Any, sender: Any) -> None:
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            verdict = self._score(request, sender)
            self._counters.ended(str(verdict.file["status"]))
            row: dict[str, Any] = verdict.file
            self._counters.media_s.increment(row["duration_s"] or 0.0)
            self._counters.spent_s.increment(row["elapsed_s"])
            for event in verdict_events(verdict):
                sender.send(_response(event))
            sender.send(flags=final)
        except MediaError as error:
            self._counters.ended("failed")
            sender.send(_error(str(error), pb_utils.TritonError.INVALID_ARG), flags=final)
        except Stopped as error:
            self._counters.ended("stopped")
            sender.send(_error(str(error), pb_utils.TritonError.CANCELLED), flags=final)
        except CallError as error:
            self._counters.ended("error")
            sender.send(error.response, flags=final)
        except Exception as error:  # whatever it was, the next request must find the model alive
            self._counters.ended("error")
            sender.send(_error(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL), flags=final)

    def _score(self, request: Any, sender: Any) -> FileVerdict:
        def on_score(score: WindowScore) -> None:
            self._counters.windows.increment(1)
            sender.send(_response(window_event(score, self._bundle.spec)))

        given = {name: tensor.as_numpy().reshape(-1)[0] for name in VIDEO_INPUTS if (tensor := pb_utils.get_input_tensor_by_name(request, name))}
        if len(given) != 1:
            raise MediaError("refused", f"give one of the inputs {' and '.join(VIDEO_INPUTS)}, not {len(given)} of them")
        with ExitStack() as upload:
            if "video" in given:
                path = upload.enter_context(as_file(given["video"], self._config))
                uri = f"upload:{hashlib.sha256(given['video']).hexdigest()}"
            else:
                path, uri = allowed_path(given["uri"].decode("utf-8", "backslashreplace"), self._config)
            return self._service.score(path, uri, on_score=on_score, gone=request.is_cancelled)


def _response(event: str) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(EVENT, np.array([event.encode()], np.object_))])


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
