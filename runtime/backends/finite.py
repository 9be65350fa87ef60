"""Every hand-over between pieces is checked: what is NaN or infinite never becomes an answer.

The text scores are checked where ids are chosen; a state that is not finite shows in them. The
graphs that give codes give -1 in place of a code that was chosen among scores that are not finite.
"""

from typing import Any

import numpy as np
from mimo_edge.runtime.bundle.errors import BundleError
from numpy.typing import NDArray

OVERFLOW = (
    "a component overflowed, or its weights are damaged. Export with a wider --dtype (bf16 or "
    "fp32), or check the checkpoint."
)


def check_finite(array: NDArray[Any], piece: str) -> NDArray[Any]:
    """What a piece gave, unless it is NaN or infinite: then BundleError names the piece.

    Codes are whole numbers: -1 says that what they were chosen from was not finite.
    """
    sound = array >= 0 if array.dtype.kind == "i" else np.isfinite(array)
    if not sound.all():
        raise BundleError(f"piece {piece} computed NaN or infinity: {OVERFLOW}")
    return array
