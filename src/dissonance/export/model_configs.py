"""The config.pbtxt of every served model, from the bundle. Uses Triton's own protobuf messages, which tritonclient brings."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from dissonance.bundle import Bundle, Precision
from dissonance.config import ServeConfig
from dissonance.engine.serve.interface import (
    AUDIO,
    EVENT,
    HEAD,
    TRITON_TYPES,
    VIDEO,
    VIDEO_INPUTS,
    VISUAL,
    WINDOWS,
    Interface,
    Tensor,
    interfaces,
)
from dissonance.export.repository import Backend, Batches

_US = 1_000_000


def model_configs(
    bundle: Bundle, config: ServeConfig, *, backend: Backend, precision: Precision, batches: Mapping[str, Batches]
) -> dict[str, triton.ModelConfig]:
    """By model. `batches`: of VISUAL, AUDIO and HEAD."""
    known = interfaces(bundle.spec)
    of = {name: _tensors(name, interface) for name, interface in known.items()}
    common = {"bundle_id": bundle.id, "precision": precision}
    native = {"python": "onnxruntime-cpu", "onnxruntime": "onnxruntime", "tensorrt": "tensorrt"}[backend]
    for name in (VISUAL, AUDIO, HEAD):
        on_python = backend == "python" or (backend == "tensorrt" and name == HEAD)
        runtime = "torch" if on_python and backend == "tensorrt" else native
        threads = {} if backend == "tensorrt" else {"threads": str(config.threads)}
        if not on_python and config.threads and backend == "onnxruntime":
            threads["intra_op_thread_count"] = str(config.threads)
        model = of[name]
        model.backend = "python" if on_python else backend
        model.default_model_filename = "model.py" if on_python else {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}[backend]
        if not on_python and backend == "tensorrt":
            model.platform = "tensorrt_plan"
        model.max_batch_size = batches[name].largest
        model.instance_group.add(kind=_kind(backend), count=config.instances)
        model.dynamic_batching.preferred_batch_size.append(min(batches[name].preferred, batches[name].largest))
        model.dynamic_batching.max_queue_delay_microseconds = config.max_queue_delay_us
        _bound_queue(model, config.max_queue, config.queue_timeout_s)
        _warm_up(model, known[name])
        _tell(model, {**common, **threads, "runtime": runtime})
    calls = {"max_batch": str(min(each.largest for each in batches.values())), "runtime": native}
    windows = of[WINDOWS]
    windows.backend, windows.default_model_filename = "python", "model.py"
    windows.max_batch_size = max(1, batches[VISUAL].largest // bundle.spec.model.frames)  # as many as fill the visual encoder's batch
    windows.instance_group.add(kind=triton.ModelInstanceGroup.KIND_CPU, count=2 * config.instances)  # one's head while the other's crops are encoded
    windows.dynamic_batching.max_queue_delay_microseconds = config.max_queue_delay_us
    _bound_queue(windows, config.max_queue, config.queue_timeout_s)
    _tell(windows, {**common, **calls})
    of[VIDEO] = _video(config, {**common, **calls})
    return of


def as_text(model: triton.ModelConfig) -> str:
    """The text of a config.pbtxt."""
    text: str = text_format.MessageToString(model)
    return text


def _tensors(name: str, interface: Interface) -> triton.ModelConfig:
    model = triton.ModelConfig(name=name)
    model.version_policy.latest.num_versions = 1
    for side, tensors in ((model.input, interface.inputs), (model.output, interface.outputs)):
        for tensor in tensors:
            added = side.add(name=tensor.name, data_type=_data_type(tensor), dims=tensor.shape or (1,))
            if not tensor.shape:  # the backend sees (rows,); Triton itself has no rows without dimensions
                added.reshape.SetInParent()
    return model


def _data_type(tensor: Tensor) -> Any:
    return triton.DataType.Value(f"TYPE_{TRITON_TYPES[tensor.dtype]}")


def _kind(backend: Backend) -> Any:
    return triton.ModelInstanceGroup.KIND_GPU if backend == "tensorrt" else triton.ModelInstanceGroup.KIND_CPU


def _bound_queue(model: triton.ModelConfig, size: int, timeout_s: float) -> None:
    policy = model.dynamic_batching.default_queue_policy
    policy.timeout_action = triton.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = int(timeout_s * _US)
    policy.allow_timeout_override = True
    policy.max_queue_size = size


def _warm_up(model: triton.ModelConfig, interface: Interface) -> None:
    for rows in sorted({1, model.dynamic_batching.preferred_batch_size[0]}):
        warm_up = model.model_warmup.add(name=f"{rows} rows", batch_size=rows)
        for tensor in interface.inputs:
            given = warm_up.inputs[tensor.name]
            given.data_type, given.zero_data = _data_type(tensor), True
            given.dims.extend(tensor.shape or (1,))


def _tell(model: triton.ModelConfig, parameters: Mapping[str, str]) -> None:
    for name, value in parameters.items():
        model.parameters[name].string_value = value


def _video(config: ServeConfig, parameters: Mapping[str, str]) -> triton.ModelConfig:
    model = triton.ModelConfig(name=VIDEO, backend="python", default_model_filename="model.py")
    model.version_policy.latest.num_versions = 1
    for name in VIDEO_INPUTS:
        model.input.add(name=name, data_type=triton.TYPE_STRING, dims=(1,), optional=True)
    model.output.add(name=EVENT, data_type=triton.TYPE_STRING, dims=(1,))
    model.model_transaction_policy.decoupled = True
    model.instance_group.add(kind=triton.ModelInstanceGroup.KIND_CPU, count=config.videos)
    _bound_queue(model, config.max_queued_videos, config.video_timeout_s)
    _tell(model, parameters)
    return model
