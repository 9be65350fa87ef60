"""Text to ids and back: the Qwen2 byte-level BPE of the checkpoint, read from its own files.

Every id comes from those files. Special tokens written out in a text count as special tokens, as
they do upstream, so `"<|im_end|>"` inside a user's text ends the turn; `special=False` makes them
text like any other, for text that comes from somebody who must not speak for the system.
"""

import codecs
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import MALFORMED, BundleError, TextError, unreadable
from mimo_edge.runtime.bundle.files import read_text
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

# Either set is a whole tokenizer; the first one found is used.
_CORE_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_EXTRA_FILES = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")

# Appended in this order where the files lack them: the embedding rows were trained in this order.
SPEECH_TOKENS = (
    "<|sosp|>",
    "<|eosp|>",
    "<|empty|>",
    "<|Human|>",
    "<|SpeechLM|>",
    "<|sostm|>",
    "<|eostm|>",
    "<|eot|>",
)
_DEFAULT_EOS = "<|endoftext|>"

# Qwen2's split, one alternative a line: contractions, words, single digits, punctuation, blanks.
QWEN2_SPLIT = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens that the runtime itself writes or looks for."""

    sosp: int  # start and end of a speech segment that the model hears
    eosp: int
    empty: int  # "this position is a patch of speech"
    sostm: int  # start and end of interleaved text and speech
    eostm: int
    eot: int  # end of the text inside interleaved speech
    im_start: int  # start and end of a turn
    im_end: int
    eos: int

    @property
    def speech_tokens(self) -> frozenset[int]:
        """What stands between words in an answer with speech."""
        return frozenset((self.empty, self.eot, self.sostm, self.eostm))


class TextTokenizer:
    """The text tokenizer of one checkpoint or bundle. Make it with `from_folder`."""

    def __init__(self, tokenizer: Tokenizer, special: SpecialIds) -> None:
        self._tokenizer = tokenizer
        self.special = special

    @classmethod
    def from_folder(cls, folder: Path, named: Collection[str] | None = None) -> "TextTokenizer":
        """Read tokenizer.json, or vocab.json with merges.txt, and the added tokens beside them.

        `named` are the files that may be read, those of a bundle's manifest; None allows all.
        Raises BundleError if the files are missing, unreadable, or contradict each other.
        """
        files = tokenizer_files(folder, named)
        read = {file.name: file for file in files}
        extras = {name: _read_json(read[name]) for name in _EXTRA_FILES if name in read}
        tokenizer = _load_core(read)
        _add_declared(tokenizer, extras, folder)
        missing = [token for token in SPEECH_TOKENS if tokenizer.token_to_id(token) is None]
        tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in missing])
        return cls(tokenizer, _special_ids(tokenizer, extras, folder))

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> "TextTokenizer":
        """A bundle's own, from the files that its manifest names, as they were when it was opened.
        Raises BundleError."""
        tokenizer = cls.from_folder(bundle.folder, bundle.manifest.files)
        bundle.check_unchanged()
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; the model's own vocabulary is padded beyond it."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def find(self, token: str) -> int | None:
        """The id of one token by its content; None if there is none."""
        return _find(self._tokenizer, token)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of `text`, nothing put before or after it. Raises TextError if it is no Unicode.

        Without `special` no id of an added token comes out, whatever the text holds.
        """
        if not isinstance(text, str):
            raise TextError(f"text must be a str, not {type(text).__name__}: decode it first")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TextError(
                f"text holds a lone surrogate {text[error.start]!r} at character {error.start}: "
                "remove it, or decode the text with errors='replace'"
            ) from None
        tokenizer = self._tokenizer if special else self._plain
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_between(self, before: str, text: str, after: str) -> list[int]:
        """Ids of `before + text + after` in one go, with the special tokens of `text` as text.

        Those of the other two count. Text that holds none has the ids that `encode` gives it.
        """
        start = max((before.rfind(t) + len(t) for t in self._added if t in before), default=0)
        stop = min((after.find(t) for t in self._added if t in after), default=len(after))
        between = self.encode(before[start:] + text + after[:stop], special=False)
        return [*self.encode(before[:start]), *between, *self.encode(after[stop:])]

    @cached_property
    def _added(self) -> list[str]:
        """Every token that is found before the text is split into words."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    @cached_property
    def _plain(self) -> Tokenizer:
        """The same without added tokens."""
        raw = json.loads(self._tokenizer.to_str())
        return Tokenizer.from_str(json.dumps(raw | {"added_tokens": []}))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens written out.

        Bytes that are no UTF-8 become U+FFFD; ids beyond the vocabulary have no text.
        """
        text: str = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; they may be part of a character."""
        token = self._tokenizer.id_to_token(int(token_id))
        if token is None:
            return b""
        try:
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        except KeyError:  # an added token is stored as plain text
            return str(token).encode("utf-8")


class IncrementalDecoder:
    """Text of ids that arrive one by one; a character is held back until all its bytes are there.

    The pieces, with that of `finish`, join to exactly `tokenizer.decode(all ids)`.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The text that `token_id` completes; often "", when it ends inside a character."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left of an incomplete character, as U+FFFD; afterwards the decoder is as new."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def tokenizer_files(folder: Path, named: Collection[str] | None = None) -> list[Path]:
    """The files that `from_folder` reads from `folder`: what a bundle must carry of them.

    Of `named` alone, unless it is None.
    Raises BundleError, naming the files looked for, if there is no whole tokenizer.
    """
    folder = Path(folder)

    def there(name: str) -> bool:
        return (named is None or name in named) and (folder / name).is_file()

    for core in _CORE_FILES:
        if all(map(there, core)):
            extras = [name for name in _EXTRA_FILES if there(name)]
            return [folder / name for name in (*core, *extras)]
    wanted = ", or ".join(" with ".join(core) for core in _CORE_FILES)
    raise BundleError(
        f"{folder}: no text tokenizer here; looked for {wanted}. "
        "Copy them from the folder of the original checkpoint."
    )


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's letters: printable Latin-1 is itself, other bytes move up to U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(0x100 + n): byte for n, byte in enumerate(moved)}
    return alphabet | {chr(byte): byte for byte in printable}


