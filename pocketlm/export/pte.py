"""Write a .pte file: the network and its KV cache, lowered to XNNPACK, for ExecuTorch.

`inference/executorch.py` opens it again. A runner that speaks ExecuTorch's llama convention takes
the file: one method `forward(tokens, input_pos)`, the facts about the model as constant methods
(`get_max_seq_len`, `get_eos_ids`, ...). The tokenizer is in a folder beside it.
"""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pocketlm.export.pte_network import PteNetwork
from pocketlm.inference.executorch import load_kernels, quiet, tokenizer_folder
from pocketlm.model.files import write_folder
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.quant import Scheme, scheme_of
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager


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
    (`Int8Cache`), which it also does where the model was trained for that. A model prepared for
    int4 weights and int8 activations is written so, one of full precision in float32. A tied
    embedding is stored twice, as the table and as the head, for XNNPACK keeps a layout of its own
    (4.5 bits a weight each). A linear layer that XNNPACK refuses is an error.
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
    """XNNPACK's partitioner, configured to keep some operators whole and to run the one pass this
    graph needs.

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
