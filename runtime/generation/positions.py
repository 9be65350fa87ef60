"""What the positions of a slot were made from: a new prompt may begin as they do."""

import numpy as np
from mimo_edge.runtime.backends.base import Ints


class Positions:
    """The patches that a slot holds, in order. Two equal beginnings have equal states.

    In a patch of text the codes do not matter to the model, so they do not matter here.
    """

    def __init__(self, empty_id: int) -> None:
        self._empty_id = empty_id
        self._held: Ints | None = None  # [capacity, 1 + K * G], grown by doubling
        self.length = 0

    def append(self, text_ids: Ints, codes: Ints) -> None:
        """Add patches: text_ids [P], codes [P, K, G]."""
        keys = self._keys(text_ids, codes)
        end = self.length + len(keys)
        if self._held is None or end > len(self._held):
            grown = np.zeros((max(64, 2 * end), keys.shape[1]), np.int64)
            if self._held is not None:
                grown[: self.length] = self._held[: self.length]
            self._held = grown
        self._held[self.length : end] = keys
        self.length = end

    def truncate(self, length: int) -> None:
        """Keep the first `length` patches at most."""
        self.length = min(length, self.length)

    def copy(self, other: "Positions", length: int) -> None:
        """Hold the first `length` patches of another."""
        assert other._held is not None or length == 0
        self._held = None if other._held is None else other._held[:length].copy()
        self.length = length

    def common(self, text_ids: Ints, codes: Ints) -> int:
        """How many patches a prompt has in common with these, from the first on."""
        count = min(self.length, len(text_ids))
        if self._held is None or count == 0:
            return 0
        keys = self._keys(text_ids[:count], codes[:count])
        differ = (keys != self._held[:count]).any(axis=1)
        return int(differ.argmax()) if differ.any() else count

    def _keys(self, text_ids: Ints, codes: Ints) -> Ints:
        speech = (text_ids == self._empty_id)[:, None]
        return np.concatenate((text_ids[:, None], codes.reshape(len(codes), -1) * speech), axis=1)
