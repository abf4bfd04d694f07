"""fp8 and int8 for TensorRT: explicit QuantizeLinear and DequantizeLinear in front of products of the fp16 graph, by ONNX Runtime's quantiser.

For a product x W, with x (rows, K) and W (K, N), symmetric in both (Jacob et al., Quantization and Training of Neural Networks, CVPR 2018; for E4M3
Micikevicius et al., FP8 Formats for Deep Learning, 2022):

    s   = max |x| / top               measured at export (`ranges.py`): static, so that no row depends on its batch mates
    c_n = max_k |W_kn| / max |W|      of each output channel, 1/16 at least
    t   = max |W| / top
    x W ~ c_n (s t sum_k q(x_rk / s) q(W_kn / c_n t))

top is 127 and q rounds and clips for int8; top is 448 and q is the nearest E4M3 number, the largest for what lies beyond, for fp8. Weights are stored
in 8 bits. Scales are fp16, as DequantizeLinear gives what its scale is, and none is smaller than fp16's normal numbers.

So each output channel has a step of its own, c_n t, but by a Mul behind the product and not by a DequantizeLinear with an axis. Of one with an axis,
TensorRT-RTX 1.7 makes a product that writes its sum of 8-bit products as it is, in fp16, and a kernel behind it that multiplies by all of s t_n (the
plan holds these numbers): sums beyond 65,504, which some hundred terms can reach, would be infinite. One scale for the matrix goes into the product's
own factor, in float32, and c_n into the kernel behind it, which is there anyway.

Quantised are the two products of every MLP, two thirds of all. Largest difference of a probability from torch in float32, of the demo's weights,
scales fixed on 51 windows of 16 synthetic clips (seed 4100), over the 40 other clips (184 windows) that `dissonance validate` draws; fp16: 0.0019.
The first row: `dissonance export demo --precision fp8 --precision int8-qdq -o b && dissonance validate b`; the others: with this file changed.

| | fp8 | int8-qdq |
| --- | --- | --- |
| the MLPs' products | 0.019 | 0.0096 |
| the same by scales along an axis | 0.020 | 0.014 |
| by scales along an axis, and attention's projections too | 0.085 | 0.023 |

So attention stays in 16 bits, where TensorRT makes each one kernel. The AUC (1.0) and all 40 verdicts stay what they are in every row. It was ONNX
Runtime that computed, on a CPU: it rounds as the graph says, and sums in float32.

NVIDIA's nvidia-modelopt writes such graphs too. Its extra `onnx` (0.47) asks for onnx 1.21 and for onnxruntime-gpu, which shares onnxruntime's module
name, and brings cupy; ONNX Runtime's quantiser is here anyway. Scales are given to it: its own rule for fp8, the standard deviation over that of all
E4M3 numbers, clips what lies beyond 4.5 deviations.
"""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

from dissonance.bundle import StaticPrecision
from dissonance.export.onnx import strip_provenance
from dissonance.export.quantise import weight_products

TYPES = {"fp8": QuantType.QFLOAT8E4M3FN, "int8-qdq": QuantType.QInt8}
TOPS = {"fp8": 448.0, "int8-qdq": 127.0}
SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)
SMALLEST_FACTOR = 1 / 16  # so that what leaves a product is within fp16 as long as it is below 4,094 once multiplied


def with_qdq(fp16: bytes, precision: StaticPrecision, largest: dict[str, float]) -> bytes:
    """The file of an encoder in fp8 or int8-qdq, from its fp16 file and the `largest` absolute value of what each product reads."""
    model = onnx.load_from_string(fp16)
    kind, top = TYPES[precision], TOPS[precision]
    zero = np.zeros((), helper.tensor_dtype_to_np_dtype(kind.tensor_type))
    scales: dict[str, list[dict[str, object]]] = {}
    ranges: dict[str, tuple[np.float32, np.float32]] = {}
    products = list(weight_products(model))
    for node in products:
        values, weight = node.input
        ranges[values] = (np.float32(-largest[values]), np.float32(largest[values]))
        for name, size in ((values, largest[values]), (weight, _level_columns(model, node))):
            scales[name] = [{"quant_type": kind, "scale": np.array(max(size / top, SMALLEST_SCALE), np.float16), "zero_point": zero}]
    quantiser = QDQQuantizer(
        model,
        per_channel=False,
        reduce_range=False,
        weight_qType=kind,
        activation_qType=kind,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=[node.name for node in products],
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options={"TensorQuantOverrides": scales, "OpTypesToExcludeOutputQuantization": ["MatMul"], "QuantizeBias": False},
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    made = quantiser.model.model
    strip_provenance(made)
    onnx.checker.check_model(made, full_check=True)
    data: bytes = made.SerializeToString(deterministic=True)
    return data


def _level_columns(model: ModelProto, node: NodeProto) -> float:
    """Divide each column of a product's matrix by c_n, and multiply what it gives by it; the largest absolute value of the matrix, then as before."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    matrix = numpy_helper.to_array(tensor).astype(np.float32)
    columns = np.abs(matrix).max(axis=0)
    factors = np.maximum(columns / max(columns.max(), SMALLEST_SCALE), SMALLEST_FACTOR).astype(np.float16)
    tensor.CopyFrom(numpy_helper.from_array((matrix / factors.astype(np.float32)).astype(np.float16), tensor.name))
    (out,) = node.output
    level, of_columns = f"{out}.level", f"{out}.columns"
    node.output[0] = level
    model.graph.initializer.append(numpy_helper.from_array(factors, of_columns))
    model.graph.node.append(helper.make_node("Mul", [level, of_columns], [out], name=f"{node.name}.columns"))
    return float(columns.max())
