"""fp8 and int8 for TensorRT: explicit QuantizeLinear and DequantizeLinear in front of products of the fp16 graph, by ONNX Runtime's quantiser.

For a product x W, with x (rows, K) and W (K, N), symmetric in both (Jacob et al., Quantization and Training of Neural Networks, CVPR 2018; for E4M3
Micikevicius et al., FP8 Formats for Deep Learning, 2022):

    s   = max |x| / top               one for the tensor, measured at export (`ranges.py`): static, so that no row depends on its batch mates
    t_n = max_k |W_kn| / top          one for each output channel
    x W ~ s t_n sum_k q(x_rk / s) q(W_kn / t_n)

top is 127 and q rounds and clips for int8; top is 448 and q is the nearest E4M3 number, the largest for what lies beyond, for fp8. Weights are stored
in 8 bits. Scales are fp16, as all that TensorRT is to multiply in 16 bits must be, and none is smaller than fp16's normal numbers.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

from dissonance.bundle import StaticPrecision
from dissonance.export.onnx import strip_provenance
from dissonance.export.quantise import weight_products

TYPES = {"fp8": QuantType.QFLOAT8E4M3FN, "int8-qdq": QuantType.QInt8}
TOPS = {"fp8": 448.0, "int8-qdq": 127.0}
SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)


def with_qdq(fp16: bytes, precision: StaticPrecision, largest: dict[str, float]) -> bytes:
    """The file of an encoder in fp8 or int8-qdq, from its fp16 file and the `largest` absolute value of what each product reads."""
    model = onnx.load_from_string(fp16)
    products = list(weight_products(model))
    matrices = {tensor.name: tensor for tensor in model.graph.initializer}
    kind, top = TYPES[precision], TOPS[precision]
    zero = np.zeros((), helper.tensor_dtype_to_np_dtype(kind.tensor_type))
    scales: dict[str, list[dict[str, object]]] = {}
    for node in products:
        values, weight = node.input
        columns = np.abs(numpy_helper.to_array(matrices[weight]).astype(np.float32)).max(axis=0)
        scales[values] = [{"quant_type": kind, "scale": _scale(largest[values] / top), "zero_point": zero}]
        scales[weight] = [{"quant_type": kind, "axis": 1, "scale": _scale(column / top), "zero_point": zero} for column in columns]
    ranges = {node.input[0]: (np.float32(-largest[node.input[0]]), np.float32(largest[node.input[0]])) for node in products}
    quantiser = QDQQuantizer(
        model,
        per_channel=True,
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


def _scale(value: float) -> NDArray[np.float16]:
    return np.array(max(value, SMALLEST_SCALE), np.float16)