_BYTE_OF_CHAR = _byte_alphabet()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        raise BundleError(unreadable(path, error, "Copy it again.")) from error
    except MALFORMED as error:
        raise BundleError(f"{path}: cannot be read as JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path}: holds no JSON object; copy it again")
    return content


def _load_core(read: dict[str, Path]) -> Tokenizer:
    """The tokenizer without what the extra files add."""
    core = [read[name] for names in _CORE_FILES for name in names if name in read]
    try:
        if len(core) == 1:
            tokenizer = Tokenizer.from_str(read_text(core[0]))
        else:
            tokenizer = _byte_level_bpe(vocab=core[0], merges=core[1])
        ids = tokenizer.get_vocab(with_added_tokens=False)
        if len(set(ids.values())) < len(ids):  # the library takes it, and decodes one of them
            raise ValueError("two tokens have the same id")
    except OSError as error:
        raise BundleError(unreadable(error.filename, error, "Copy it again.")) from error
    except Exception as error:  # the library raises bare Exception for whatever is wrong
        names = " and ".join(str(path) for path in core)
        raise BundleError(f"{names}: not a usable tokenizer ({error}); copy again") from error
    # A file saved by a trainer may carry these; a prompt must be neither cut nor filled up.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _byte_level_bpe(vocab: Path, merges: Path) -> Tokenizer:
    pairs: list[tuple[str, str]] = []
    for line in _lines(merges):
        if not line.startswith("#version"):
            left, right = line.split(" ")
            pairs.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=json.loads(read_text(vocab)), merges=pairs))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _lines(path: Path) -> list[str]:
    """Lines that hold something. Only line feeds end them: other separators are letters here."""
    return [line for row in read_text(path).split("\n") if (line := row.removesuffix("\r"))]


def _add_declared(tokenizer: Tokenizer, extras: dict[str, dict[str, Any]], folder: Path) -> None:
    """Add the tokens that the extra files declare, and hold the ids to what they say."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    declared: list[tuple[int, AddedToken]] = []
    try:
        config = extras.get("tokenizer_config.json", {})
        for number, entry in config.get("added_tokens_decoder", {}).items():
            given = {flag: bool(entry[flag]) for flag in flags if flag in entry}
            declared.append((int(number), AddedToken(entry["content"], **given)))
        if not declared:  # the older form, which the newer one replaces
            for content, number in extras.get("added_tokens.json", {}).items():
                declared.append((int(number), AddedToken(content, normalized=False, special=True)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{folder}: the added tokens are malformed ({error!r}); "
            "copy tokenizer_config.json and added_tokens.json again"
        ) from error
    declared.sort(key=lambda entry: entry[0])  # the library numbers tokens as they come
    tokenizer.add_tokens([token for _, token in declared])
    for number, token in declared:
        got = tokenizer.token_to_id(token.content)
        if got != number:
            raise BundleError(
                f"{folder}: {token.content} should have id {number} but gets {got}; these files "
                "are not of one checkpoint, copy all of them from the same folder"
            )


def _find(tokenizer: Tokenizer, token: str) -> int | None:
    try:
        number: int | None = tokenizer.token_to_id(token)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold
        return None
    return number


def _special_ids(
    tokenizer: Tokenizer, extras: dict[str, dict[str, Any]], folder: Path
) -> SpecialIds:
    eos = _DEFAULT_EOS
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        named = extras.get(name, {}).get("eos_token")
        if isinstance(named, dict):
            named = named.get("content")
        if named:
            eos = str(named)
            break

    def find(token: str) -> int:
        number = _find(tokenizer, token)
        if number is None:
            shown = token.encode("utf-8", "backslashreplace").decode("utf-8")
            raise BundleError(
                f"{folder}: the text tokenizer has no {shown}, so it is not MiMo-Audio's; "
                "copy the tokenizer's files from the checkpoint"
            )
        return number

    return SpecialIds(
        sosp=find("<|sosp|>"),
        eosp=find("<|eosp|>"),
        empty=find("<|empty|>"),
        sostm=find("<|sostm|>"),
        eostm=find("<|eostm|>"),
        eot=find("<|eot|>"),
        im_start=find("<|im_start|>"),
        im_end=find("<|im_end|>"),
        eos=find(eos),
    )
