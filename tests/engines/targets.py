"""What the tests of real builds build for, on a machine that has no GPU."""

from pathlib import Path

from mimo_edge.engines.profiles import Limits
from mimo_edge.engines.target import Target

TARGET = Target("trt-rtx", ("8.6", "8.9", "12.0"))
ONE = Target("trt-rtx", ("8.9",))
LIMITS = Limits(max_seq=256, max_batch=2)
ROOT = Path(__file__).parents[2]  # where `python -m` and a child process find the packages
