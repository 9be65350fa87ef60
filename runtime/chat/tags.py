"""Language tags in an answer: they say in which language it is, and are no part of it."""

from collections.abc import Iterable


def without_tags(text: str, tags: Iterable[str]) -> str:
    """`text` without any of `tags`."""
    for tag in tags:
        text = text.replace(tag, "")
    return text


class TagFilter:
    """`without_tags` for a text that arrives in pieces: what may be the start of a tag waits."""

    def __init__(self, tags: Iterable[str]) -> None:
        self._tags = tuple(tags)
        self._held = ""

    def feed(self, text: str) -> str:
        """The text that is certain now."""
        text = without_tags(self._held + text, self._tags)
        starts = (
            at
            for at in range(len(text))
            if any(tag.startswith(text[at:]) for tag in self._tags if len(tag) > len(text) - at)
        )
        cut = next(starts, len(text))
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What waited, and is no tag after all."""
        rest, self._held = self._held, ""
        return rest
