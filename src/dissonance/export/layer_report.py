"""What TensorRT made of a graph: its layers with their types, and how many attentions became one kernel each.

Read from the engine inspector's JSON where there is a GPU to load the plan on, and otherwise from the listing that a builder with
`ProfilingVerbosity.DETAILED` writes to its verbose log. An attention that is one kernel is one whose name has `mha` in it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

_LISTED = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[.*?\], Constants: \[.*?\], Outputs: \[(?P<outputs>.*?)\], TacticName", re.DOTALL
)
_TYPES = {
    "float": "float32", "fp32": "float32", "half": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16",
    "int8": "int8", "int32": "int32", "int64": "int64", "bool": "bool", "uint8": "uint8", "fp8": "fp8",
}  # fmt: skip
_IN_WORDS = re.compile(r"\b(float|half|bfloat16|bf16|fp32|fp16|fp8|int8|int32|int64|bool|uint8)\b")


class Layer(NamedTuple):
    """One layer of a plan. types: of its outputs; empty where it has none (shape computations)."""

    name: str
    kind: str
    types: tuple[str, ...]


class LayerReport(NamedTuple):
    """Layers of a plan in the order in which they run."""

    layers: tuple[Layer, ...]

    @property
    def attentions_fused(self) -> int:
        """Attentions that are one kernel."""
        return sum("mha" in layer.name for layer in self.layers)

    @property
    def types(self) -> dict[str, int]:
        """How many layers give each type first."""
        return dict(sorted(Counter(layer.types[0] for layer in self.layers if layer.types).items()))


def from_log(lines: Iterable[str]) -> LayerReport:
    """The layers that a verbose build listed."""
    found = []
    for text in lines:
        for line in text.splitlines():
            if match := _LISTED.match(line):
                types = tuple(_type(datatype) for datatype in re.findall(r"Datatype: (\w+)", match["outputs"]))
                found.append(Layer(match["name"], match["kind"], types))
    return LayerReport(tuple(found))


def from_inspector(text: str) -> LayerReport:
    """The layers in the engine inspector's JSON. Layers that are only named (a plan built without detail) have no types."""
    found = []
    for item in json.loads(text).get("Layers", []):
        if isinstance(item, str):
            found.append(Layer(item, "", ()))
            continue
        types = tuple(_type(str(output.get("Datatype") or output.get("Format/Datatype", ""))) for output in item.get("Outputs", []))
        found.append(Layer(str(item.get("Name", "")), str(item.get("LayerType", "")), types))
    return LayerReport(tuple(found))


def as_document(report: LayerReport) -> list[dict[str, Any]]:
    """For a file beside the plan."""
    return [{"name": layer.name, "kind": layer.kind, "types": list(layer.types)} for layer in report.layers]


def _type(text: str) -> str:
    """Our name of a type: "Half", "Row major linear FP16 format"."""
    match = _IN_WORDS.search(text.lower())
    return _TYPES[match[1]] if match else text
