"""A .gguf's header: keys of a wrong type, parts of a split model and damaged bytes give one message
each.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from pocketlm.export.gguf import write_gguf
from pocketlm.export.import_gguf import config_of, read_gguf
from pocketlm.inference.gguf_file import part_files
from pocketlm.inference.gguf_header import read_header, weight_bytes
from pocketlm.inference.gguf_tokenizer import left_out, tokenizer_of
from pocketlm.inference.open import size_of
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.transformer import Transformer
from tests.unit.tokenizer_kinds import SHAPE, byte_level, sentencepiece, tiny

KINDS = gguf.GGUFValueType
WINDOWED = {"layer_types": ("sliding_attention",), "sliding_window": 8}


def rewritten(path: Path, changes: dict[str, Any], out: Path, *, parts_of: int = 0) -> Path:
    """A copy by the `gguf` package with keys changed, or left out where the value is None; split if
    parts_of is given.
    """
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(
        out, reader.fields["general.architecture"].contents(), split_max_tensors=parts_of
    )
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in changes and key != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(
                key, field.contents(), kind, field.types[-1] if kind == KINDS.ARRAY else None
            )
    for key, value in changes.items():
        if value is not None:
            kind = KINDS.get_type(value)
            writer.add_key_value(
                key, value, kind, KINDS.get_type(value[0]) if kind == KINDS.ARRAY else None
            )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level()
    return write_gguf(
        tiny(tokenizer.vocab_size, num_hidden_layers=3),
        tokenizer,
        tmp_path_factory.mktemp("whole") / "m.gguf",
        "f32",
    )


def test_all_parts_of_a_split_model_are_read_whichever_is_given(
    whole: Path, tmp_path: Path
) -> None:
    rewritten(whole, {}, tmp_path / "m.gguf", parts_of=11)
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    expected, _ = read_gguf(whole)
    for part in parts:
        model, tokenizer = read_gguf(part)
        for (name, tensor), (other, found) in zip(
            expected.state_dict().items(), model.state_dict().items(), strict=True
        ):
            assert name == other and torch.equal(tensor, found)
        assert tokenizer.stop_ids == byte_level().stop_ids
        assert part_files(part) == parts and read_header(part).path == parts[0]
    assert weight_bytes(read_header(parts[0])) == weight_bytes(read_header(whole))
    assert size_of(parts[0]) == sum(part.stat().st_size for part in parts)


def test_llama_cpp_answers_from_a_split_model_too(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="needs the extra pocketlm[llamacpp]")
    from pocketlm.inference.llamacpp import GgufModel

    rewritten(whole, {}, tmp_path / "m.gguf", parts_of=11)
    ids = list(range(3, 30))
    logits = []
    for path in (whole, tmp_path / "m-00002-of-00003.gguf"):
        file = GgufModel(path, cache_type="f32")
        logits.append(file.logits(ids))
        file.close()
    np.testing.assert_array_equal(*logits)


def test_a_missing_renamed_or_foreign_part_is_named(whole: Path, tmp_path: Path) -> None:
    rewritten(whole, {}, tmp_path / "m.gguf", parts_of=11)
    first, second, third = sorted(tmp_path.iterdir())
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"m-00002-of-00003\.gguf is not there"):
        read_header(first)
    second.write_bytes(third.read_bytes())
    with pytest.raises(
        ValueError, match=r"m-00002-of-00003\.gguf: says that it is part 3 of 3, not 2"
    ):
        read_header(first)
    second.write_bytes(content)
    alone = first.rename(tmp_path / "alone.gguf")
    with pytest.raises(
        ValueError, match=r"alone\.gguf: one of 3 parts .* end in -00001-of-00003\.gguf"
    ):
        read_header(alone)


def test_a_part_that_lacks_tensors_is_counted(whole: Path, tmp_path: Path) -> None:
    rewritten(whole, {}, tmp_path / "m.gguf", parts_of=11)
    first, second, _ = sorted(tmp_path.iterdir())
    data = bytearray(first.read_bytes())
    key = b"split.tensors.count"
    at = data.index(key) + len(key) + 4
    data[at] += 1
    first.write_bytes(data)
    with pytest.raises(ValueError, match=r"29 tensors are in its 3 parts, 30 should be"):
        read_header(second)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "llama.block_count",
            "three",
            r"key llama\.block_count is 'three', not a whole number of at least 1",
        ),
        ("llama.block_count", 2.5, r"key llama\.block_count is 2\.5"),
        (
            "llama.block_count",
            70_000,
            r"block_count is 70000, but blk\.69999\.attn_q\.weight is missing",
        ),
        (
            "llama.embedding_length",
            64,
            r"token_embd\.weight is \(.*, 32\), and by the file's keys it should be \(.*, 64\)",
        ),
        ("llama.feed_forward_length", 2**30, r"ffn_down\.weight is \(32, 32\)"),
        ("llama.attention.head_count", [1, 1, 1], "heads do not share"),
        ("llama.attention.head_count_kv", -1, "heads do not share"),
        ("llama.attention.layer_norm_rms_epsilon", "x", "not a number above 0"),
        ("llama.rope.freq_base", float("nan"), "not a number above 0"),
        ("llama.rope.scaling.type", 3, "not a text"),
        ("llama.expert_count", "many", "not a whole number of at least 0"),
        ("general.alignment", "wide", "not a whole number of at least 1"),
        ("tokenizer.ggml.tokens", ["a", "b"], "not one type for each token"),
        ("tokenizer.ggml.tokens", [1, 2], "not an array of the right type"),
        ("tokenizer.ggml.tokens", None, r"key tokenizer\.ggml\.tokens is missing"),
        ("tokenizer.ggml.token_type", [1, 2, 3], "not one type for each token"),
        ("tokenizer.ggml.token_type", "x", "not an array of the right type"),
        ("tokenizer.ggml.merges", [1], "not an array of the right type"),
        ("tokenizer.ggml.merges", ["a b c"], "the merges do not fit the vocabulary"),
        ("tokenizer.ggml.model", ["gpt2"], "not a text"),
        ("tokenizer.ggml.model", "bert", "tokenizer 'bert' .* is not read here"),
        ("tokenizer.ggml.pre", "viking", "pre-tokenizer 'viking' is not read here"),
        (
            "tokenizer.ggml.eos_token_id",
            -4,
            r"eos_token_id is -4, not a whole number of at least 0",
        ),
        ("tokenizer.ggml.eos_token_id", 10**6, r"eos_token_id is 1000000, beyond the vocabulary"),
        ("tokenizer.ggml.eos_token_id", "</s>", "not a whole number"),
        ("tokenizer.ggml.eos_token_id", None, "nothing says where a text ends"),
        ("tokenizer.ggml.add_bos_token", 1, "not true or false"),
        ("tokenizer.chat_template", 7, "not a text"),
    ],
)
def test_a_key_of_another_type_is_named(
    key: str, value: Any, message: str, whole: Path, tmp_path: Path
) -> None:
    path = rewritten(whole, {key: value}, tmp_path / "m.gguf")
    with pytest.raises(ValueError, match=message) as caught:
        read_gguf(path)
    assert str(caught.value).startswith(str(path))


def test_what_another_program_leaves_out_follows_as_in_llama_cpp(
    whole: Path, tmp_path: Path
) -> None:
    """Qwen's files have no bos id, base models no end of a turn; token types and the rest have
    defaults.
    """
    original = byte_level()
    absent = (
        "bos_token_id",
        "eot_token_id",
        "add_bos_token",
        "add_eos_token",
        "padding_token_id",
        "token_type",
    )
    path = rewritten(whole, {f"tokenizer.ggml.{key}": None for key in absent}, tmp_path / "m.gguf")
    read = tokenizer_of(read_header(path))
    assert read.bos_token is None and read.bos_id is None and not read.adds_bos
    assert read.end_of_turn_token == "<|im_end|>" and read.stop_ids == original.stop_ids
    assert read.encode("It's 12345.") == original.encode("It's 12345.")


def test_other_templates_and_an_added_end_are_told(whole: Path, tmp_path: Path) -> None:
    changes = {
        "tokenizer.chat_template.tool_use": "{{ x }}",
        "tokenizer.chat_template.rag": "{{ y }}",
    }
    path = rewritten(whole, changes | {"tokenizer.ggml.add_eos_token": True}, tmp_path / "m.gguf")
    header = read_header(path)
    templates, ends = left_out(header)
    assert templates.endswith(": rag, tool_use") and ends.startswith("add_eos_token")
    assert tokenizer_of(header).chat_template == byte_level().chat_template
    assert left_out(read_header(whole)) == []


def test_damaged_bytes_give_one_message_that_names_the_file(tmp_path: Path) -> None:
    """Bytes changed, left out and put in, at random: an error of ours, or a header that is
    sound.
    """
    drawn = random.Random(11)
    broken, whole = tmp_path / "broken.gguf", []
    for number, tokenizer in enumerate((byte_level(), sentencepiece())):
        model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE))
        windowed = Transformer(replace(model.config, **WINDOWED))
        for name, network in (("plain", model), ("windowed", windowed)):
            file = write_gguf(network, tokenizer, tmp_path / f"{name}{number}.gguf", "f16")
            whole.append(file.read_bytes())
    refused = 0
    for _ in range(400):
        data = bytearray(drawn.choice(whole))
        for _ in range(drawn.choice((1, 1, 3))):
            at = drawn.randrange(drawn.choice((200, 3000, len(data))))
            kind = drawn.random()
            if kind < 0.6:
                data[at] = drawn.choice((0, 1, 127, 255, drawn.randrange(256)))
            elif kind < 0.8:
                del data[at : at + drawn.randrange(1, 9)]
            else:
                data[at:at] = drawn.randbytes(drawn.randrange(1, 9))
        broken.write_bytes(data)
        try:
            header = read_header(broken)
            config_of(header)
            tokenizer_of(header)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(str(broken))
    assert 100 < refused < 400
