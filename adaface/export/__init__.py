"""ONNX export, its INT8 variant, and the comparison with PyTorch."""
