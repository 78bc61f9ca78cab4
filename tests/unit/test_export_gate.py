"""An exported file that does not say what the model says does not come out, and the tensor at fault
is named.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shapes import small

from pocketlm.corpus.sources import NoteSource, ProblemSource
from pocketlm.export import gguf as gguf_file
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import load_checkpoint, save_checkpoint
from pocketlm.model.quant import SCALE, SCHEMES, Scheme, prepare, scheme
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.curate import CurateConfig, curate
from pocketlm.stages.export import COMPARED_TOKENS, ExportConfig, check_text, export, real_passages

pytest.importorskip("xllamacpp", reason="needs the extra pocketlm[llamacpp]")

SHAPE = small(
    vocab_size=320,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=3,
    num_key_value_heads=3,
    head_dim=32,
    max_position_embeddings=256,
    use_qk_norm=False,
    initializer_range=0.1,
)
IDS = torch.arange(3, 60)[None]
TEXTS = [
    "the quick brown fox",
    "What is 12 and 345? It is 357.",
    "a table of (values)\n\treturn x",
] * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


def checkpoint(
    folder: Path, tokenizer: Tokenizer, quantization: str | None = None, **fields
) -> Path:
    folder.mkdir()
    model = Transformer(replace(SHAPE, **fields), seed=2)
    save_checkpoint(
        folder, prepare(model, scheme(quantization)) if quantization else model, tokenizer
    )
    return folder


def test_a_float32_file_agrees_entirely_and_the_figures_are_kept(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path / "m", tokenizer)
    (tmp_path / "out").mkdir()
    export(
        ExportConfig(name="files", formats=("gguf",), gguf_dtype="f32"),
        tmp_path / "out",
        model=model,
    )
    found = json.loads((tmp_path / "out" / "export.json").read_text())["agreement"]["model.gguf"]
    assert found["top_token"] == found["greedy"] == 1.0 and found["kl"] < 1e-9
    assert COMPARED_TOKENS <= found["tokens"] <= COMPARED_TOKENS + 128


def test_one_wrong_scale_trips_the_gate_and_names_its_tensor(
    tokenizer, tmp_path, monkeypatch
) -> None:
    model = checkpoint(tmp_path / "m", tokenizer, "int4_group32_weight_only")
    pack, wrong = gguf_file.pack_q4_0, []

    def pack_with_a_slip(qweight: torch.Tensor, scale: torch.Tensor):
        wrong.append(qweight.shape)
        # the table, then seven matrices a layer: the first of the second layer
        slip = len(wrong) == 9
        return pack(qweight, scale * 2 if slip else scale)

    monkeypatch.setattr(gguf_file, "pack_q4_0", pack_with_a_slip)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        ValueError, match=r"differs most is model\.layers\.1\.self_attn\.q_proj\.weight, by 100%"
    ):
        export(ExportConfig(name="files", formats=("gguf",)), tmp_path / "out", model=model)
    assert not list((tmp_path / "out").iterdir())


def test_a_swapped_rope_layout_trips_the_gate(tokenizer, tmp_path, monkeypatch) -> None:
    model = checkpoint(tmp_path / "m", tokenizer)
    monkeypatch.setattr(gguf_file, "_interleave", lambda rows, heads: rows)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        ValueError, match=r"model\.gguf does not say what the model says.*(q_proj|k_proj)\.weight"
    ):
        export(ExportConfig(name="files", formats=("gguf",)), tmp_path / "out", model=model)
    assert not list((tmp_path / "out").iterdir())


def test_a_runtime_that_computes_otherwise_is_told_from_a_wrong_tensor(
    tokenizer, tmp_path, monkeypatch
) -> None:
    model = checkpoint(tmp_path / "m", tokenizer)
    shape = gguf_file._add_shape
    monkeypatch.setattr(
        gguf_file,
        "_add_shape",
        lambda writer, config: shape(writer, replace(config, rope_theta=50.0)),
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="every tensor in it is the model's to 1 %"):
        export(ExportConfig(name="files", formats=("gguf",)), tmp_path / "out", model=model)


PTE = ExportConfig(name="files", formats=("pte",), context_length=128)


def test_one_wrong_scale_of_a_pte_is_named(tokenizer, tmp_path, monkeypatch) -> None:
    pytest.importorskip("executorch", reason="needs the extra pocketlm[executorch]")
    from pocketlm.export import pte_network

    model = checkpoint(tmp_path / "m", tokenizer, "int4_group32", num_hidden_layers=1)
    quantize, packed = pte_network.quantize_weight, []

    def quantize_with_a_slip(weight: torch.Tensor, scheme: Scheme):
        qweight, scale = quantize(weight, scheme)
        packed.append(weight.shape)
        return qweight, scale * 2 if len(packed) == 3 else scale  # the table, q_proj, k_proj

    monkeypatch.setattr(pte_network, "quantize_weight", quantize_with_a_slip)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        ValueError, match=r"differs most is model\.layers\.0\.self_attn\.k_proj\.weight, by 100%"
    ):
        export(PTE, tmp_path / "out", model=model)
    assert not list((tmp_path / "out").iterdir())


def test_a_swapped_rope_layout_of_a_pte_is_named(tokenizer, tmp_path, monkeypatch) -> None:
    pytest.importorskip("executorch", reason="needs the extra pocketlm[executorch]")
    from pocketlm.export import pte_network

    model = checkpoint(tmp_path / "m", tokenizer, num_hidden_layers=1)
    neighbours = torch.block_diag(
        *[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * (SHAPE.head_dim // 2)
    )
    monkeypatch.setattr(pte_network, "half_turn", lambda size: neighbours)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        ValueError, match=r"model\.pte does not say .* differs most is RoPE's half turn, by 141%"
    ):
        export(PTE, tmp_path / "out", model=model)
    assert not list((tmp_path / "out").iterdir())


def test_a_pte_of_another_model_is_removed_and_what_computes_otherwise_is_told_apart(
    tokenizer, tmp_path, monkeypatch
) -> None:
    pytest.importorskip("executorch", reason="needs the extra pocketlm[executorch]")
    from pocketlm.export import pte, pte_network

    model = checkpoint(tmp_path / "m", tokenizer, num_hidden_layers=1)
    (tmp_path / "out").mkdir()
    other = Transformer(replace(SHAPE, num_hidden_layers=1), seed=9)
    with monkeypatch.context() as patch:
        write = pte.write_pte
        patch.setattr(
            pte, "write_pte", lambda network, *rest, **options: write(other, *rest, **options)
        )
        with pytest.raises(
            ValueError,
            match=r"model\.pte does not say what .* differs most is .*proj\.weight, by 1",
        ):
            export(PTE, tmp_path / "out", model=model)
        assert not list((tmp_path / "out").iterdir())
    rotate = pte_network.rotate
    monkeypatch.setattr(pte_network, "rotate", lambda x, cos, sin, turn: rotate(x, cos, -sin, turn))
    with pytest.raises(ValueError, match="every tensor in it is the model's to 1 %"):
        export(PTE, tmp_path / "out", model=model)
    assert not list((tmp_path / "out").iterdir())


def test_a_lower_bar_lets_a_file_pass(tokenizer, tmp_path) -> None:
    model = checkpoint(tmp_path / "m", tokenizer)
    for name, bar in (("strict", 1.0), ("lenient", 0.3)):
        config = ExportConfig(name="files", formats=("gguf",), gguf_dtype="q4_0", min_agreement=bar)
        (tmp_path / name).mkdir()
        if bar == 1.0:
            with pytest.raises(ValueError, match=r"100\.0% asked"):
                export(config, tmp_path / name, model=model)
        else:
            export(config, tmp_path / name, model=model)
            assert (tmp_path / name / "model.gguf").is_file()


def test_a_model_with_shared_blocks_leaves_in_every_format(tokenizer, tmp_path) -> None:
    model = checkpoint(tmp_path / "m", tokenizer, layer_repeats=2)
    (tmp_path / "out").mkdir()
    export(
        ExportConfig(name="files", formats=("gguf", "hf"), gguf_dtype="f32"),
        tmp_path / "out",
        model=model,
    )
    assert (
        json.loads((tmp_path / "out" / "hf" / "config.json").read_text())["num_hidden_layers"] == 6
    )


def test_a_model_with_learned_ranges_leaves_for_llamacpp_and_transformers_but_not_as_pte(
    tokenizer, tmp_path
) -> None:
    network = prepare(Transformer(SHAPE, seed=2), SCHEMES["int4_channel"])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.mul_(0.7 if name.endswith(SCALE) else 1.0)
    (tmp_path / "m").mkdir()
    save_checkpoint(tmp_path / "m", network, tokenizer)
    for name in ("out", "pte"):
        (tmp_path / name).mkdir()
    export(
        ExportConfig(name="files", formats=("gguf", "hf"), min_agreement=0.9),
        tmp_path / "out",
        model=tmp_path / "m",
    )
    plain, _ = load_checkpoint(tmp_path / "out" / "hf")
    assert torch.equal(plain(IDS), network(IDS))
    with pytest.raises(ValueError, match=r"'int4_channel' has no XNNPACK kernel"):
        export(ExportConfig(name="files", formats=("pte",)), tmp_path / "pte", model=tmp_path / "m")
    assert not list((tmp_path / "pte").iterdir())


def model_of(tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(Transformer(SHAPE, seed=1), tokenizer)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    sources = (
        ProblemSource(name="problems", domain="maths", families=("chain_sum",), count=60),
        NoteSource(name="notes", domain="knowledge", count=60, pairs_range=(1, 2)),
    )
    return curate(
        CurateConfig(
            name="corpus", sources=sources, vocab_size=300, validation_share=0.2, probe_share=0.0
        ),
        folder,
    )


def test_a_chat_model_is_compared_on_the_answers_of_the_corpus(corpus: Path) -> None:
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    tokenizer.chat_template = CHATML
    passages = real_passages(model_of(tokenizer), 256, corpus)
    held_out = [
        json.loads(line) for line in (corpus / "documents/problems/validation.jsonl").open()
    ]
    first = passages[0]
    assert tokenizer.decode(first.ids[: first.prompt], keep_special=True).endswith(
        "<|im_start|>assistant\n"
    )
    answer = tokenizer.decode(first.ids[first.prompt :], keep_special=True)
    assert answer == held_out[0]["messages"][1]["content"] + "<|im_end|>"
    assert sum(len(p.ids) - p.prompt for p in passages) >= COMPARED_TOKENS


def test_a_base_model_is_compared_on_all_sources_in_turn(corpus: Path) -> None:
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    passages = real_passages(model_of(tokenizer), 256, corpus)
    texts = [tokenizer.decode(p.ids) for p in passages[:4]]
    assert [text.startswith("Question") for text in texts].count(True) == 2
    assert all(len(p.ids) <= 256 for p in passages)


def test_without_a_corpus_the_language_reference_is_read(tokenizer: Tokenizer) -> None:
    passages = real_passages(model_of(tokenizer), 256, None)
    assert 'The "assert" statement' in tokenizer.decode(passages[0].ids)
    with pytest.raises(ValueError, match="raise context_length"):
        real_passages(model_of(tokenizer), 16, None)


def test_a_chat_model_without_a_corpus_is_compared_on_its_own_answers(tokenizer: Tokenizer) -> None:
    chat = Tokenizer(tokenizer.backend, chat_template=CHATML)
    model = model_of(chat)
    passages = real_passages(model, 256, None)
    first = passages[0]
    question = chat.decode(first.ids[: first.prompt], keep_special=True)
    assert 'The "assert" statement' in question and question.endswith("<|im_start|>assistant\n")
    answer = model.generate(
        [first.ids[: first.prompt]], max_new_tokens=200, stop_ids=chat.stop_ids
    )[0]
    made = first.ids[first.prompt :]
    assert made[:-1] == answer[: len(made) - 1] and made[-1] in (
        chat.end_of_turn_id,
        answer[len(made) - 1],
    )
    assert sum(len(p.ids) - p.prompt for p in passages) >= COMPARED_TOKENS
    with pytest.raises(ValueError, match="raise context_length"):
        real_passages(model, 16, None)


def test_words_at_other_ids_trip_the_gate_though_every_logit_agrees(
    tokenizer, tmp_path, monkeypatch
) -> None:
    model = checkpoint(tmp_path / "m", tokenizer)
    make = gguf_file.vocabulary_of

    def swapped(of: Tokenizer, vocab_size: int):
        vocabulary = make(of, vocab_size)
        tokens = vocabulary.tokens[:]
        tokens[1], tokens[2] = tokens[2], tokens[1]
        return replace(vocabulary, tokens=tokens)

    monkeypatch.setattr(gguf_file, "vocabulary_of", swapped)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        ValueError, match=r"(?s)does not read model\.gguf as this tokenizer does.*<\|im_end\|>"
    ):
        export(
            ExportConfig(name="files", formats=("gguf",), gguf_dtype="f32"),
            tmp_path / "out",
            model=model,
        )
    assert not list((tmp_path / "out").iterdir())


def test_a_template_that_llama_cpp_renders_otherwise_is_told(
    tokenizer, tmp_path, monkeypatch, capsys
) -> None:
    chat = Tokenizer(tokenizer.backend, chat_template=CHATML)
    model = checkpoint(tmp_path / "m", chat)
    other = Tokenizer(
        tokenizer.backend, chat_template=CHATML.replace("{{ message['content'] }}", "{{ ':' }}")
    )
    write = gguf_file.add_vocabulary
    monkeypatch.setattr(
        gguf_file, "add_vocabulary", lambda writer, of, vocabulary: write(writer, other, vocabulary)
    )
    (tmp_path / "out").mkdir()
    config = ExportConfig(name="files", formats=("gguf",), gguf_dtype="f32", min_agreement=0.0)
    export(config, tmp_path / "out", model=model)
    told = json.loads((tmp_path / "out" / "export.json").read_text())["unlike"]["model.gguf"]
    assert len(told) == 3 and all("renders the chat template otherwise" in note for note in told)
    assert told[0] in capsys.readouterr().err


def test_a_pte_s_tokenizer_is_compared_with_the_model_s(tokenizer, tmp_path, monkeypatch) -> None:
    other = train_tokenizer(["nothing like the others, 1 2 3 4 5 6 7 8 9 and so on: else"] * 9, 280)
    file = tmp_path / "model.pte"
    file.write_bytes(b"program")
    (tmp_path / "model.tokenizer").mkdir()
    other.save(tmp_path / "model.tokenizer")
    with pytest.raises(
        ValueError,
        match=r"model\.tokenizer: the tokenizer that was written gives other plain texts",
    ):
        check_text(file, tokenizer, 320)
    assert not list(tmp_path.iterdir())
    file.write_bytes(b"program")
    (tmp_path / "model.tokenizer").mkdir()
    tokenizer.save(tmp_path / "model.tokenizer")
    assert check_text(file, tokenizer, 320) == []
