"""The text tokenizer: both file forms, special tokens, and decoding piece by piece."""

import json
import random
import shutil
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from mimo_edge.runtime.bundle.errors import BundleError, TextError
from mimo_edge.runtime.chat.text_tokenizer import IncrementalDecoder, TextTokenizer, tokenizer_files

TEXTS = (
    "",
    "Hello there, please read this.",
    "请将这段语音转换为文字。今天天气真好！",
    "1234567890 and 3.14, ½ ² ٣",
    "  two  spaces \t tabs   \n\n\n lines \r\n end  ",
    "I'm, you'll, WE'RE don'T",
    "emoji 👩‍👩‍👧‍👦 🇨🇳 😀😀",
    "e\u0301 and \u00e9, 한글 \u1112\u1161\u11ab",  # NFC makes one of each pair
    "<|im_start|>user\n<|sosp|><|eosp|><|empty|>hi<|im_end|>\n<think>\n\n</think>\n<|sostm|>",
    "almost <|im_start| > <|sosp|",
    "nul \x00, BOM \ufeff, line separator \u2028, no-break\u00a0space",
)


@pytest.fixture(scope="module")
def tokenizer(golden_dir: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(golden_dir / "text_tokenizer")


@pytest.fixture(scope="module")
def saved(golden_dir: Path) -> dict[str, Any]:
    return json.loads((golden_dir / "text_tokenizer" / "tokenizer.json").read_text("utf-8"))


def write_vocab_and_merges(
    folder: Path, saved: dict[str, Any], form: str, drop: tuple[str, ...] = ()
) -> Path:
    """The same tokenizer as the older pair of files; `form` is where the added tokens stand."""
    folder.mkdir(exist_ok=True)
    model = saved["model"]
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, "utf-8")
    added = [dict(token) for token in saved["added_tokens"] if token["content"] not in drop]
    if form == "tokenizer_config.json":
        # Backwards: the ids must come from the numbers, not from the order in the file.
        entries = {str(token.pop("id")): token for token in reversed(added)}
        content: dict[str, Any] = {"added_tokens_decoder": entries, "eos_token": "<|im_end|>"}
    else:
        content = {token["content"]: token["id"] for token in reversed(added)}
    (folder / form).write_text(json.dumps(content), "utf-8")
    return folder


def test_special_ids_are_those_of_the_files(tokenizer: TextTokenizer, golden_dir: Path) -> None:
    info = json.loads((golden_dir / "info.json").read_text("utf-8"))
    ids = info["special_ids"]
    special = tokenizer.special
    for name in ("sosp", "eosp", "empty", "sostm", "eostm", "eot", "im_start", "im_end"):
        assert getattr(special, name) == ids[f"<|{name}|>"]
    assert special.eos == info["eos_token_id"]
    assert tokenizer.vocab_size == info["text_vocab_len"]
    for token, number in ids.items():
        assert tokenizer.encode(f"a{token}b")[1] == number


