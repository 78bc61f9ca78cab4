"""What a format cannot hold is said before anything trains, by the very checks that the export
makes.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketlm.export.writable import Wanted, refuse_unwritable
from pocketlm.inference.libllama import library
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.quant import SCHEMES, Scheme
from pocketlm.model.rope import RopeScaling
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.recipe_file import load_recipe
from pocketlm.runner.run import Run
from pocketlm.stages.export import ExportConfig, export
from pocketlm.stages.formats import FormatsConfig, check_formats
from tests.unit.tokenizer_kinds import SHAPE, byte_level, sentencepiece, tiny, unigram

pytest.importorskip("xllamacpp", reason="needs the extra pocketlm[llamacpp]")

RECIPE = Path(__file__).parents[2] / "recipes" / "specialize.py"
PLAIN = ModelConfig(vocab_size=705, **SHAPE)
WINDOWS = replace(
    PLAIN, num_hidden_layers=3, layer_types=ModelConfig.local_global(3), sliding_window=8
)
SCALED = replace(
    PLAIN,
    use_qk_norm=True,
    rope_scaling=RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
)
INT4, CHANNEL = SCHEMES["int4_group32"], SCHEMES["int4_channel"]


@pytest.mark.parametrize(
    ("formats", "config", "scheme", "options", "message"),
    [
        (("gguf",), SCALED, None, {}, "has no Llama 3 rope_scaling"),
        (
            ("gguf",),
            replace(PLAIN, intermediate_size=40),
            INT4,
            {},
            r"ffn_down\.weight has rows of 40",
        ),
        (
            ("gguf",),
            PLAIN,
            replace(INT4, group_size=16),
            {},
            r"blocks of 32; this model was trained as int4_group32",
        ),
        (("gguf",), PLAIN, None, {"gguf_dtype": "q4_k"}, "unknown GGUF dtype 'q4_k'"),
        (
            ("gguf",),
            replace(PLAIN, vocab_size=600),
            None,
            {},
            "tokens, the model's vocab_size is 600",
        ),
        (("pte",), PLAIN, CHANNEL, {}, "'int4_channel' has no XNNPACK kernel"),
        (("pte",), PLAIN, INT4, {"context_length": 4}, "context_length 4 must be from 8"),
        (
            ("hf",),
            PLAIN,
            None,
            {"context_length": 900},
            "context_length 900 exceeds the model's 512 positions",
        ),
        (
            ("hf",),
            WINDOWS,
            None,
            {"layout": "llama"},
            "the layout llama cannot hold this network: it has local layers",
        ),
        (("mlx",), PLAIN, None, {}, "mlx holds four-bit models"),
        (("mlx",), PLAIN, SCHEMES["int3_channel"], {}, "mlx holds int4; this model was trained as"),
        (("gguf",), PLAIN, SCHEMES["int3_channel"], {}, "Q4_0 is int4"),
        (("mlx",), WINDOWS, INT4, {}, "mlx: this model has sliding windows"),
        (
            ("compressed-tensors",),
            WINDOWS,
            CHANNEL,
            {},
            "compressed-tensors: this model has sliding windows",
        ),
        (
            ("hf", "compressed-tensors"),
            replace(PLAIN, intermediate_size=40),
            INT4,
            {},
            r"down_proj\.weight has rows of 40",
        ),
    ],
)
def test_each_format_says_what_it_cannot_hold(
    formats: tuple[str, ...],
    config: ModelConfig,
    scheme: Scheme | None,
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        refuse_unwritable(Wanted(formats=formats, **options), config, byte_level(), scheme)


def test_what_can_be_written_is_not_refused_and_its_limits_are_told() -> None:
    every = ("hf", "gguf", "pte", "mlx", "compressed-tensors")
    assert refuse_unwritable(Wanted(formats=every), PLAIN, byte_level(), INT4) == {
        name: [] for name in every
    }
    found = refuse_unwritable(Wanted(formats=("gguf",)), PLAIN, byte_level("llama4"), None)
    assert len(found["gguf"]) == 1 and "accents apart" in found["gguf"][0]


@pytest.mark.parametrize(("name", "extra"), [("pte", "executorch"), ("gguf", "llamacpp")])
def test_a_runtime_that_is_not_installed_is_named(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"pip install 'pocketlm\[{extra}\]'"):
        refuse_unwritable(Wanted(formats=(name,)), PLAIN, byte_level(), None)


def checkpoint(folder: Path, tokenizer: Tokenizer) -> Path:
    folder.mkdir()
    save_checkpoint(folder, tiny(tokenizer.vocab_size, initializer_range=0.1), tokenizer)
    return folder


def test_the_stage_tells_what_will_be_written(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", byte_level())
    (tmp_path / "out").mkdir()
    config = FormatsConfig(
        name="formats", formats=("gguf", "pte"), scheme="int4_group32", context_length=64
    )
    told = json.loads(
        (check_formats(config, tmp_path / "out", model=model) / "formats.json").read_text()
    )
    assert told["gguf"] == {"dtype": "q4_0", "quantization": "int4_group32", "unlike": []}
    assert told["pte"] == {"context_length": 64, "quantization": "int4_group32", "unlike": []}


@pytest.mark.parametrize("formats", ["gguf", "hf,gguf"])
def test_a_recipe_that_cannot_end_in_its_formats_trains_nothing(
    formats: str, tmp_path: Path
) -> None:
    base = checkpoint(tmp_path / "base", unigram())
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "hi", "response": "hello"}\n')
    recipe, out = load_recipe(RECIPE), tmp_path / "out"
    flags = {"base": base, "chats": chats, "formats": formats, "context": 64}
    with (
        Run(out, plan=dry_run(recipe, out, **flags)) as run,
        pytest.raises(ValueError, match="its model is Unigram"),
    ):
        recipe(run, **flags)
    assert [found.name for found in out.iterdir() if found.is_dir()] == ["formats"]


def test_the_export_asks_before_it_reads_the_weights(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", unigram())
    (model / "model.safetensors").unlink()
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="its model is Unigram"):
        export(ExportConfig(name="files", formats=("gguf",)), tmp_path / "out", model=model)


def test_a_sentencepiece_base_becomes_a_gguf(tmp_path: Path) -> None:
    """As Llama 2's, TinyLlama's and the first MobileLLM's tokenizers."""
    model = checkpoint(tmp_path / "m", sentencepiece())
    (tmp_path / "out").mkdir()
    export(
        ExportConfig(name="files", formats=("gguf",), gguf_dtype="f32"),
        tmp_path / "out",
        model=model,
    )
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert told["agreement"]["model.gguf"]["greedy"] == 1.0 and told["unlike"]["model.gguf"] == []
