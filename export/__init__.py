"""Export: every piece of the reference becomes a checked ONNX file, and the files become a bundle."""
