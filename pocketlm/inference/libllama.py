"""llama.cpp's own C functions, out of the `xllamacpp` wheel: a model, a context, the logits of
every token.

The wheel's Python interface is a server that gives no logits of a prompt; the compiled file inside
also exports llama.cpp's C interface, which does. It passes structures by value, so their layout
must be known: `_check_layout` compares every default value with what it must be, and refuses a
wheel whose layout differs.

Shapes: N tokens of one call, V vocabulary
"""

import ctypes
import importlib.util
import sys
from collections import deque
from ctypes import c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

KNOWN_WHEEL = "2026.10.11549"  # its layout is the one below
CACHE_TYPES = {"f32": 0, "f16": 1}  # ggml_type
# bytes handed through unseen: fields that a later llama.cpp appends keep their defaults
OPAQUE_TAIL = 64
LOG_WARNING = 3

_messages: deque[str] = deque(maxlen=8)  # llama.cpp's latest complaints, to be quoted in our errors


class ModelParams(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("devices", "tensor_buft_overrides")),
        *(
            (name, c_int32)
            for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")
        ),
        *(
            (name, c_void_p)
            for name in ("tensor_split", "progress_callback", "progress_user_data", "kv_overrides")
        ),
        *(
            (name, c_bool)
            for name in (
                "vocab_only",
                "check_tensors",
                "use_extra_bufts",
                "no_host",
                "no_alloc",
                "load_mtp",
            )
        ),
        ("tail", ctypes.c_ubyte * OPAQUE_TAIL),
    ]


