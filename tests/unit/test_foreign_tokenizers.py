"""Tokenizers as others publish them: state, special tokens, endings and beginnings mean what they
mean in transformers.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from chat_templates import CHATML, IM, KINDS, PHI3, Kind, backend_of, write_tokenizer
from tokenizers import processors

from pocketlm.model.tokenizer import Tokenizer

CHAT = KINDS["chatml"]
ASK = [{"role": "user", "content": "What is 12 + 30? please tell me in words"}]


def changed(folder: Path, name: str, **fields: Any) -> Path:
    """The folder, with fields of a JSON file set; None takes one away."""
    file = folder / name
    content = json.loads(file.read_text()) if file.is_file() else {}
    content = {k: v for k, v in (content | fields).items() if v is not None}
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "theirs", CHAT)


def theirs_of(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("side", ["Right", "Left"])
def test_truncation_and_padding_that_a_script_left_are_dropped_and_told(
    folder: Path, side: str, tmp_path: Path
) -> None:
    whole = Tokenizer.load(folder)
    changed(
        folder,
        "tokenizer.json",
        truncation={"direction": side, "max_length": 5, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 64},
            "direction": side,
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        },
    )
    ours = Tokenizer.load(folder)
    text = "the quick brown fox jumps over the lazy dog"
    assert ours.encode(text) == whole.encode(text) and ours.encode_chat(ASK) == whole.encode_chat(
        ASK
    )
    assert any("truncation and padding" in note for note in ours.notes) and not whole.notes
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert saved.truncation is None and saved.padding is None


def test_special_tokens_of_special_tokens_map_json_are_read(folder: Path) -> None:
    changed(folder, "tokenizer_config.json", bos_token=None, eos_token=None, chat_template=None)
    changed(
        folder,
        "special_tokens_map.json",
        bos_token="<|im_start|>",
        eos_token={"content": "<|im_end|>"},
    )
    ours, theirs = Tokenizer.load(folder), theirs_of(folder)
    assert (
        (ours.bos_token, ours.eos_token)
        == (theirs.bos_token, theirs.eos_token)
        == ("<|im_start|>", "<|im_end|>")
    )


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_answers_end_where_the_folder_says(file: str, tmp_path: Path) -> None:
    """An end that only a file names, and that is neither eos nor the template's."""
    kind = Kind(template=CHATML, bos=None, eos="<|endoftext|>", special=(*IM, "<|stop|>"))
    folder = changed(write_tokenizer(tmp_path / "t", kind), file, eos_token_id=[0, 3])
    ours = Tokenizer.load(folder)
    assert ours.stop_ids == {0, 2, 3} and ours.end_of_turn_token == "<|im_end|>"
    assert file in ours.endings.summary() and "the chat template" in ours.endings.summary()
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").stop_ids == ours.stop_ids


def test_an_ending_added_to_the_config_of_a_folder_of_ours_counts(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "saved").mkdir()
    Tokenizer.load(folder).save(tmp_path / "saved")
    changed(tmp_path / "saved", "generation_config.json", eos_token_id=[1, 2])
    assert Tokenizer.load(tmp_path / "saved").stop_ids == {0, 1, 2}


def test_generation_config_goes_before_config_as_in_transformers(folder: Path) -> None:
    changed(folder, "config.json", eos_token_id=1)
    assert 1 in Tokenizer.load(folder).stop_ids
    changed(folder, "generation_config.json", eos_token_id=2)
    assert Tokenizer.load(folder).stop_ids == {0, 2}


@pytest.mark.parametrize(
    ("number", "words"), [(70, "plain word"), (9999, "no token"), (-3, "no token")]
)
def test_an_ending_that_is_no_special_token_is_not_taken_and_told(
    folder: Path, number: int, words: str
) -> None:
    ours = Tokenizer.load(changed(folder, "generation_config.json", eos_token_id=[2, number]))
    assert ours.stop_ids == {0, 2} and any(words in note for note in ours.notes)


@pytest.mark.parametrize("value", ["2", [2, None], {"a": 1}, True, 2.5])
def test_an_ending_of_another_type_is_refused_by_name(folder: Path, value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"generation_config\.json: eos_token_id is .*whole numbers are needed"
    ):
        Tokenizer.load(changed(folder, "generation_config.json", eos_token_id=value))


