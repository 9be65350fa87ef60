"""The libraries that ONNX Runtime's CUDA provider needs: CUDA and cuDNN, as Python packages have
them."""

import contextlib
import sys

import onnxruntime as ort


def load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages if they are there, as PyTorch brings them.

    Those that the system's loader finds need nothing. What is missing shows when a session is made;
    what ONNX Runtime says of it here goes to stderr, since stdout is for results.
    """
    with contextlib.redirect_stdout(sys.stderr):
        ort.preload_dlls()
