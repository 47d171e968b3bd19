"""`bert_tokenizer/1/model.py`: the ids that training saw, per-request errors, and padding to buckets."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from builders.model_config import tokenizer_config
from contract.tensors import BUCKET_LENGTHS, INPUT_IDS, MAX_TEXT_BYTES
from tests.model_repository.fake_backend import InferenceRequest, InferenceResponse, TritonError
from tests.model_repository.loader import load_module, start_model
from training.batches import encode
from training.checkpoint import load_checkpoint

RELEASE = "tiny-0123456789ab"
MAX_LENGTH = 16
PAD = 0

STRANGE_TEXTS = {
    "NUL bytes": "the \0 cat\0s",
    "only NUL": "\0",
    "emoji": "cat \U0001f600 tree \U0001f469‍\U0001f52c",
    "CJK": "猫 and 木",
    "accents": "Éléphant naïve",
    "a combining mark": "é",
    "right to left": "قطة dog",
    "special tokens as text": "[CLS] cat [SEP] [PAD] [MASK]",
    "control characters": "cat\x07\x1b[0m tree",
    "a zero-width space": "cat\u200btree",
    "newlines": "cat\r\n\ttree",
    "a very long word": "x" * 5000,
}


@pytest.fixture(scope="module")
def module() -> Any:
    return load_module("bert_tokenizer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, merged: Path) -> Path:
    """A deployed `bert_tokenizer` with one version, its tokenizer that of the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("deployed") / "bert_tokenizer"
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(merged / "tokenizer.json", folder / "1" / "tokenizer.json")
    (folder / "1" / "release.json").write_text(json.dumps({"release": RELEASE}))
    return folder


@pytest.fixture(autouse=True, scope="module")
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "true")  # the model sets it for its own process
        yield


@pytest.fixture(scope="module")
def model(module: Any, folder: Path) -> Any:
    return start_model(module, folder, tokenizer_config(), bucket_lengths="4,8,12")


@pytest.fixture(scope="module")
def tokenizer(merged: Path) -> Tokenizer:
    """What training used."""
    return load_checkpoint(merged).tokenizer


def texts_of(*texts: str | bytes) -> np.ndarray[Any, Any]:
    """[B, 1] of bytes, as Triton hands them over."""
    return np.array([[text.encode() if isinstance(text, str) else text] for text in texts], dtype=np.object_)


def ask(model: Any, *requests: tuple[str | bytes, ...]) -> list[InferenceResponse]:
    """One response a request."""
    responses: list[InferenceResponse] = model.execute([InferenceRequest(TEXT=texts_of(*texts)) for texts in requests])
    assert len(responses) == len(requests)
    return responses


def ids_of(response: InferenceResponse) -> list[list[int]]:
    """The ids of each row without its padding."""
    assert response.error is None
    ids, mask = response.arrays["input_ids"], response.arrays["attention_mask"]
    return [row[kept == 1].tolist() for row, kept in zip(ids, mask, strict=True)]


