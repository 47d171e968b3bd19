"""`bert_tokenizer/1/model.py`: the ids that training saw, per-request errors, and padding to buckets."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from builders.model_config import tokenizer_config
from builders.tokenizer_contract import PARTS, make_contract
from contract.files import write_json
from contract.tensors import BUCKET_LENGTHS, INPUT_IDS, MAX_TEXT_BYTES
from contract.tokenizer import CONTRACT_FILE, ids_digest
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
    write_json(folder / "1" / CONTRACT_FILE, make_contract((merged / "tokenizer.json").read_bytes()))
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
    ids, mask, truncated = module.to_arrays([module.Tokens(one.ids, truncated=False) for one in encodings], 6, 77)
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


HEAD = 6 * MAX_LENGTH  # characters


def random_text(generator: random.Random) -> str:
    """Words, strange characters and spaces of all kinds, some of it far beyond the head, some without a space in it."""
    parts = [
        "cat",
        "tree",
        "unaffable",
        "x" * 120,
        "[SEP]",
        "猫",
        "\u0301",
        "é",
        "\u00a0",
        "\t",
        "\n",
        ",",
        "\0",
        "\u200b",
        " ",
        "  ",
    ]
    between = generator.choice(["", " ", " ", "\n", " \u0301"])
    return "a" + between.join(generator.choices(parts, k=generator.randint(1, 120)))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("seed", range(8))
def test_of_a_long_text_the_head_gives_the_tokens_of_the_whole(module: Any, tokenizer: Tokenizer, seed: int, side: str) -> None:
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.enable_truncation(MAX_LENGTH, direction=side)
    reader, generator = module.Reader(whole.to_str()), random.Random(seed)
    for text in [random_text(generator) for _ in range(150)]:
        expected = whole.encode(text)
        assert reader.read(text) == (expected.ids, bool(expected.overflowing)), repr(text)


class Recording:
    """A tokenizer that notes what it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.calls: list[int] = []

    def encode_batch_fast(self, texts: list[str]) -> Any:
        self.calls += [len(text) for text in texts]
        return self._tokenizer.encode_batch_fast(texts)


@pytest.fixture
def recorded(module: Any, tokenizer: Tokenizer) -> tuple[Any, list[int]]:
    """A reader, and the lengths of the texts that its tokenizer read itself."""
    reader = module.Reader(tokenizer.to_str())
    reader.tokenizer = Recording(reader.tokenizer)
    return reader, reader.tokenizer.calls


def test_a_long_text_is_read_as_far_as_the_model_reads(recorded: tuple[Any, list[int]], tokenizer: Tokenizer) -> None:
    reader, calls = recorded
    texts = ["é", "é " * 20_000, "é" + " " * HEAD + "cat"]  # the last has too few tokens within the head
    assert [reader.read(text).ids for text in texts] == [tokenizer.encode(text).ids for text in texts]
    assert calls == [1, HEAD - 1, HEAD - 1, len(texts[2])]


def test_a_head_ends_at_a_space_and_without_one_the_text_is_whole(module: Any) -> None:
    assert module.head_of("one two three", 7) == "one"
    assert module.head_of("one two three", 8) == "one two"
    assert module.head_of("one two three", 13) == "one two three"
    assert module.head_of("onetwothree", 5) == "onetwothree"
    assert module.head_of(" onetwothree", 5) == " onetwothree"


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
    write_json(path.with_name(CONTRACT_FILE), make_contract(path.read_bytes()))
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


def changed(folder: Path, target: Path, **parts: Any) -> Path:
    """A deployed tokenizer whose tokenizer.json has other parts than at its build."""
    shutil.copytree(folder, target / "bert_tokenizer")
    path = target / "bert_tokenizer" / "1" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return target / "bert_tokenizer"


def test_another_lower_casing_is_refused_with_the_first_text_that_differs(module: Any, folder: Path, tmp_path: Path) -> None:
    normalizer = json.loads((folder / "1" / "tokenizer.json").read_text())["normalizer"] | {"lowercase": False}
    with pytest.raises(ValueError, match=r"not what the release was built with: 'The quick brown fox.*Build the release again"):
        start_model(module, changed(folder, tmp_path, normalizer=normalizer), tokenizer_config())


def test_another_padding_id_is_refused_with_the_first_text(module: Any, folder: Path, tmp_path: Path) -> None:
    saved = json.loads((folder / "1" / "tokenizer.json").read_text())
    for token in saved["added_tokens"]:
        token["content"] = {"[PAD]": "[MASK]", "[MASK]": "[PAD]"}.get(token["content"], token["content"])
    vocabulary = saved["model"]["vocab"]
    vocabulary["[PAD]"], vocabulary["[MASK]"] = vocabulary["[MASK]"], vocabulary["[PAD]"]
    with pytest.raises(ValueError, match=r"'The quick brown fox.*padding 4; it gave .*padding 0\. Build"):
        start_model(module, changed(folder, tmp_path, **saved), tokenizer_config())


