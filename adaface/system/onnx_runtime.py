"""Import ONNX Runtime without telemetry: `from adaface.system.onnx_runtime import onnxruntime`.

Since version 1.29 the official builds for Linux and macOS report every process, session and model to Microsoft and
store a machine identifier in the home folder, unless an environment variable is set before the library is loaded.
Importing this module sets it.

Source: ONNX Runtime's docs/Privacy.md.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime
import onnxruntime.quantization as quantization

__all__ = ["onnxruntime", "quantization"]