def words(count: int) -> str:
    """So many words of one token each."""
    return " ".join(["cat", "tree"] * count).rsplit(" ", count)[0]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"caf\xe9", "text 1 is not valid UTF-8"),
        (b"\xed\xa0\x80", "text 1 is not valid UTF-8"),  # half of a surrogate pair
        (b"\xc0\x80", "text 1 is not valid UTF-8"),  # an overlong NUL
        (b"", "text 1 is empty"),
        (b" \t\r\n", "text 1 is empty"),
        ("\u00a0\u2003".encode(), "text 1 is empty"),
        (b"x" * 11, "text 1 has 11 bytes; at most 10 are allowed"),
        (b"\xff" * 11, "text 1 has 11 bytes; at most 10 are allowed"),
    ],
)
def test_a_text_that_cannot_be_classified_is_named(module: Any, bad: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        module.decode_texts(texts_of("fine", bad, "fine too"), 10)


def test_texts_up_to_the_limit_are_decoded_in_order(module: Any) -> None:
    texts = ["a cat", "x" * 12, "木" * 4, "é"]
    assert module.decode_texts(texts_of(*texts), 12) == texts


@pytest.mark.parametrize(
    ("longest", "length"),
    [(1, 4), (4, 4), (5, 8), (8, 8), (9, 10), (10, 10)],
)
def test_the_padded_length_is_the_next_bucket_but_at_most_what_the_model_reads(module: Any, longest: int, length: int) -> None:
    assert module.padded_length(longest, [4, 8, 12], 10) == length


def test_beyond_the_last_bucket_nothing_is_padded(module: Any) -> None:
    assert module.padded_length(13, [4, 8, 12], 100) == 13


def test_every_length_fits_its_bucket_and_a_longer_one_never_gets_a_smaller(module: Any) -> None:
    lengths = [module.padded_length(longest, list(BUCKET_LENGTHS), 512) for longest in range(1, 513)]
    assert all(length >= longest for longest, length in enumerate(lengths, 1))
    assert sorted(lengths) == lengths
    assert set(lengths) == set(BUCKET_LENGTHS)


def test_arrays_are_padded_on_the_right_with_the_pad_id_and_a_zero_mask(module: Any, tokenizer: Tokenizer) -> None:
    encodings = tokenizer.encode_batch(["cat", "cat tree"])
    ids, mask, truncated = module.to_arrays(encodings, 6, 77)
    assert ids.tolist() == [[*encodings[0].ids, 77, 77, 77], [*encodings[1].ids, 77, 77]]
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert truncated.tolist() == [[False], [False]]
    assert (ids.dtype, mask.dtype, truncated.dtype) == (np.int32, np.int32, np.bool_)


@pytest.mark.parametrize("name", STRANGE_TEXTS)
def test_the_ids_are_those_of_training(model: Any, tokenizer: Tokenizer, name: str) -> None:
    text = STRANGE_TEXTS[name]
    expected = encode(tokenizer, [text, "the old tree"], [])
    (response,) = ask(model, (text, "the old tree"))
    assert ids_of(response) == expected.ids
    assert response.arrays["truncated"].tolist() == [[flag] for flag in expected.truncated]


@pytest.mark.parametrize(("count", "cut"), [(MAX_LENGTH - 3, False), (MAX_LENGTH - 2, False), (MAX_LENGTH - 1, True)])
def test_truncation_is_flagged_from_the_first_token_that_is_cut(
    model: Any, tokenizer: Tokenizer, count: int, cut: bool
) -> None:
    (response,) = ask(model, ("cat", words(count)))  # the special tokens [CLS] and [SEP] count too
    assert response.arrays["truncated"].tolist() == [[False], [cut]]
    assert ids_of(response)[1] == tokenizer.encode(words(count)).ids
    assert len(ids_of(response)[1]) == min(count + 2, MAX_LENGTH)


@pytest.mark.parametrize(("count", "length"), [(1, 4), (2, 4), (3, 8), (6, 8), (7, 12), (11, 13), (40, 16)])
def test_a_request_is_padded_to_the_bucket_of_its_longest_text(model: Any, count: int, length: int) -> None:
    (response,) = ask(model, ("cat", words(count)))
    for name in ("input_ids", "attention_mask"):
        assert response.arrays[name].shape == (2, length)
        assert response.arrays[name].dtype == np.int32
    assert (response.arrays["input_ids"][response.arrays["attention_mask"] == 0] == PAD).all()


def test_requests_are_padded_apart(model: Any) -> None:
    short, long = ask(model, ("cat",), (words(9),))
    assert short.arrays["input_ids"].shape == (1, 4)
    assert long.arrays["input_ids"].shape == (1, 12)


def test_every_row_carries_the_release(model: Any) -> None:
    (response,) = ask(model, ("cat", "tree", "rose"))
    assert response.arrays["release"].tolist() == [[RELEASE.encode()]] * 3
    assert response.arrays["release"].dtype == np.object_


def test_the_outputs_are_those_of_the_config(model: Any) -> None:
    (response,) = ask(model, ("cat",))
    assert list(response.arrays) == [tensor["name"] for tensor in tokenizer_config()["output"]]


@pytest.mark.parametrize("bad", [b"\xff", b"", b"  ", b"x" * (MAX_TEXT_BYTES + 1)])
def test_a_bad_request_fails_alone(model: Any, tokenizer: Tokenizer, bad: bytes) -> None:
    first, failed, also_failed, last = ask(model, ("cat", words(3)), ("tree", bad), (bad,), ("old rose",))
    assert ids_of(first) == [tokenizer.encode("cat").ids, tokenizer.encode(words(3)).ids]
    assert ids_of(last) == [tokenizer.encode("old rose").ids]
    for response, number in ((failed, 1), (also_failed, 0)):
        assert response.error is not None
        assert response.error.code() == TritonError.INVALID_ARG
        assert response.error.message().startswith(f"text {number} ")
        assert not response.arrays


def test_responses_come_in_the_order_of_the_requests(model: Any, tokenizer: Tokenizer) -> None:
    requests = [tuple(words(1 + (7 * number + row) % 15) for row in range(1 + number % 4)) for number in range(20)]
    responses = ask(model, *requests)
    expected = [[tokenizer.encode(text).ids for text in texts] for texts in requests]
    assert [ids_of(response) for response in responses] == expected


def test_requests_that_all_fail_are_all_answered(model: Any) -> None:
    assert all(response.error is not None for response in ask(model, (b"",), (b"\xff",)))


def test_texts_of_the_committed_limit_are_accepted_and_one_byte_more_is_not(module: Any, folder: Path) -> None:
    model = start_model(module, folder, tokenizer_config())
    fits, too_long = ask(model, (b"x" * MAX_TEXT_BYTES,), (b"x" * (MAX_TEXT_BYTES + 1),))
    assert fits.error is None
    assert too_long.error is not None
    assert f"at most {MAX_TEXT_BYTES}" in too_long.error.message()
    assert fits.arrays[INPUT_IDS].shape[1] <= MAX_LENGTH


def test_a_padding_id_that_is_not_zero_is_used(module: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bert_tokenizer")
    path = tmp_path / "bert_tokenizer" / "1" / "tokenizer.json"
    saved = json.loads(path.read_text())
    vocabulary = saved["model"]["vocab"]
    vocabulary["[PAD]"], vocabulary["moss"] = vocabulary["moss"], vocabulary["[PAD]"]
    for token in saved["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    path.write_text(json.dumps(saved))
    (response,) = ask(start_model(module, path.parents[1], tokenizer_config()), ("cat",))
    assert vocabulary["[PAD]"] != 0
    assert set(response.arrays["input_ids"][response.arrays["attention_mask"] == 0].tolist()) == {vocabulary["[PAD]"]}


def test_the_threads_of_tokenizers_are_left_to_the_engine(model: Any) -> None:
    assert model is not None
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_numpy_2_is_refused(module: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "2.1.3")
    with pytest.raises(RuntimeError, match=r"numpy 2\.1\.3.*install numpy<2"):
        start_model(module, folder, tokenizer_config())


def test_a_tokenizer_that_does_not_truncate_is_refused(module: Any, folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bert_tokenizer")
    endless = Tokenizer.from_str(tokenizer.to_str())
    endless.no_truncation()
    endless.save(str(tmp_path / "bert_tokenizer" / "1" / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.json sets no truncation"):
        start_model(module, tmp_path / "bert_tokenizer", tokenizer_config())
