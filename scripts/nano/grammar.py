"""The sentences of nano: a toy English of about two hundred words.

Whether a sentence is for training or held out is a hash of its words, so no choice of seed or count
ever moves a sentence from one side to the other.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

HELD_OUT_SHARE = 10  # one sentence in so many is never trained on


def _list(words: str) -> list[str]:
    return words.split()


_SMALL = _list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = _list("twenty thirty forty fifty sixty seventy eighty ninety")
_ORDINALS = _list(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
_DAYS = _list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_MONTHS = _list(
    "January February March April May June July August September October November December"
)
_COLOURS = _list("red green blue yellow black white brown orange")
_OBJECTS = _list("ball cup box book hat key bag chair")
_PLACES = (
    "on the table",
    "under the bed",
    "in the garden",
    "behind the door",
    "near the window",
)
_ROOMS = _list("kitchen bedroom bathroom garage office hall")
_DEVICES = _list("light heater fan radio camera lamp")
_OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("old", "new"),
    ("open", "closed"),
    ("day", "night"),
    ("left", "right"),
    ("happy", "sad"),
    ("dark", "bright"),
    ("full", "empty"),
)
_FACTS = (
    ("What colour is the sky", "The sky is blue"),
    ("What colour is snow", "Snow is white"),
    ("What colour is grass", "Grass is green"),
    ("What colour is the sun", "The sun is yellow"),
    ("How many legs does a dog have", "A dog has four legs"),
    ("How many legs does a spider have", "A spider has eight legs"),
    ("How many legs does a bird have", "A bird has two legs"),
    ("How many days are in a week", "A week has seven days"),
    ("How many months are in a year", "A year has twelve months"),
    ("How many hours are in a day", "A day has twenty four hours"),
    ("How many minutes are in an hour", "An hour has sixty minutes"),
    ("Who are you", "I am a very small talking model"),
)
_POLITE = ("", "please tell me", "tell me", "do you know", "can you say", "quick question")


@dataclass(frozen=True)
class Sentence:
    """What can be said, and what is answered to it; statements have no answer."""

    kind: str
    text: str
    answer: str | None = None

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(self.text.lower().encode("utf-8")).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0


def number_words(number: int) -> str:
    """0 .. 999 in words, as "three hundred and five"."""
    hundreds, rest = divmod(number, 100)
    if hundreds:
        head = f"{_SMALL[hundreds]} hundred"
        return f"{head} and {number_words(rest)}" if rest else head
    if rest < len(_SMALL):
        return _SMALL[rest]
    tens, ones = divmod(rest, 10)
    return f"{_TENS[tens - 2]} {_SMALL[ones]}" if ones else _TENS[tens - 2]


def sentences(kind: str) -> list[Sentence]:
    """All sentences of a kind, in an order that is always the same."""
    return [
        Sentence(kind, _write(text), None if answer is None else _write(answer))
        for text, answer in _KINDS[kind]()
    ]


def by_text() -> dict[str, Sentence]:
    """Every sentence by what is said."""
    return {s.text: s for kind in kinds() for s in sentences(kind)}


def kinds() -> tuple[str, ...]:
    """The names of the kinds, and so of the reports."""
    return tuple(_KINDS)


def choose(count: int, seed: int, *, held_out: bool) -> list[Sentence]:
    """`count` different sentences of one side, the kinds as evenly as their sizes let them be.

    Raises ValueError if there are not so many.
    """
    rng = random.Random(f"{seed} {held_out}")
    piles = []
    for kind in kinds():
        pile = [s for s in sentences(kind) if s.held_out == held_out]
        rng.shuffle(pile)
        piles.append(pile)
    chosen: list[Sentence] = []
    while len(chosen) < count:
        left = [pile for pile in piles if pile]
        if not left:
            raise ValueError(f"there are only {len(chosen)} sentences, not {count}")
        chosen += [pile.pop() for pile in left][: count - len(chosen)]
    rng.shuffle(chosen)
    return chosen


def loose_words(count: int, seed: int) -> list[str]:
    """`count` different rows of words that mean nothing together, to train on.

    Who knows only sentences guesses the sentence from its first words; these have to be heard, and
    read, word by word.
    """
    texts = (s.text for kind in kinds() for s in sentences(kind))
    known = sorted({word.strip(".?") for text in texts for word in text.split()[1:]})
    rng, made = random.Random(f"{seed} loose"), dict[str, None]()
    while len(made) < count:
        made[_write(" ".join(rng.choices(known, k=rng.randint(2, 8))))] = None
    return list(made)


Pair = tuple[str, str | None]


def _write(text: str) -> str:
    """With a capital and a full stop, unless there is a question mark."""
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def _numbers() -> Iterator[Pair]:
    for number in range(1000):
        yield f"the number is {number_words(number)}", None
    for number in range(0, 1000, 3):
        yield f"{number_words(number)} people", None
    for digits in product((1, 4, 7, 9), (0, 2, 5, 8), (3, 6, 1), (2, 7, 4)):
        yield f"the code is {' '.join(_SMALL[d] for d in digits)}", None


def _dates() -> Iterator[Pair]:
    for index, (day, ordinal, month) in enumerate(product(_DAYS, _ORDINALS, _MONTHS)):
        if index % 3 == 0:
            yield f"today is {day} the {ordinal} of {month}", None
    for ordinal, month in product(_ORDINALS, _MONTHS):
        yield f"my birthday is the {ordinal} of {month}", None
    for day, month in product(_DAYS, _MONTHS):
        yield f"we meet on a {day} in {month}", None


def _times() -> Iterator[Pair]:
    parts = ("in the morning", "in the evening", "at night")
    minutes = ("five", "ten", "twenty", "quarter", "half")
    for minute, hour, part in product(minutes, _SMALL[1:13], parts):
        yield f"it is {minute} past {hour} {part}", None
    for minute, hour in product(minutes[:4], _SMALL[1:13]):
        yield f"it is {minute} to {hour}", None
        yield f"the train leaves at {minute} to {hour}", None
    for hour, day in product(_SMALL[1:13], _DAYS):
        yield f"wake me at {hour} on {day}", None


def _things() -> Iterator[Pair]:
    for colour, thing, place in product(_COLOURS, _OBJECTS, _PLACES):
        yield f"the {colour} {thing} is {place}", None
    for number, colour, thing in product(_SMALL[2:13], _COLOURS, ("ball", "cup", "book", "key")):
        yield f"I have {number} {colour} {thing}s", None


def _commands() -> Iterator[Pair]:
    for state, room, device in product(("on", "off"), _ROOMS, _DEVICES):
        done = f"the {room} {device} is {state}"
        yield f"turn {state} the {room} {device}", done
        yield f"please turn the {room} {device} {state}", done
        yield f"switch {state} the {device} in the {room}", done
    for room, number in product(_ROOMS, range(15, 31)):
        warm = number_words(number)
        yield f"set the {room} to {warm} degrees", f"the {room} is set to {warm} degrees"
    for number, unit in product(range(2, 61), ("minutes", "seconds")):
        span = f"{number_words(number)} {unit}"
        yield f"set a timer for {span}", f"the timer is set for {span}"
    for action, room, thing in product(("open", "close"), _ROOMS, ("door", "window")):
        done = f"the {room} {thing} is {'open' if action == 'open' else 'closed'}"
        yield f"{action} the {room} {thing}", done
        yield f"please {action} the {thing} in the {room}", done


def _sums() -> Iterator[Pair]:
    for polite, a, b in product(_POLITE, range(1, 10), range(1, 10)):
        total = f"{_SMALL[a]} plus {_SMALL[b]} is {number_words(a + b)}"
        yield f"{polite} what is {_SMALL[a]} plus {_SMALL[b]}?".strip(), total


def _sequences() -> Iterator[Pair]:
    for polite, (name, row) in product(_POLITE, (("day", _DAYS), ("month", _MONTHS))):
        for index, item in enumerate(row):
            after, before = row[(index + 1) % len(row)], row[index - 1]
            for side, answer in (("after", after), ("before", before)):
                ask = f"{polite} which {name} comes {side} {item}?".strip()
                yield ask, f"{answer} comes {side} {item}"


def _facts() -> Iterator[Pair]:
    for polite, (question, answer) in product(_POLITE, _FACTS):
        yield f"{polite} {question[0].lower()}{question[1:]}?".strip(), answer
    for polite, pair in product(_POLITE, _OPPOSITES):
        for a, b in (pair, pair[::-1]):
            yield f"{polite} what is the opposite of {a}?".strip(), f"the opposite of {a} is {b}"


def _memory() -> Iterator[Pair]:
    for colour, thing in product(_COLOURS, _OBJECTS):
        answer = f"the {thing} is {colour}"
        yield f"my {thing} is {colour}. What colour is the {thing}?", answer
    for thing, place in product(_OBJECTS, _PLACES):
        yield f"the {thing} is {place}. Where is it?", f"it is {place}"
    for number, thing in product(_SMALL[2:13], ("ball", "cup", "book", "key")):
        answer = f"you have {number} {thing}s"
        yield f"I have {number} {thing}s. How many {thing}s do I have?", answer


_KINDS = {
    "numbers": _numbers,
    "dates": _dates,
    "times": _times,
    "things": _things,
    "commands": _commands,
    "sums": _sums,
    "sequences": _sequences,
    "facts": _facts,
    "memory": _memory,
}
