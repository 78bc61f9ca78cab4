"""A .pte file: the network and its KV cache, lowered to XNNPACK, for ExecuTorch on a phone or in
Python.

`write_pte` writes one; `PteModel` opens it again and answers as `model/generate.py` does for a
checkpoint. A runner that speaks ExecuTorch's llama convention takes the file: one method
`forward(tokens, input_pos)`, the facts about the model as constant methods (`get_max_seq_len`,
`get_eos_ids`, ...). The tokenizer lies beside it.

Shapes: T tokens, V vocabulary
"""

import importlib.util
import logging
import os
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pocketlm.export.pte_network import PteNetwork
from pocketlm.model.files import write_folder
from pocketlm.model.quant import Scheme, scheme_of
from pocketlm.model.sampling import GREEDY, Sampling, sample
from pocketlm.model.stop_strings import ids_to_stop
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import ModelConfig, Transformer

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager

# root offset, "ET12", "eh00", bytes of: this header, the program, all before the segments, the
# segments
HEADER = struct.Struct("<4x4s4sIQQQ")
# constant methods PteModel asks for
FACTS = {"get_max_context_len", "get_max_seq_len", "get_vocab_size"}
SIZES = {"get_weight_bytes", "get_kv_bytes", "get_kv_bytes_per_token"}  # and would like to know


def write_pte(
    model: Transformer,
    tokenizer: Tokenizer,
    path: Path,
    *,
    context_length: int,
    int8_cache: bool = False,
) -> Path:
    """The path, now holding the program; its tokenizer is in the folder `<stem>.tokenizer` beside
    it.

    context_length: positions the cache has room for. int8_cache: it holds keys and values as int8
    (`Int8Cache`). A model prepared for int4 weights and int8 activations is written so, one of full
    precision in float32. A tied embedding is stored twice, as the table and as the head, for
    XNNPACK keeps a layout of its own (4.5 bits a weight each). A linear layer that XNNPACK refuses
    is an error.
    """
    chosen = scheme_of(model)
    refuse_unwritable(model.config, chosen, context_length)
    load_kernels()
    with quiet(), torch.no_grad():
        network = PteNetwork(model, context_length, chosen, int8_cache=int8_cache).eval()
        program = lower(network, facts(model, tokenizer, network))
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            program.write_to_file(file)
        with write_folder(tokenizer_folder(path)) as folder:
            tokenizer.save(folder)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def tokenizer_folder(path: Path) -> Path:
    """Where the tokenizer of a .pte file lies."""
    return path.with_name(f"{path.stem}.tokenizer")


def refuse_unwritable(config: ModelConfig, chosen: Scheme | None, context_length: int) -> None:
    """Nothing, or a ValueError where no model of this shape and scheme becomes a .pte, or
    ExecuTorch is not there.
    """
    longest = config.max_position_embeddings
    if not 8 <= context_length <= longest:
        raise ValueError(
            f"context_length {context_length} must be from 8 to the model's {longest} positions"
        )
    if importlib.util.find_spec("executorch") is None:
        raise ValueError("a .pte file needs ExecuTorch: pip install 'pocketlm[executorch]'")
    if chosen is not None and (
        chosen.bits != 4 or not chosen.int8_activations or not chosen.embedding
    ):
        raise ValueError(
            f"quantization {chosen.name!r} has no XNNPACK kernel: its 4-bit linear layers take "
            "int8 activations; "
            "use int4_group32, or a model of full precision"
        )


def facts(model: Transformer, tokenizer: Tokenizer, network: PteNetwork) -> dict[str, Any]:
    """What a runner asks a program first. `get_max_seq_len` is the longest single call, not the
    context.
    """
    kv_bytes, kv_bytes_per_token = network.kv_bytes
    return {
        "get_weight_bytes": network.weight_bytes,
        "get_kv_bytes": kv_bytes,
        "get_kv_bytes_per_token": kv_bytes_per_token,
        "get_max_seq_len": network.chunk,
        "get_max_context_len": network.context_length,
        "get_vocab_size": model.config.vocab_size,
        "get_n_layers": model.config.applications,
        **({} if tokenizer.bos_id is None else {"get_bos_id": tokenizer.bos_id}),
        "get_eos_ids": sorted(tokenizer.stop_ids),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }


