"""Engines: recipes, lowering of the bundle's graphs for TensorRT, builds, and their identity."""
