"""ONNX Runtime, without its reports to Microsoft: `from onnx_runtime import onnxruntime`.

From 1.29 on the official builds for Linux and macOS tell their maker of every process, session and model, and keep an
identifier of the machine in the home folder, unless a variable is set before the library is loaded. What models and
whose faces a program looks at is nobody else's business. The import of this module has that one effect.

Source: ONNX Runtime's docs/Privacy.md.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime
import onnxruntime.quantization as quantization

__all__ = ["onnxruntime", "quantization"]