def test_a_change_that_no_golden_text_shows_is_refused(module: Any, folder: Path, tmp_path: Path) -> None:
    saved = json.loads((folder / "1" / "tokenizer.json").read_text())
    vocabulary = saved["model"]["vocab"] | {"somewordthatisnowhere": len(saved["model"]["vocab"])}
    with pytest.raises(ValueError, match=r"the part 'model' of tokenizer\.json was changed after the release was built"):
        start_model(module, changed(folder, tmp_path, model=saved["model"] | {"vocab": vocabulary}), tokenizer_config())


def test_the_model_and_the_contract_compute_the_same_digest(module: Any, tokenizer: Tokenizer, folder: Path) -> None:
    contract = json.loads((folder / "1" / CONTRACT_FILE).read_text())
    assert set(contract["parts"]) == set(PARTS)
    for golden in contract["golden"]:
        ids = tokenizer.encode(golden["text"] * golden["times"]).ids
        assert golden["sha256"] == ids_digest(ids, PAD)
    for text in contract["refused"]:
        with pytest.raises(ValueError, match="is empty"):
            module.decode_texts(texts_of(text), MAX_TEXT_BYTES)


def test_an_overloaded_model_refuses_before_it_reads(module: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = start_model(module, folder, tokenizer_config(), max_wait_ms="250")
    monkeypatch.setattr(model.backlog, "wait_s", lambda now: 0.2501)
    responses = ask(model, ("cat",), (b"\xff",))
    for response in responses:
        assert response.error is not None
        assert response.error.code() == TritonError.UNAVAILABLE
        assert response.error.message() == "overloaded: the engine is 250 ms behind, 250 ms are allowed; try again later"
    assert responses[0] is not responses[1] and responses[0].error is not responses[1].error
    monkeypatch.setattr(model.backlog, "wait_s", lambda now: 0.25)
    assert ids_of(ask(model, ("cat",))[0])


def refusal_of(response: InferenceResponse) -> str:
    assert response.error is not None
    return response.error.message()


def test_while_an_engine_loads_requests_may_wait_twice_as_long(
    module: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"bert_test_{os.getpid()}_"
    monkeypatch.setenv("BERT_SHM_PREFIX", prefix)
    announce = load_module("bert_engine").announce_loading
    try:
        model = start_model(module, folder, tokenizer_config(), max_wait_ms="250")
        monkeypatch.setattr(model.backlog, "wait_s", lambda now: 0.5)
        assert "500 ms behind, 250 ms are allowed" in refusal_of(ask(model, ("cat",))[0])
        announce(60.0)
        assert ids_of(ask(model, ("cat",))[0])
        monkeypatch.setattr(model.backlog, "wait_s", lambda now: 0.501)
        assert "501 ms behind, 500 ms are allowed" in refusal_of(ask(model, ("cat",))[0])
        announce(-0.01)
        assert "501 ms behind, 250 ms are allowed" in refusal_of(ask(model, ("cat",))[0])
    finally:
        for path in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108
            path.unlink()


def test_refusals_gather_unless_more_requests_are_waiting(module: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = start_model(module, folder, tokenizer_config())
    monkeypatch.setattr(model.backlog, "wait_s", lambda now: 10.0)
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)

    def paused(*sizes: int) -> bool:
        """Whether it paused over requests of so many texts, in a batch of at most 64."""
        before = len(pauses)
        assert len(ask(model, *[(b"cat",) * size for size in sizes])) == len(sizes)
        return len(pauses) > before

    assert [paused(8), paused(8, 8, 8), paused(*[8] * 7), paused(*[8] * 8)] == [True, True, True, False]
    assert [paused(40), paused(8), paused(8, 16), paused(20, 8)] == [False, True, True, False]  # another of 40 would not fit
    assert [paused(1) for _ in range(200)] == [True] * 200
    assert paused(40, 1) is False and paused(8) and model.largest < 40
    assert set(pauses) == {module.GATHER_S}


def test_what_is_counted_is_reported_now_and_then(module: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(1000.0, 2000.0, 0.2))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    model = start_model(module, folder, tokenizer_config())
    for _ in range(10):
        ask(model, ("cat", words(40)), (b"",))
    monkeypatch.setattr(module, "REPORT_S", 0)
    ask(model, ("cat",))
    values = {name: metric.value for (name, _), metric in model.counts.metrics.items()}
    assert values["bert_texts_total"] == 21
    assert values["bert_tokens_total"] == 10 * (3 + 16) + 3
    assert values["bert_truncated_total"] == 10
    assert values["bert_tokenizer_seconds_total"] == pytest.approx(11 * 0.2)
    assert (model.served.value, model.served.labels) == (1, {"release": RELEASE, "version": "1"})
    assert values["bert_refused_total"] == 10
    assert model.counts.metrics["bert_refused_total", "invalid"].labels == {"version": "1", "reason": "invalid"}
