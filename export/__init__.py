"""Export: every piece of the reference becomes a checked ONNX file, the files a bundle."""
