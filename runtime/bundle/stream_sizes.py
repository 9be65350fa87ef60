"""Sizes of the stateful decode that the graphs are made with and the runtime keeps to."""

WINDOW_FRAMES = 250  # code frames that a stream remembers, as upstream's left overlap
MOST_FRAMES = 32  # code frames in one call
RING_FRAMES = 288  # more than both together
MOST_TOKENS = 512  # of the vocoder in one call
MOST_WEIGHT = 1500  # frames that the statistics stand for at most: a minute, then half of it
UNLIMITED = 200  # mel frames that a vocoder without a limit remembers and looks ahead
NOWHERE = -(1 << 30)  # the position of nothing

_UP_TO = "slots_up_to_"  # and a number: the axis of a cache that may be shorter than that


def slots_axis(most: int) -> str:
    """What the axis of a cache is called that takes any number of slots up to so many."""
    return f"{_UP_TO}{most}"


def most_slots(axis: int | str) -> int | None:
    """How many slots such an axis takes; None for any other."""
    if isinstance(axis, int) or not axis.startswith(_UP_TO):
        return None
    return int(axis.removeprefix(_UP_TO))
