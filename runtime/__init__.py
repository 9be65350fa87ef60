"""The torch-free runtime: numpy, a backend, and tokenizers.

`mimo_edge.runtime.tasks.MimoAudio` is the way in for programs.
"""
