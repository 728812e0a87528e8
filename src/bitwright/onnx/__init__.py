"""ONNX graphs of quantized encoders: written with a checkpoint's codes, proven in ONNX Runtime and OpenVINO."""
