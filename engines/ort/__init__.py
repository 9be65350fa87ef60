"""Lowering for ONNX Runtime on a CPU: a bundle becomes one that loads fast and reads little."""
