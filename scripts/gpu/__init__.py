"""One short, prepared run on a machine with a GPU: bare, without network, and only for minutes.

`python -m mimo_edge.scripts.gpu kit` makes everything that such a machine lacks, with network and
without a GPU; `join.py` puts it together there; `python -m mimo_edge.scripts.gpu run` measures, and
returns a table, JSON lines and a log. docs/gpu.md has the commands.

**What is there**: Linux on x86-64, an NVIDIA driver, Python, PyTorch for CUDA 13 with its CUDA and
cuDNN libraries, numpy. **What comes along**: onnxruntime-gpu 1.31 and what it, the runtime and the
tests import, unpacked (`wheels`); the bundles of the first golden model and of nano; the graphs of
the real size without weights, in fp16 and as a recipe stores them (`hollow`): 7 MB each. Their
weights are random and made there (`fill`): 20 GB in fp16 and 5.7 GB as int4-edge, with a thread for
each core. Nothing is traced or quantised there, so neither onnx nor a certain torch is needed.

**Size**, of a kit that was packed for Python 3.12: 233 MiB in four parts of at most 60, 502 MB
unpacked. Of that onnxruntime-gpu 1.31.1 is a wheel of 244 MiB, 284 MB of it one library with code
for six kinds of GPU; `--architecture 90` (H100, H200) leaves 142 MB of it out, code that packs no
further: about 100 MiB then, two parts. That a driver takes the library so cut is untried: where
transfers allow it, send the whole. Packing takes one core 8 minutes and 1.7 GB of memory, joining
8 s. `kit` prints each part's size.

**Time**: at most 8 minutes in all, in order of value (`steps.SECONDS`; a step that is done early
leaves its time to the rest):

    placement        40 s   every operator's provider, by ONNX Runtime's own account
    goldens          60 s   the tests of tests/gpu: float32 without TF32, moved rows, CUDA graphs
    score            90 s   nano hears, speaks and answers as well as by its own score
    fill-fp16        70 s   20 GB of weights
    measure-fp16    110 s   by piece and rows, prefill, codec, first sound, memory, CUDA graphs
    fill-int4-edge   25 s
    measure-int4-edge 75 s
    baseline         50 s   the PyTorch reference in bfloat16, eager, and its CUDA graph

In the order of the data: `wheels`, `slim`, `hollow` -> `kit` -> `join` -> `fill` -> `steps`
(`placement`, `device`, `measure`, `baseline`), which `runner` starts and `records` writes down.
"""
