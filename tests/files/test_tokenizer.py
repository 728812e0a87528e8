"""Texts as tokens: what transformers and the tokenizers library make of the same files."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, CamembertTokenizer

from bitwright.errors import EngineError, InputError
from bitwright.files.directory import ModelDirectory
from bitwright.files.tokenizer import cut, encodings_of, longest_first, open_tokenizer
from bitwright.models.load import load_model
from bitwright.runtime.generic_model import float_model
from bitwright.runtime.resident import peak_rss_mib, rss_mib
from tests.forks import ended_well, in_child

TinyModel = Callable[..., Path]
TEXTS = ["Hello WORLD Class", "Ünïcode Á à", "汉字 and 漢字", "a-b,c.  D"]
PROCESSORS = {
    "template": processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    ),
    "swapped": processors.TemplateProcessing(single="$A", pair="$B [SEP] $A", special_tokens=[("[SEP]", 3)]),
    "bert": processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
    "roberta": processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
    "none": None,
}


def changed(source: Path, copy: Path, settings: dict[str, Any]) -> Path:
    """A copy of a model with other settings in its tokenizer_config.json; None takes one away."""
    shutil.copytree(source, copy)
    file = copy / "tokenizer_config.json"
    kept = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))
    return copy


def ids_of(directory: Path, texts: list[str]) -> list[list[int]]:
    opened = open_tokenizer(ModelDirectory(directory))
    assert opened is not None
    return [encoding.ids for encoding in encodings_of(opened.tokenizer, texts, None)]


@pytest.mark.parametrize(
    ("name", "side"),
    [
        pytest.param(name, side, marks=() if (i + j) % 2 else pytest.mark.full)
        for i, name in enumerate(PROCESSORS)
        for j, side in enumerate(("right", "left"))
    ],
)
def test_cut_equals_the_librarys_truncation(tiny_model: TinyModel, name: str, side: str) -> None:
    file = str(tiny_model("bert") / "tokenizer.json")
    whole, truncated = Tokenizer.from_file(file), Tokenizer.from_file(file)
    draw = random.Random(0)
    for tokenizer in (whole, truncated):
        tokenizer.post_processor = PROCESSORS[name]
        tokenizer.no_truncation()
    lengths = [(a, b) for a in range(9) for b in range(9)] + [
        (draw.randint(0, 99), draw.randint(0, 99)) for _ in range(99)
    ]
    cuts = 0
    for limit in (4, 5, 8, 9, 40):
        truncated.enable_truncation(limit, direction=side)
        for a, b in lengths:
            texts = [" ".join(draw.choices("abcdefghij", k=count)) for count in (a, b)]
            for given in (texts, texts[:1]):
                got, want = whole.encode(*given), truncated.encode(*given)
                assert cut(got, limit, side, typed=True) == (want.ids, want.type_ids)
                assert cut(got, limit, side, typed=False) == (want.ids, None)
                cuts += got.ids != want.ids
    assert cuts > 400


def test_what_is_left_of_two_lengths_goes_a_token_of_the_longer_at_a_time() -> None:
    for first in range(12):
        for second in range(12):
            for room in range(24):
                left, right = longest_first(first, second, room)
                assert left + right == min(first + second, room)
                assert left <= first
                assert right <= second
                if first + second > room:
                    assert abs(left - right) <= 1 or min(left, right) == min(first, second)


@pytest.mark.parametrize("where", ["tokenizer.json", "tokenizer_config.json", "both"])
def test_texts_are_cut_at_the_side_that_the_files_name(
    tiny_model: TinyModel, tmp_path: Path, texts: list[str], where: str
) -> None:
    copy = changed(
        tiny_model("bert"), tmp_path / "copy", {} if where == "tokenizer.json" else {"truncation_side": "left"}
    )
    if where != "tokenizer_config.json":
        direction = "Left" if where == "tokenizer.json" else "Right"
        truncation = {"direction": direction, "max_length": 64, "strategy": "OnlyFirst", "stride": 0}
        file = copy / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation": truncation}))
    opened = open_tokenizer(ModelDirectory(copy))
    assert opened is not None
    tokenizer, side = opened.tokenizer, opened.side
    model, long = float_model(load_model(copy)), " ".join(texts[:20])
    assert side == model.tokenizer.truncation_side == "left"
    for item in (long, (long, texts[3]), (texts[3], long), (long, long)):
        first, second = (item, None) if isinstance(item, str) else ([item[0]], [item[1]])
        (encoding,) = encodings_of(tokenizer, [long] if second is None else first, second)
        ids, _ = cut(encoding, 64, side, typed=False)
        wanted = AutoTokenizer.from_pretrained(copy)(
            *([item] if second is None else item), truncation=True, max_length=64
        )
        assert [ids] == model.tokenize([item]) == [wanted["input_ids"]]
        assert len(ids) == 64


def test_a_side_that_is_none(tiny_model: TinyModel, tmp_path: Path) -> None:
    copy = changed(tiny_model("bert"), tmp_path / "copy", {"truncation_side": "up"})
    with pytest.raises(EngineError, match="truncation_side is 'up'; it must be"):
        open_tokenizer(ModelDirectory(copy))


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": False},
        {"do_lower_case": False, "tokenizer_class": "BertTokenizerFast"},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"strip_accents": False},
        {"tokenizer_class": None},
        {"tokenizer_class": None, "do_lower_case": False},
        {"tokenizer_class": "TokenizersBackend", "do_lower_case": False},
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False},
        {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": False},
        {"tokenizer_class": "NobodysTokenizer", "do_lower_case": False},
    ],
)
@pytest.mark.parametrize("family", ["bert", "mpnet", "distilbert", "electra", "modernbert", "roberta"])
def test_settings_of_word_pieces_are_those_of_transformers(
    tiny_model: TinyModel, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    if family == "roberta" and settings.get("tokenizer_class", "") is None:
        pytest.skip("RobertaTokenizer builds no tokenizer of word pieces")
    given = {"tokenizer_class": "MPNetTokenizer" if family == "mpnet" else "BertTokenizer"} | settings
    copy = changed(tiny_model(family), tmp_path / "copy", given)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    assert ids_of(copy, TEXTS) == [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize(
    ("family", "kind", "lower", "setting"),
    [
        ("albert", "AlbertTokenizer", True, {"do_lower_case": False}),
        ("albert", "AlbertTokenizer", True, {"keep_accents": True}),
        ("deberta-v2", "DebertaV2Tokenizer", False, {"do_lower_case": True}),
        ("deberta-v2", "DebertaV2Tokenizer", False, {"split_by_punct": True}),
    ],
)
def test_settings_of_sentence_pieces_agree_or_are_refused(
    tiny_model: TinyModel, tmp_path: Path, family: str, kind: str, lower: bool, setting: dict[str, bool]
) -> None:
    copy = changed(tiny_model(family), tmp_path / "copy", {"tokenizer_class": kind})
    specials = ["[PAD]", "<unk>" if family == "albert" else "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*specials, "▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGH-,."]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0 * (i > 4)) for i, piece in enumerate(pieces)], unk_id=1))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()] if lower else [normalizers.NFC()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = PROCESSORS["template"]
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(copy / "tokenizer.json"))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": specials[1]}))
    words = ["Abc dÉf", "a-b, CD."]
    theirs = AutoTokenizer.from_pretrained(copy)
    assert type(theirs).__name__ == kind
    assert ids_of(copy, words) == [theirs(text)["input_ids"] for text in words]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | setting | {"unk_token": specials[1]}))
    theirs = AutoTokenizer.from_pretrained(copy)
    assert [theirs(text)["input_ids"] for text in words] != [tokenizer.encode(text).ids for text in words]
    with pytest.raises(EngineError, match=f"does not agree with {next(iter(setting))} = "):
        ids_of(copy, words)


def test_camembert_splits_at_spaces_and_sets_a_mark_before_each_word(tiny_model: TinyModel, tmp_path: Path) -> None:
    copy = changed(tiny_model("camembert"), tmp_path / "copy", {})
    pieces = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "▁", "▁le", "▁chat"]
    vocabulary = [(piece, -0.5 * (i > 6)) for i, piece in enumerate([*pieces, *"abcdefghijklmnopqrstuvwxyzé'-,"])]
    CamembertTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)]).save_pretrained(copy)
    theirs, words = AutoTokenizer.from_pretrained(copy), ["le chat", "  Le  chat,\n l'été ", "lechat <mask> chat", ""]
    assert type(theirs) is CamembertTokenizer
    assert ids_of(copy, words) == [theirs(text)["input_ids"] for text in words]
    opened = open_tokenizer(ModelDirectory(copy))
    assert opened is not None
    (pair,) = encodings_of(opened.tokenizer, words[:1], words[1:2])
    assert pair.ids == theirs(*words[:2])["input_ids"]
    settings = json.loads((copy / "tokenizer_config.json").read_text()) | {"add_prefix_space": False}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    without, before = AutoTokenizer.from_pretrained(copy), [theirs(text)["input_ids"] for text in words]
    assert [without(text)["input_ids"] for text in words] != before
    with pytest.raises(EngineError, match="does not agree with add_prefix_space = False"):
        ids_of(copy, words)


def test_pairs_of_long_texts_take_memory_as_their_length(tiny_model: TinyModel) -> None:
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        pytest.skip("no peak of memory that can be set back")
    model = float_model(load_model(tiny_model("bert")))
    opened = open_tokenizer(ModelDirectory(model.path))
    assert opened is not None
    text = "a class " * 1500
    before = rss_mib()
    reset.write_text("5")
    (encoding,) = encodings_of(opened.tokenizer, [text], [text])
    assert [cut(encoding, 64, "right", typed=False)[0]] == model.tokenize([(text, text)])
    assert peak_rss_mib() - before < 60  # with every combination of what is cut off, 500


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (["fine", "a \ud800"], None, r"text 1 holds '\\ud800' at position 2, which is half of a surrogate pair"),
        (["\udc00"], ["b"], r"text 0 holds '\\udc00' at position 0"),
        (["a", "a"], ["b", "b\udfff"], r"text 1 holds '\\udfff' at position 1"),
    ],
)
def test_half_of_a_surrogate_pair(
    tiny_model: TinyModel, first: list[str], second: list[str] | None, message: str
) -> None:
    model = float_model(load_model(tiny_model("bert")))
    opened = open_tokenizer(ModelDirectory(model.path))
    assert opened is not None
    with pytest.raises(InputError, match=message):
        model.tokenize(first if second is None else list(zip(first, second, strict=True)))
    with pytest.raises(InputError, match=message):
        encodings_of(opened.tokenizer, first, second)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
    ],
    ids=["charsmap", "regex"],
)
def test_a_panic_of_the_library_is_an_error(tiny_model: TinyModel, tmp_path: Path, change: dict[str, Any]) -> None:
    directory = changed(tiny_model("modernbert"), tmp_path / "copy", {})
    file = directory / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(EngineError, match=r"the (tokenizer|pattern)"):
        ids_of(directory, ["a" * 40 + "!"])


@pytest.mark.parametrize("set_by_user", [None, "true", "false"])
def test_a_forked_child_tokenizes_on_one_thread(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, set_by_user: str | None
) -> None:
    """The library's pool of threads is not in the child, where it would wait for it."""
    name = "TOKENIZERS_PARALLELISM"
    if set_by_user is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, set_by_user)
    opened = open_tokenizer(ModelDirectory(tiny_model("bert")))
    assert opened is not None
    texts = TEXTS * 20

    def ids() -> list[list[int]]:
        return [encoding.ids for encoding in encodings_of(opened[0], texts, None)]

    want = ids()
    assert ended_well(in_child(lambda: ids() == want and os.environ[name] == "false", 10))
    assert os.environ.get(name) == set_by_user
    assert ids() == want
