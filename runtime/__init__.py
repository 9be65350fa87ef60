"""The torch-free runtime: numpy, a backend, and tokenizers.

`runtime.tasks.MimoAudio` is the way in for programs.
"""