def test_the_template_tells_where_turns_end_whatever_the_token_is_called(tmp_path: Path) -> None:
    kind = Kind(
        template=CHATML.replace("<|im_end|>", "<|fin|>"),
        bos=None,
        eos="<|endoftext|>",
        special=(*IM, "<|fin|>"),
    )
    ours = Tokenizer.load(write_tokenizer(tmp_path / "t", kind))
    assert ours.end_of_turn_token == "<|fin|>" and ours.stop_ids == {0, 2, 3}
    phi = Kind(
        template=PHI3,
        bos=None,
        eos="<|endoftext|>",
        special=("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"),
    )
    assert Tokenizer.load(write_tokenizer(tmp_path / "p", phi)).end_of_turn_token == "<|end|>"


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("smollm 2", "<|endoftext|>"),  # its bos begins turns
        ("qwen 3", "<|endoftext|>"),  # it has no bos, and its eos ends turns
        ("llama 3", "<|begin_of_text|>"),
        ("gemma", "<bos>"),
        ("deepseek r1", "<｜begin▁of▁sentence｜>"),
    ],
)
def test_documents_begin_with_what_the_tokenizer_offers_for_that(
    name: str, start: str, tmp_path: Path
) -> None:
    ours = Tokenizer.load(write_tokenizer(tmp_path / "t", KINDS[name]))
    assert ours.document_start == [ours.backend.token_to_id(start)]


def test_documents_begin_with_nothing_where_every_special_token_is_a_turns(tmp_path: Path) -> None:
    kind = Kind(template=CHATML, bos="<|im_start|>", eos="<|im_end|>", special=IM[1:])
    assert Tokenizer.load(write_tokenizer(tmp_path / "t", kind)).document_start == []


@pytest.mark.parametrize("adds", [True, False])
def test_whether_a_bos_is_added_is_read_kept_and_written(adds: bool, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "t", KINDS["zephyr"])
    if adds:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        backend.save(str(folder / "tokenizer.json"))
    ours = Tokenizer.load(folder)
    assert theirs_of(folder)("the fox")["input_ids"][:1] == (
        [1] if adds else ours.encode("the fox")[:1]
    )
    assert ours.adds_bos is adds and ours.document_start == [ours.bos_id]
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").adds_bos is adds
    assert (
        theirs_of(tmp_path / "saved")("the fox")["input_ids"]
        == theirs_of(folder)("the fox")["input_ids"]
    )


def test_the_size_of_a_vocabulary_is_its_greatest_id_and_one(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"<|late|>": 500}
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    content["added_tokens"].append({"id": 500, "content": "<|late|>", **flags})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.load(folder).vocab_size == 501


def test_a_sentencepiece_model_alone_is_read(tmp_path: Path) -> None:
    """facebook/MobileLLM-125M's files: tokenizer.model and its config, no tokenizer.json."""
    text = tmp_path / "text.txt"
    text.write_text(
        "the quick brown fox jumps over the lazy dog\nWhat is 12 + 30? It is 42.\n" * 20
    )
    (tmp_path / "t").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "t" / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "t" / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "LlamaTokenizer",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
            }
        )
    )
    ours, theirs = Tokenizer.load(tmp_path / "t"), theirs_of(tmp_path / "t")
    for words in ("the lazy fox", "  two  spaces", "日本 12+30\n\n", ""):
        expected = theirs(words, add_special_tokens=False)["input_ids"]
        assert ours.encode(words) == expected
    spm = sentencepiece.SentencePieceProcessor(str(tmp_path / "t" / "tokenizer.model"))
    assert ours.encode("the lazy fox") == spm.encode("the lazy fox")
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode("the lazy fox") == ours.encode("the lazy fox")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "[]", "expected an object, found list"),
        ("special_tokens_map.json", "[]", "expected an object, found list"),
        ("generation_config.json", "7", "expected an object, found int"),
        ("tokenizer.json", "[]", "not a tokenizer"),
        ("tokenizer.json", '{"model": 3}', "not a tokenizer"),
        ("tokenizer_config.json", '{"eos_token": 7}', ""),
        ("tokenizer_config.json", '{"chat_template": 7, "eos_token": "<|im_end|>"}', ""),
        ("tokenizer_config.json", '{"chat_template": "{% for %}", "eos_token": "<|im_end|>"}', ""),
        (
            "tokenizer_config.json",
            '{"tokenizer_class": "NoSuchTokenizer", "eos_token": "<|im_end|>"}',
            None,
        ),
        (
            "tokenizer_config.json",
            '{"eos_token": "<|im_end|>", "split_special_tokens": true}',
            "split_special_tokens",
        ),
    ],
)
def test_files_of_another_shape_end_in_one_message_that_names_them(
    folder: Path, name: str, content: str, message: str | None
) -> None:
    (folder / name).write_text(content)
    if message is None:
        Tokenizer.load(folder)  # transformers opens it too: it has tokenizer.json
        theirs_of(folder)
        return
    with pytest.raises(ValueError, match="theirs") as caught:
        Tokenizer.load(folder)
    assert message in str(caught.value)


def test_a_backend_that_threads_share_is_never_switched(folder: Path) -> None:
    ours = Tokenizer.load(folder)
    before = ours.backend.encode_special_tokens
    ours.encode_chat(ASK)
    ours.encode("<|im_end|>")
    assert before is True and ours.backend.encode_special_tokens is True
    assert backend_of(CHAT).encode("<|im_end|>").ids == [2]  # elsewhere the library's default holds