@pytest.mark.parametrize("form", ["tokenizer_config.json", "added_tokens.json"])
def test_vocab_and_merges_encode_as_tokenizer_json(
    form: str, tokenizer: TextTokenizer, saved: dict[str, Any], tmp_path: Path
) -> None:
    other = TextTokenizer.from_folder(write_vocab_and_merges(tmp_path / "pair", saved, form))
    for text in TEXTS:
        assert other.encode(text) == tokenizer.encode(text), text
        assert other.decode(other.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert other.vocab_size == tokenizer.vocab_size
    assert other.special.im_end == tokenizer.special.im_end


@pytest.mark.parametrize("form", ["tokenizer_config.json", "added_tokens.json"])
def test_missing_speech_tokens_are_appended_in_order(
    form: str, tokenizer: TextTokenizer, saved: dict[str, Any], tmp_path: Path
) -> None:
    names = ("sosp", "eosp", "empty", "Human", "SpeechLM", "sostm", "eostm", "eot")
    tokens = tuple(f"<|{name}|>" for name in names)
    folder = write_vocab_and_merges(tmp_path / "pair", saved, form, drop=tokens)
    other = TextTokenizer.from_folder(folder)
    first = other.vocab_size - len(tokens)
    assert [other.encode(token) for token in tokens] == [[first + n] for n in range(len(tokens))]
    for text in TEXTS:
        assert other.encode(text) == tokenizer.encode(text)


def test_tokens_of_the_config_join_those_of_tokenizer_json(
    saved: dict[str, Any], tmp_path: Path
) -> None:
    bare = saved | {"added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(bare), "utf-8")
    write_vocab_and_merges(tmp_path, saved, "tokenizer_config.json")
    whole = TextTokenizer.from_folder(tmp_path)
    assert [path.name for path in tokenizer_files(tmp_path)] == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for token in saved["added_tokens"]:
        assert whole.encode(token["content"]) == [token["id"]]


@pytest.mark.parametrize(
    ("eos", "expected"),
    [
        ("<|im_end|>", "<|im_end|>"),
        ({"content": "<|im_end|>", "lstrip": False}, "<|im_end|>"),
        (None, "<|endoftext|>"),
    ],
)
def test_eos_token_may_be_a_string_or_an_object(
    eos: object, expected: str, golden_dir: Path, tmp_path: Path
) -> None:
    shutil.copy(golden_dir / "text_tokenizer" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    tokenizer = TextTokenizer.from_folder(tmp_path)
    assert [tokenizer.special.eos] == tokenizer.encode(expected)


def test_decoding_gives_back_the_composed_text(tokenizer: TextTokenizer) -> None:
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def pieces(tokenizer: TextTokenizer, ids: list[int]) -> list[str]:
    decoder = IncrementalDecoder(tokenizer)
    return [*(decoder.feed(i) for i in ids), decoder.finish()]


def test_pieces_join_to_the_whole(tokenizer: TextTokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids), text


def test_pieces_join_to_the_whole_for_ids_that_are_no_text(tokenizer: TextTokenizer) -> None:
    rng = random.Random(7)
    for _ in range(300):
        # A few ids beyond the vocabulary: the model's own is padded.
        ids = [rng.randrange(tokenizer.vocab_size + 4) for _ in range(rng.randrange(40))]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids), ids


def test_no_piece_shows_half_a_character(tokenizer: TextTokenizer) -> None:
    text = "好😀é"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text), "the tokenizer at hand must split characters for this test"
    given = pieces(tokenizer, ids)
    assert "\ufffd" not in "".join(given)
    assert [piece for piece in given if piece] == list(text)


def test_an_unfinished_character_comes_out_at_the_end(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a😀")[:-1]
    decoder = IncrementalDecoder(tokenizer)
    assert "".join(decoder.feed(i) for i in ids) == "a"
    assert decoder.finish() == "\ufffd"
    assert decoder.feed(tokenizer.encode("b")[0]) == "b"


@pytest.mark.parametrize("token", ["<é>", "<中 文>"])
def test_added_tokens_outside_the_byte_alphabet_decode_alike(
    token: str, saved: dict[str, Any], tmp_path: Path
) -> None:
    number = max(entry["id"] for entry in saved["added_tokens"]) + 1
    extra = saved["added_tokens"][0] | {"id": number, "content": token}
    changed = saved | {"added_tokens": [*saved["added_tokens"], extra]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed), "utf-8")
    tokenizer = TextTokenizer.from_folder(tmp_path)
    ids = tokenizer.encode(f"a{token}好")
    assert number in ids
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    "unit", ["The quick brown fox. ", "你好，世界", "a", " ", "\n", "😀", "<|eot|>"]
)
def test_long_text_encodes_quickly(unit: str, tokenizer: TextTokenizer) -> None:
    text = (unit * (100_000 // len(unit) + 1))[:100_000]
    start = time.perf_counter()
    ids = tokenizer.encode(text)
    assert time.perf_counter() - start < 10  # well under 1 s on a free machine
    assert "".join(pieces(tokenizer, ids)) == text


@pytest.mark.parametrize("text", [b"bytes", None, 3, ["a"]])
def test_what_is_no_text_is_refused(text: Any, tokenizer: TextTokenizer) -> None:
    with pytest.raises(TextError, match=type(text).__name__):
        tokenizer.encode(text)


def test_a_lone_surrogate_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(TextError, match=r"surrogate.*character 2.*remove"):
        tokenizer.encode("ab\ud83d!")


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")  # half a tokenizer is none
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError) as caught:
            TextTokenizer.from_folder(folder)
        for part in (str(folder), "tokenizer.json", "vocab.json", "merges.txt"):
            assert part in str(caught.value)


def test_files_to_carry(golden_dir: Path, saved: dict[str, Any], tmp_path: Path) -> None:
    names = [path.name for path in tokenizer_files(golden_dir / "text_tokenizer")]
    assert names[0] == "tokenizer.json"
    pair = write_vocab_and_merges(tmp_path / "pair", saved, "added_tokens.json")
    (pair / "model.safetensors").write_text("")
    found = tokenizer_files(pair)
    assert found == [pair / name for name in ("vocab.json", "merges.txt", "added_tokens.json")]


def test_carried_files_are_enough(
    tokenizer: TextTokenizer, golden_dir: Path, tmp_path: Path
) -> None:
    for path in tokenizer_files(golden_dir / "text_tokenizer"):
        shutil.copy(path, tmp_path)
    carried = TextTokenizer.from_folder(tmp_path)
    assert carried.special == tokenizer.special
    assert carried.encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"added_tokens_decoder": {"x": 1}, "a": null}'])
