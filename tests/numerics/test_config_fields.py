"""config.json against transformers' own classes: every field known, every change honoured or
refused by its name.
"""

import dataclasses
import importlib.util
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.config_fields import DEFAULTS, FIELDS, HONOURED_AS, IDS, PRETRAINED, RESERVED
from pocketlm.model.json_shape import (
    DECIMAL,
    FLAG,
    NUMBER,
    OBJECT,
    OR_NULL,
    TEXT,
    TEXTS,
    WHOLE,
    WHOLES,
)

ROOT = Path(__file__).parents[2]
CLASSES = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "smollm3": transformers.SmolLM3Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "qwen3": transformers.Qwen3Config,
    "cwm": transformers.CwmConfig,
    "llama4_text": transformers.Llama4TextConfig,
}
KIND_OF = {
    frozenset({int}): WHOLE,
    frozenset({float}): DECIMAL,
    frozenset({int, float}): NUMBER,
    frozenset({bool}): FLAG,
    frozenset({str}): TEXT,
    frozenset({str, torch.dtype}): TEXT,
    frozenset({list[str]}): TEXTS,
    frozenset({list[int]}): WHOLES,
    frozenset({int, list[int]}): IDS,
}


def kind_of(hint: Any) -> str:
    """Our words for a field's annotation."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    parts = (
        set(typing.get_args(hint))
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else {hint}
    )
    null = OR_NULL if type(None) in parts else ""
    parts -= {type(None)}
    if any(part is dict or typing.get_origin(part) is dict for part in parts):
        return OBJECT + null
    if all(typing.get_origin(part) is typing.Literal for part in parts):
        return TEXT + null
    return KIND_OF[frozenset(parts)] + null


def fuzz_script() -> types.ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as for a script, whose neighbour it imports
    spec = importlib.util.spec_from_file_location(
        "fuzz_border", ROOT / "benchmarks" / "fuzz_border.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZ = fuzz_script()


@pytest.mark.parametrize("layout", CLASSES)
def test_the_tables_hold_every_field_of_the_installed_class_with_its_kind(layout: str) -> None:
    hints = typing.get_type_hints(CLASSES[layout], localns={"torch": torch})
    theirs = {
        field.name: kind_of(hints[field.name]) for field in dataclasses.fields(CLASSES[layout])
    }
    ours = {name: kind for name, (kind, _) in (PRETRAINED | FIELDS[layout]).items()}
    assert ours == theirs


@pytest.mark.parametrize("layout", CLASSES)
def test_the_defaults_are_those_of_the_installed_class(layout: str) -> None:
    default, theirs = DEFAULTS[layout], CLASSES[layout](hidden_size=24, num_attention_heads=2)
    assert default.rms_norm_eps == theirs.rms_norm_eps
    assert getattr(theirs, "head_dim", 12) == (12 if default.head_dim is None else default.head_dim)
    assert theirs.num_key_value_heads == (
        2 if default.num_key_value_heads is None else default.num_key_value_heads
    )
    theta = CLASSES[layout].default_theta  # of Gemma 3 one for each kind of layer
    assert (theta["global"] if isinstance(theta, dict) else theta) == default.rope_theta


def test_every_method_and_setting_of_the_classes_is_reserved() -> None:
    named = {name for kind in CLASSES.values() for name in dir(kind) if not name.startswith("_")}
    fields = {field.name for kind in CLASSES.values() for field in dataclasses.fields(kind)}
    older = {
        "model_type",
        "rope_scaling",
        "torch_dtype",
        "num_labels",
        "name_or_path",
        "output_attentions",
    }
    assert named - fields - older <= RESERVED | HONOURED_AS.keys()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return FUZZ.write_bases(tmp_path_factory.mktemp("border"))


def changed(bases: dict[str, Path], layout: str, folder: Path, **fields: Any) -> Path:
    """A copy of a small valid folder whose config.json has these fields; `...` takes one out."""
    folder.mkdir()
    for file in bases[layout].iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not ...})
    )
    return folder


HONOURED: list[tuple[str, dict[str, Any]]] = [
    # goes before rope_parameters, and takes its default theta
    ("llama", {"rope_scaling": FUZZ.LLAMA3}),
    ("llama", {"rope_scaling": FUZZ.LLAMA3, "rope_theta": 500.0}),
    ("llama", {"rope_scaling": {"type": "default", "factor": 8.0}, "rope_theta": 77.0}),
    (
        "llama",
        {
            "rope_parameters": {**FUZZ.LLAMA3, "rope_theta": 100.0},
            "original_max_position_embeddings": 32,
        },
    ),
    ("llama", {"rope_parameters": ..., "rope_theta": 333.0}),
    ("llama", {"rope_parameters": {"rope_theta": 50.0}, "rope_theta": 900.0}),
    ("qwen3", {"rope_parameters": None, "rope_scaling": {**FUZZ.LLAMA3, "rope_theta": 20.0}}),
    # its own default theta, 1e6
    ("cwm", {"rope_parameters": None, "rope_scaling": {"rope_type": "default"}}),
    ("llama4_text", {"rope_parameters": ...}),
    ("llama", {"rms_norm_eps": ...}),
    ("llama4_text", {"rms_norm_eps": ...}),
    (
        "llama",
        {"hidden_act": "swish", "attention_bias": ..., "mlp_bias": ..., "tie_word_embeddings": ...},
    ),
    ("llama", {"dtype": ..., "torch_dtype": "bfloat16", "use_cache": False}),
    ("qwen3", {"layer_types": None, "max_window_layers": 0}),
    ("qwen3", {"layer_types": None, "sliding_window": None}),
    ("qwen3", {"layer_types": None, "use_sliding_window": False}),
    ("qwen3", {"layer_types": ["full_attention"] * 2, "max_window_layers": 0}),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 2}),
    ("cwm", {"sliding_window": ...}),
    ("llama4_text", {"layer_types": None}),
    ("llama4_text", {"layer_types": ["full_attention"] * 2, "attention_chunk_size": 2}),
    ("llama4_text", {"no_rope_layers": [1, 1, 0]}),  # of more layers than there are
    ("llama4_text", {"attn_temperature_tuning": True, "floor_scale": 1, "attn_scale": 9.0}),
    ("llama", {"temperature": 0.1, "made_up": [1], "auto_map": {"AutoModel": "code.Class"}}),
]


@pytest.mark.parametrize(("layout", "fields"), HONOURED)
def test_a_field_that_is_read_changes_the_logits_as_in_transformers(
    layout, fields, bases, tmp_path
) -> None:
    folder = changed(bases, layout, tmp_path / "m", **fields)
    with FUZZ.quiet():
        assert FUZZ.compare_logits(folder, *load_checkpoint(folder)) is None


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope type 'linear'"),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope type 'dynamic'"),
    (
        "llama",
        {"rope_scaling": "linear"},
        "field rope_scaling is the text 'linear', an object or null is needed",
    ),
    (
        "llama",
        {"rope_parameters": {"rope_theta": None}},
        "field rope_parameters.rope_theta is null",
    ),
    (
        "qwen3",
        {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}},
        "differs by kind of layer",
    ),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"is_causal": False}, "is_causal"),
    ("llama", {"return_dict": False}, "return_dict"),
    ("llama", {"sliding_window": 4}, "sliding_window 4"),
    ("llama", {"attention_chunk_size": 4}, "attention_chunk_size 4"),
    ("llama", {"layer_types": ["sliding_attention"] * 2, "sliding_window": 4}, "layer_types"),
    ("llama", {"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config"),
    ("llama", {"transformers_weights": "other.safetensors"}, "transformers_weights"),
    ("llama", {"configuration_files": ["config.5.0.json"]}, "configuration_files"),
    ("llama", {"text_config": {"hidden_size": 16}}, "text_config"),
    ("llama", {"quantization_config": {}}, "quantization_config"),
    ("llama", {"validate_rope": 1}, "validate_rope"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"pad_token_id": 300}, "field pad_token_id is 300, outside of vocab_size"),
    ("llama", {"num_attention_heads": 5}, "num_attention_heads"),
    ("llama", {"dtype": "float33"}, "field dtype is the text 'float33'"),
    ("qwen3", {"layer_types": []}, "layer_types names 0 layers"),
    ("qwen3", {"use_sliding_window": False}, "sliding_window must be set"),
    (
        "qwen3",
        {"num_key_value_heads": ...},
        "num_attention_heads 4 is not a multiple of num_key_value_heads 32",
    ),
    ("cwm", {"num_key_value_heads": None}, "field num_key_value_heads is null"),
    ("llama4_text", {"head_dim": ...}, "the weights do not fit"),  # its class takes 128
    ("llama4_text", {"moe_layers": None}, "a mixture of experts"),
    ("llama4_text", {"moe_layers": None, "num_local_experts": 0}, "a mixture of experts"),
    ("llama4_text", {"no_rope_layers": [1]}, "no_rope_layers"),
    ("llama4_text", {"no_rope_layers": [1, 1, 1], "layer_types": None}, "no_rope_layers"),
    ("llama4_text", {"attention_chunk_size": None}, "attention_chunk_size null"),
]


@pytest.mark.parametrize(("layout", "fields", "message"), REFUSED)
def test_a_field_that_cannot_be_honoured_is_refused_by_its_name(
    layout, fields, message, bases, tmp_path
) -> None:
    folder = changed(bases, layout, tmp_path / "m", **fields)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value) and str(caught.value).count(str(folder)) == 1


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("config.json", 400),
        ("model.safetensors.index.json", 80),
        ("tokenizer.json", 150),
        ("tokenizer_config.json", 120),
        ("generation_config.json", 60),
        ("special_tokens_map.json", 60),
        ("chats.jsonl", 120),
    ],
)
def test_no_changed_file_is_read_otherwise_than_by_transformers_or_ends_in_a_traceback(
    name, inputs, tmp_path
) -> None:
    tally = FUZZ.fuzz(tmp_path, inputs, 11, [name])
    assert not tally.faults, "\n".join(tally.faults)
    loaded = tally.counts[name, "loaded, as transformers"] + tally.counts[name, "loaded"]
    assert loaded > inputs // 20 and tally.counts[name, "refused"] > inputs // 5