class ContextParams(ctypes.Structure):
    _fields_ = [
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *(
            (name, c_int32)
            for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")
        ),
        *((name, c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *(
            (name, c_float)
            for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")
        ),
        *((name, c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        *((name, c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        *((name, c_int32) for name in ("type_k", "type_v")),
        ("moe_cache_size", c_size_t),
        *((name, c_void_p) for name in ("abort_callback", "abort_callback_data")),
        *(
            (name, c_bool)
            for name in (
                "embeddings",
                "offload_kqv",
                "no_perf",
                "op_offload",
                "swa_full",
                "kv_unified",
            )
        ),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
        ("tail", ctypes.c_ubyte * OPAQUE_TAIL),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        *((name, c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")),
    ]


MODEL_DEFAULTS = {  # all other fields are 0
    **{
        "n_gpu_layers": -1,
        "split_mode": 1,
        "load_mode": -1,
        "lazy_mode": 1,
        "use_extra_bufts": True,
    }
}
CONTEXT_DEFAULTS = {
    **{"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1},
    **{"n_threads": 4, "n_threads_batch": 4, "type_k": 1, "type_v": 1},
    **dict.fromkeys(("rope_scaling_type", "pooling_type", "attention_type", "flash_attn_type"), -1),
    **dict.fromkeys(
        ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "defrag_thold"),
        -1.0,
    ),
    **dict.fromkeys(("offload_kqv", "no_perf", "op_offload", "swa_full"), True),
}
FUNCTIONS = {  # name -> (what it returns, what it takes)
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_token_to_piece": (c_int32, [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits": (c_void_p, [c_void_p]),
    "llama_log_set": (None, [c_void_p, c_void_p]),
}


@ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
def _log(level: int, text: bytes, _: object) -> None:
    """Keep llama.cpp's complaints for our errors, and let nothing reach the terminal."""
    if level >= LOG_WARNING and text.strip():
        _messages.append(text.decode("utf-8", "replace").strip())


def complaints() -> str:
    """What llama.cpp said last, in one line, and forget it."""
    text = "; ".join(_messages) or "no reason given"
    _messages.clear()
    return text


@cache
def library() -> ctypes.CDLL:
    """llama.cpp's functions, typed; a ValueError names what to install when they are not there."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("xllamacpp*.so")]
    if sys.platform == "win32":
        raise ValueError(
            "the xllamacpp wheel for Windows does not export llama.cpp's functions; run .gguf "
            "files under WSL"
        )
    if not files:
        raise ValueError("running a .gguf needs llama.cpp: pip install 'pocketlm[llamacpp]'")
    functions = ctypes.CDLL(str(files[0]))
    for name, (result, arguments) in FUNCTIONS.items():
        if not hasattr(functions, name):
            raise ValueError(
                f"{files[0].name} does not export {name}; install xllamacpp=={KNOWN_WHEEL}"
            )
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    _check_layout(functions.llama_model_default_params(), MODEL_DEFAULTS)
    _check_layout(functions.llama_context_default_params(), CONTEXT_DEFAULTS)
    functions.llama_log_set(_log, None)
    return functions


def _check_layout(params: ctypes.Structure, expected: dict[str, float]) -> None:
    wrong = [
        name
        for name, *_ in params._fields_
        if name != "tail" and (getattr(params, name) or 0) != expected.get(name, 0)
    ]
    if wrong:
        raise ValueError(
            "this xllamacpp holds a llama.cpp whose parameters are laid out otherwise (at "
            f"{wrong[0]}); "
            f"install xllamacpp=={KNOWN_WHEEL}"
        )


class LoadedModel:
    """The weights of a file in llama.cpp, shared by any number of contexts. On the CPU only.

    vocab_only: without the weights, for its tokenizer.
    """

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        self.lib = library()
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers, params.vocab_only = 0, vocab_only
        complaints()
        self.handle = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise ValueError(f"{path}: llama.cpp cannot load it ({complaints()})")
        self.vocab = self.lib.llama_model_get_vocab(self.handle)
        self.vocab_size = int(self.lib.llama_vocab_n_tokens(self.vocab))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """The ids llama.cpp itself gives a text."""
        data = text.encode()
        ids = (c_int32 * (len(data) + 2))()
        count = self.lib.llama_tokenize(
            self.vocab, data, len(data), ids, len(ids), add_special, parse_special
        )
        if count < 0:  # a special token may be longer than its ids' room, never the other way round
            raise RuntimeError(f"llama.cpp gives {-count} ids for {len(data)} bytes")
        return list(ids[:count])

    def piece(self, i: int) -> bytes:
        """What llama.cpp shows for an id, special tokens too."""
        buffer = ctypes.create_string_buffer(64)
        size = self.lib.llama_token_to_piece(self.vocab, i, buffer, len(buffer), 0, True)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self.lib.llama_token_to_piece(self.vocab, i, buffer, len(buffer), 0, True)
        return buffer.raw[:size]

    def end_ids(self) -> set[int]:
        """The ids at which llama.cpp ends an answer."""
        return {i for i in range(self.vocab_size) if self.lib.llama_vocab_is_eog(self.vocab, i)}

    def close(self) -> None:
        if self.handle:
            self.lib.llama_model_free(self.handle)
            self.handle = None


def padded(cells: int) -> int:
    """As many cells as llama.cpp takes for the cache of so many tokens."""
    return -(-cells // 256) * 256


class Context:
    """Keys and values of `slots` independent sequences of up to `length` tokens each."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        slots: int,
        length: int,
        batch: int,
        threads: int,
        cache_type: str,
        in_common: bool = False,
    ) -> None:
        """in_common: one cache of `length` tokens for all slots, of which none is dropped."""
        self.lib, self.vocab_size, self.slots, self.batch = (
            model.lib,
            model.vocab_size,
            slots,
            batch,
        )
        self.length = padded(length)
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = self.length * (1 if in_common else slots), slots
        params.n_batch = params.n_ubatch = params.n_outputs_max = params.n_outputs_max_per_seq = (
            batch
        )
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = CACHE_TYPES[cache_type]
        if cache_type == "f32":
            # it rounds to half precision all the same: logits 2e-3 off, not 4e-6
            params.flash_attn_type = 0
        params.offload_kqv = params.op_offload = False
        # else local layers keep only their window
        params.swa_full = params.kv_unified = in_common
        complaints()
        self.handle = self.lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise MemoryError(
                f"llama.cpp cannot make room for {slots} x {self.length} tokens ({complaints()})"
            )
        self.memory = self.lib.llama_get_memory(self.handle)
        self.token, self.position, self.slot = (np.zeros(batch, np.int32) for _ in range(3))
        self.one, self.wanted = np.ones(batch, np.int32), np.zeros(batch, np.int8)
        # one slot a token
        self.slot_pointers = self.slot.ctypes.data + 4 * np.arange(batch, dtype=np.uintp)
        arrays = {
            "token": self.token,
            "pos": self.position,
            "n_seq_id": self.one,
            "logits": self.wanted,
        }
        pointers = {name: array.ctypes.data for name, array in arrays.items()}
        self.arguments = Batch(seq_id=self.slot_pointers.ctypes.data, **pointers)
        self.place, self.logits = (0, 0), np.zeros((0, self.vocab_size), np.float32)

    def forget(self, slot: int) -> None:
        """Empty one slot."""
        self.lib.llama_memory_seq_rm(self.memory, slot, -1, -1)

    def run(
        self,
        ids: np.ndarray | list[int],
        positions: np.ndarray | list[int],
        slots: list[int] | int,
        wanted: np.ndarray | bool,
    ) -> np.ndarray:
        """Logits float32 [tokens wanted, V] of tokens [N] at these positions of these slots; N <=
        batch.

        They are views of llama.cpp's own memory, valid until the next call.
        """
        if not self.handle:
            raise ValueError("this GgufModel was closed; open the file again")
        N = len(ids)
        self.token[:N], self.position[:N], self.slot[:N], self.wanted[:N] = (
            ids,
            positions,
            slots,
            wanted,
        )
        self.arguments.n_tokens = N
        _messages.clear()
        code = self.lib.llama_decode(self.handle, self.arguments)
        if code:
            raise RuntimeError(f"llama.cpp failed with code {code} ({complaints()})")
        # sum() takes 50 us where decode has emptied the caches
        count = int(np.count_nonzero(self.wanted[:N]))
        if not count:
            return np.zeros((0, self.vocab_size), np.float32)
        place = self.lib.llama_get_logits(self.handle), count
        if place != self.place:  # seldom: the buffer stays where it is
            content = (c_float * (count * self.vocab_size)).from_address(place[0])
            self.logits, self.place = np.ctypeslib.as_array(content).reshape(count, -1), place
        return self.logits

    def close(self) -> None:
        if self.handle:
            self.lib.llama_free(self.handle)
            self.handle = None