def test_broken_files_are_refused(
    name: str, content: str, golden_dir: Path, tmp_path: Path
) -> None:
    shutil.copy(golden_dir / "text_tokenizer" / "tokenizer.json", tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(BundleError, match="again"):
        TextTokenizer.from_folder(tmp_path)


def test_files_of_two_checkpoints_are_refused(golden_dir: Path, tmp_path: Path) -> None:
    shutil.copy(golden_dir / "text_tokenizer" / "tokenizer.json", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|sosp|>": 5}))
    with pytest.raises(BundleError, match=r"sosp.* 5 .*same folder"):
        TextTokenizer.from_folder(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(saved: dict[str, Any], tmp_path: Path) -> None:
    pair = write_vocab_and_merges(tmp_path, saved, "added_tokens.json", drop=("<|im_start|>",))
    (pair / "added_tokens.json").unlink()
    with pytest.raises(BundleError, match=r"no <\|im_start\|>"):
        TextTokenizer.from_folder(pair)


def test_a_token_that_is_no_text(golden_dir: Path, tmp_path: Path) -> None:
    """JSON can hold half a character."""
    shutil.copy(golden_dir / "text_tokenizer" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "\\ud800"}')
    with pytest.raises(BundleError, match=r"the text tokenizer has no \\ud800, so") as error:
        TextTokenizer.from_folder(tmp_path)
    str(error.value).encode()


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json"])
def test_an_id_that_two_tokens_have(saved: dict[str, Any], tmp_path: Path, form: str) -> None:
    """One of the two could not be told from the other."""
    raw = json.loads(json.dumps(saved))
    first, second = list(raw["model"]["vocab"])[-2:]
    raw["model"]["vocab"][first] = raw["model"]["vocab"][second]
    if form == "tokenizer.json":
        (tmp_path / form).write_text(json.dumps(raw))
    else:
        write_vocab_and_merges(tmp_path, raw, "added_tokens.json")
    with pytest.raises(BundleError, match=f"{form}.*two tokens have the same id"):
        TextTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_files_in_another_encoding(
    tokenizer: TextTokenizer, saved: dict[str, Any], tmp_path: Path, encoding: str, line: str
) -> None:
    """As editors of other systems save them."""
    write_vocab_and_merges(tmp_path, saved, "tokenizer_config.json")
    for path in tmp_path.iterdir():
        text = path.read_text("utf-8").replace("\n", line)
        path.write_bytes(text.encode(encoding))
    found = TextTokenizer.from_folder(tmp_path)
    assert [found.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
