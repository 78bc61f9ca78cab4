"""Changes to valid files for `fuzz_border.py`: fields dropped, retyped, made extreme or added, and
bytes that are damaged.
"""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from pocketlm.model.config_fields import FIELDS, HONOURED_AS, OLDER, PRETRAINED

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
WINDOWS = ["sliding_attention", "full_attention"]
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        8,
        63,
        2**31,
        2**63,
        10**30,
        -(10**9),
        10**400,
        0.0,
        0.5,
        1.0,
        -2.5,
    ),
    *(
        1e-300,
        1e300,
        float("nan"),
        float("inf"),
        "",
        "320",
        "true",
        "null",
        "silu",
        "swish",
        "full_attention",
    ),
    *(
        "\ud800",
        "\x00",
        "a" * 300,
        "../x",
        "float16",
        [],
        [1],
        [0, 1],
        ["x"],
        [[]],
        [None],
        {},
        {"a": 1},
        {"": {}},
    ),
    {"__float__": "Infinity"},
)
ROPES: tuple[Any, ...] = (
    *(
        LLAMA3,
        {**LLAMA3, "rope_theta": 500.0},
        {**LLAMA3, "factor": 0.5},
        {"rope_theta": 777.0},
        {"type": "linear"},
    ),
    *(
        {"type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "default"},
        {},
    ),
    *(
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"factor": 8.0},
        None,
    ),
    *(
        {"type": "llama3", "rope_type": "default"},
        {"full_attention": {"rope_type": "default", "rope_theta": 9.0}},
    ),
    *(
        {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_theta": None},
        {"rope_type": None},
        {"type": None},
    ),
    {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"},
)
# what others write into config.json, and what matters where it stands
BESIDE: dict[str, tuple[Any, ...]] = {
    "rope_scaling": ROPES,
    "rope_parameters": ROPES,
    "rope_theta": (100.0, 1e6, 10, None),
    "partial_rotary_factor": (0.5, 1.0, None),
    "original_max_position_embeddings": (16, 32, None),
    "layer_types": (
        WINDOWS,
        ["full_attention"] * 2,
        ["attention"] * 2,
        ["chunked_attention"] * 2,
        [],
        None,
    ),
    "sliding_window": (3, 64, 4096, None, 0, -1),
    "use_sliding_window": (True, False),
    "max_window_layers": (0, 1, 2, 28, -3),
    "num_key_value_heads": (None, 1, 2, 3, 4),
    "head_dim": (None, 4, 8, 7),
    "tie_word_embeddings": (True, False),
    "attention_bias": (True, False),
    "mlp_bias": (True, False),
    "hidden_act": ("silu", "swish", "gelu", "relu"),
    "rms_norm_eps": (1e-5, 1e-2, 1, 0.0),
    "dtype": ("float16", "bfloat16", "banana"),
    "torch_dtype": ("bfloat16", "float33"),
    "pad_token_id": (-1, 0, 299, 300, None),
    "attention_chunk_size": (8, 64, None, 0),
    "no_rope_layers": ([1], [1, 1, 1], [1, 0], [], None, [2, 1]),
    "no_rope_layer_interval": (0, 1, 2, 4),
    "hidden_activation": ("gelu_pytorch_tanh", "gelu", "silu", None),
    "query_pre_attn_scalar": (8, 4, 256, 0, None),
    "final_logit_softcapping": (30.0, None),
    "attn_logit_softcapping": (50.0, None),
    "use_bidirectional_attention": (True, False, None),
    "rope_local_base_freq": (77.0, 10000, None, 0),
    "sliding_window_pattern": (1, 2, 6, 0),
    "moe_layers": ([], [0], [7], None),
    "model_type": ("llama", "qwen3", "qwen2", "mistral"),
    "is_causal": (False, True),
    "temperature": (0.5, "x"),
    "auto_map": ({"AutoModel": "modeling_x.X"}, None),
}


def changed(content: bytes, draw: random.Random, name: str) -> bytes | None:
    """The file's bytes after one to three changes; None: there is no such file."""
    if name == "chats.jsonl":
        lines = content.splitlines()
        line = draw.randrange(len(lines))
        lines[line] = changed(lines[line], draw, "row") or b""
        return b"\n".join(lines) + b"\n"
    if draw.random() < 0.01:
        return None
    value = json.loads(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        value = change_value(value, draw, name)
    text = json.dumps(value, ensure_ascii=draw.random() < 0.7)
    return (
        change_bytes(text, draw) if draw.random() < 0.25 else text.encode("utf-8", "surrogatepass")
    )


def change_value(value: Any, draw: random.Random, name: str) -> Any:
    """The JSON value with one change somewhere in it."""
    if name == "config.json" and isinstance(value, dict) and draw.random() < 0.6:
        return change_config(value, draw)
    if draw.random() < 0.03:
        return odd(draw)
    places = list(containers(value))
    if not places:
        return odd(draw)
    place = draw.choice(places[: 1 + len(places) // draw.choice((1, 4))])  # outer ones more often
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if not keys or draw.random() < 0.1:
        extra = odd(draw)
        place.update({draw.choice(("", "extra", "model_type", "type")): extra}) if isinstance(
            place, dict
        ) else place.append(extra)
        return value
    key, other = draw.choice(keys), draw.choice(keys)
    match draw.randrange(7):
        case 0:
            del place[key]
        case 1 | 2 | 3:
            place[key] = odd(draw)
        case 4:
            place[key], place[other] = place[other], place[key]
        case 5:
            place[key] = draw.choice(
                (
                    [place[key]],
                    {"value": place[key]},
                    str(place[key]),
                    [copy.deepcopy(place[key]) for _ in range(3)],
                )
            )
        case 6:
            place[key] = nudged(place[key], draw)
    return value


def odd(draw: random.Random) -> Any:
    """A value that hardly any field expects."""
    return copy.deepcopy(draw.choice(ODD))


def change_config(config: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A field of those that config.json may have becomes another plausible or odd value."""
    known = [
        *PRETRAINED,
        *OLDER,
        *HONOURED_AS,
        *(name for fields in FIELDS.values() for name in fields),
    ]
    if draw.random() < 0.7:
        name = draw.choice(list(BESIDE))
        return config | {name: copy.deepcopy(draw.choice(BESIDE[name]))}
    return config | {draw.choice(known): odd(draw)}


def nudged(value: Any, draw: random.Random) -> Any:
    """A value near the one that was there."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return draw.choice(
            (
                value + 1,
                value - 1,
                value * 2,
                -value,
                value / 2 if abs(value) < 1e300 else 0,
                str(value),
            )
        )
    if isinstance(value, str):
        return draw.choice((value + " ", value[:-1], value.upper(), value + "\ufeff", value * 2))
    return value


def containers(value: Any) -> Iterator[Any]:
    """The objects and lists of a JSON value, outer ones first."""
    waiting = [value]
    for item in waiting:
        if isinstance(item, dict | list):
            yield item
            waiting += item.values() if isinstance(item, dict) else item


def change_bytes(text: str, draw: random.Random) -> bytes:
    """The text in other bytes: cut, flipped, in another encoding, nested beyond measure, a field
    twice.
    """
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    at = draw.randrange(max(len(content), 1))
    match draw.randrange(10):
        case 0:
            return bytes(content[:at])
        case 1 if content:
            content[at] ^= 1 << draw.randrange(8)
        case 2:
            content[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 4))))
        case 3:
            return b"\xef\xbb\xbf" + bytes(content)
        case 4:
            return text.encode(draw.choice(("utf-16", "utf-32", "utf-8")), "surrogatepass")
        case 5:
            return bytes(content) + draw.choice((b"}", b"\x00", b"\n\n", b" {}", b"//"))
        case 6:
            deep = draw.choice((900, 100_000))
            return (
                b'{"a":' * deep + b"1" + b"}" * deep
                if draw.random() < 0.5
                else b"[" * deep + b"]" * deep
            )
        case 7 if text.startswith("{"):
            twice = draw.choice(
                (
                    '"model_type": "llama", ',
                    '"vocab_size": 1, ',
                    '"x": NaN, ',
                    '"x": 1' + "0" * 5000 + ", ",
                )
            )
            return ("{" + twice + text[1:]).encode("utf-8", "surrogatepass")
        case 8:
            return b"" if draw.random() < 0.5 else b" \n"
        case _:
            return bytes(content).replace(b", ", b",\r\n\t")
    return bytes(content)
