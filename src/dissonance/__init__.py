"""Dissonance finds videos whose picture and sound do not belong together."""

import os

# ONNX Runtime 1.29 and later send usage data to their maker and keep an identifier in the home folder, unless this is set before they are loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