def lower(network: PteNetwork, constants: dict[str, Any]) -> "ExecutorchProgramManager":
    """The program of a network, everything XNNPACK can take delegated to it.

    Its time is tracing, in proportion to layers, not to their size: on one core 14 s for 6 layers
    in float32 and 25 s in int4; three to four times that with the stock partitioners (see
    `_partitioner`). For 30 layers 61 s in float32, 122 s in int4, 159 s with an int8 cache too.
    Memory beyond the network's: 1.8 times the file in float32, 3 to 4 bytes a weight in int4.
    """
    from executorch.exir import (
        EdgeCompileConfig,
        ExecutorchBackendConfig,
        to_edge_transform_and_lower,
    )
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    inputs = (torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    length = torch.export.Dim("T", max=network.chunk)
    exported = torch.export.export(
        network, inputs, dynamic_shapes=({1: length}, None), strict=False
    )
    edge = to_edge_transform_and_lower(
        exported,
        partitioner=[_partitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        constant_methods=constants,
    )
    return edge.to_executorch(
        ExecutorchBackendConfig(
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            do_quant_fusion_and_const_prop=False,
        )
    )


def _partitioner() -> Any:
    """XNNPACK's partitioner, told beforehand what to keep whole and to run the one pass this graph
    needs.

    `ops_to_not_decompose` answers without a test of each node: so the graph is decomposed once, not
    three times, and a linear layer that XNNPACK leaves behind is an error. `dqlinear_partitioner`
    is its flag for "no more than linear layers": its other 16 passes serve convolutions and images,
    and each would retrace every piece.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
    from executorch.exir.backend.compile_spec_schema import CompileSpec
    from executorch.exir.backend.partitioner import DelegationSpec

    class OnePassPartitioner(XnnpackPartitioner):
        def ops_to_not_decompose(self, ep: Any) -> tuple[list[Any], None]:
            torchao = torch.ops.torchao
            quantized = [
                torchao.choose_qparams_affine,
                torchao.quantize_affine,
                torchao.dequantize_affine,
            ]
            return [torch.ops.aten.linear.default, *(op.default for op in quantized)], None

    partitioner = OnePassPartitioner()
    one_pass = [CompileSpec("dqlinear_partitioner", b"")]
    partitioner.delegation_spec = DelegationSpec(XnnpackBackend.__name__, one_pass)
    return partitioner


class PteModel:
    """A .pte file in ExecuTorch's Python runtime: one sequence at a time, the tokenizer from beside
    it.

    The cache is inside the program. Each answer starts again at position 0, where nothing of an
    earlier one is seen; answers that are streamed in turns take the cache from each other and read
    their text anew.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """threads: of ExecuTorch's pool, which all programs of the process share; its own choice by
        default.
        """
        path = Path(path)
        check_file(path)
        self.tokenizer = Tokenizer.load(tokenizer_folder(path))
        load_kernels()
        self._method, facts = _open(path, threads)
        self._facts = facts
        self.max_length = facts["get_max_context_len"]
        self.chunk = facts["get_max_seq_len"]
        self.vocab_size = facts["get_vocab_size"]
        self._lock = threading.Lock()
        self._owner: object = None  # the answer whose text the cache holds

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V], float32, of the token after each of `ids`."""
        self._check(ids)
        with self._lock:
            self._owner = None
            return torch.cat(list(self._read(ids, 0))).numpy()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: set[int],
        stop_strings: Sequence[str] = (),
        sampling: Sampling = GREEDY,
    ) -> list[list[int]]:
        """New ids for each prompt, the stop id left out. One prompt at a time.

        stop_strings: an answer ends with the id that completes one of them; `before_stop` of its
        text is before it.
        """
        for prompt in prompts:
            self._check(prompt)
        drawn = [replace(sampling, seed=sampling.seed + row) for row in range(len(prompts))]
        answers = [
            self._decode(prompt, max_new_tokens, stop_ids, own)
            for prompt, own in zip(prompts, drawn, strict=True)
        ]
        return [list(ids_to_stop(answer, self.tokenizer, stop_strings)) for answer in answers]

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling = GREEDY,
    ) -> Iterator[int]:
        """The same ids, one at a time, as they are made; `text_pieces` turns them into text and
        ends at stop strings.
        """
        self._check(prompt)
        yield from self._decode(prompt, max_new_tokens, stop_ids, sampling)

    def kv_bytes(self, length: int) -> int | None:
        """Bytes of the keys and values the program has room for, however long the text; None if the
        file does not say.
        """
        return self._facts.get("get_kv_bytes")

    def step_bytes(self, length: int) -> int | None:
        """Bytes that one more token must read after so many: weights, the global layers' cache so
        far, the local rings.
        """
        if not self._facts.keys() >= SIZES:
            return None
        weights, cache, token = (
            self._facts[name]
            for name in ("get_weight_bytes", "get_kv_bytes", "get_kv_bytes_per_token")
        )
        return weights + cache - token * (self.max_length - length)

    def close(self) -> None:
        """Free the program and its cache; the model is of no use afterwards."""
        self._method = None

    def _decode(
        self, prompt: Sequence[int], max_new_tokens: int, stop_ids: set[int], sampling: Sampling
    ) -> Iterator[int]:
        ids = list(prompt)
        owner = object()
        generators = sampling.generators(1)
        for _ in range(min(max_new_tokens, self.max_length - len(ids))):
            with self._lock:
                start = len(ids) - 1 if self._owner is owner else 0
                self._owner = None  # nobody's, should the run be interrupted
                for rows in self._read(ids[start:], start):
                    last = rows[-1:]
                self._owner = owner
            token = int(sample(last, sampling, generators, [ids]))
            if token in stop_ids:
                return
            yield token
            ids.append(token)

    def _read(self, ids: Sequence[int], start: int) -> Iterator[Tensor]:
        """Run the program on ids at positions `start` and up; the logits of each call, [up to
        `chunk`, V].
        """
        if self._method is None:
            raise ValueError("this PteModel was closed; open the file again")
        for first in range(0, len(ids), self.chunk):
            tokens = torch.tensor([ids[first : first + self.chunk]])
            yield self._method.execute((tokens, torch.tensor([start + first])))[0][0]

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise ValueError("an empty prompt: at least one token is needed to start from")
        if len(ids) > self.max_length:
            raise ValueError(
                f"{len(ids)} tokens exceed the {self.max_length} this .pte file was exported for; "
                "shorten the text or export with a longer context_length"
            )
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise ValueError(
                f"ids {min(ids)} to {max(ids)} are not all in the vocabulary of {self.vocab_size}"
            )


def check_file(path: Path) -> None:
    """Raise FileNotFoundError or a ValueError that names the file, if it is no whole ExecuTorch
    program.

    ExecuTorch checks the graph, but reads the weights behind it only when it runs; the header of a
    program that has weights says how long the file should be.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no .pte file at {path}")
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or head[4:6] != b"ET":
        raise ValueError(f"{path}: not an ExecuTorch program; write one with `pocketlm export`")
    _, extension, _, program_bytes, segments_start, segments_bytes = HEADER.unpack(head)
    size, whole = path.stat().st_size, max(program_bytes, segments_start + segments_bytes)
    if extension == b"eh00" and size < whole:
        raise ValueError(f"{path}: truncated, {size} of {whole} bytes; copy or export it again")


def stored_buffers(path: Path) -> tuple[list[bytes], list[bytes]]:
    """(constants of a program, weights of XNNPACK), each in the order in which the program comes to
    them.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    file = deserialize_pte_binary(path.read_bytes())
    constants = [buffer.storage for buffer in file.program.constant_buffer]
    weights = file.named_data.buffers if file.named_data else []
    # read from a file they are bytes, all of them; the other kinds are for writing
    return [c for c in constants if isinstance(c, bytes)], [
        w for w in weights if isinstance(w, bytes)
    ]


def _open(path: Path, threads: int | None) -> tuple[Any, dict[str, int]]:
    """(`forward`, the facts) of a program; what ExecuTorch refuses is a ValueError with the file's
    name.
    """
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    try:
        with quiet(), silent_stderr():
            if threads:
                # before a program that would hold on to the old one
                _unsafe_reset_threadpool(threads)
            program = Runtime.get().load_program(path)
            methods: dict[str, Any] = {n: program.load_method(n) for n in program.method_names}
            values = {name: methods[name].execute(()) for name in (FACTS | SIZES) & methods.keys()}
    except RuntimeError as error:
        raise ValueError(
            f"{path}: ExecuTorch cannot load it ({error}); export it again here"
        ) from None
    if (
        not values.keys() >= FACTS
        or "forward" not in methods
        or methods["forward"].metadata.num_inputs() != 2
    ):
        raise ValueError(
            f"{path}: no language model with its cache inside; write one with `pocketlm export`"
        )
    return methods["forward"], {name: int(value[0]) for name, value in values.items()}


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Nothing on file descriptor 2 meanwhile: there the C++ runtime tells how it counts the
    processors.
    """
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def load_kernels() -> None:
    """Register ExecuTorch's attention and 4-bit embedding, needed to write a program and to run
    one.
    """
    with quiet():
        try:
            import executorch.kernels.quantized  # noqa: F401
            import torchao.quantization.quant_primitives  # noqa: F401
            from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"a .pte file needs ExecuTorch: pip install 'pocketlm[executorch]' ({error})"
            ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings from ExecuTorch and torchao: about their own deprecations and absent CUDA
    kernels.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
