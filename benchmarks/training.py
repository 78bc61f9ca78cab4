"""Our training step beside transformers' Trainer, litgpt and a plain PyTorch loop: tokens a second
and the most memory held.

    python benchmarks/training.py 15m          # each reference in turns with ours: a line of JSON
                                               # each, and a table
    python benchmarks/training.py r1-140m --rounds 7
    python benchmarks/training.py r1-140m --against plain litgpt
    python benchmarks/training.py 15m --against ours-int4_group32 ours-int4_channel   # four bits
    python benchmarks/training.py 15m --against ours-documents ours-eager ours-recompute ours-sdpa
    python benchmarks/training.py 15m --against ours-int4_group32+eager --ours ours-eager
    python benchmarks/training.py 15m --profile    # where the time goes, by torch's profiler

The same network (Qwen3's layout, tied table), the same first weights, the same rows of random
tokens, products in bfloat16, weights and optimizer states in float32, fused AdamW, gradients
clipped to 1. Each contestant is a process of its own that takes a step on request; ours and a
reference go in turns, and a ratio is the median over rounds of (its seconds / ours). `first_loss`
shows that both compute the same. litgpt (`pip install litgpt`) is its GPT, compiled, and the lines
of its pretrain.py; transformers is its Trainer as it is and with torch_compile; attention is SDPA
in all.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.eval.hardware import memory_bytes, peak_memory_bytes
from pocketlm.model.batch import Batch
from pocketlm.model.costs import flops_of
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.presets import R1_140M
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.transformer import ComputeSettings, Transformer

LR, CLIP, SEED = 1e-3, 1.0, 0
DOCUMENT = 160  # tokens of one, in packed rows
# as Qwen3's QK-norm, so that all libraries have the network
WITH_WEIGHTS = replace(R1_140M, qk_norm_weight=True)
SHAPES = {
    "r1-140m": WITH_WEIGHTS,
    "15m": replace(
        WITH_WEIGHTS,
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
    ),
}
REFERENCES = ("plain", "plain-compiled", "trainer", "trainer-compiled", "litgpt")
ATTENTION = tuple(  # operators: blockwise, and torch's own
    f"{name}{way}"
    for name in (
        "pocketlm::blockwise_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
    )
    for way in ("", "_backward")
)
Step = Callable[[Tensor], float]  # rows [B, T + 1] -> loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument(
        "--against", nargs="+", default=REFERENCES, help="also ours, changed: see above"
    )
    parser.add_argument("--ours", default="ours", help="what they are compared with")
    parser.add_argument("--rows", type=int, default=2, help="of a step")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--busy", action="store_true", help="count processor time, where others use the machine too"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="shares of our step's time, and the speed of its products",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.profile:
        print(
            json.dumps(
                profiled(SHAPES[arguments.shape], arguments.ours, arguments.rows, arguments.seq_len)
            )
        )
        return
    if arguments.child:
        serve(arguments.child, SHAPES[arguments.shape], arguments.rows, arguments.seq_len)
        return
    table = [compare(name, arguments) for name in arguments.against]
    print(
        f"\n| {arguments.shape}, against | tokens/s: ours / its | memory: ours, GiB | its, GiB "
        "|\n|---|---|---|---|"
    )
    for row in table:
        print(
            f"| {row['against']} | {row['times_as_fast']:.2f} | {row['ours_gib']:.2f} | "
            f"{row['its_gib']:.2f} |"
        )


def compare(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours and one reference, each in its process, a step each in turns."""
    with child(arguments.ours, arguments) as ours, child(name, arguments) as other:
        clock = "cpu_seconds" if arguments.busy else "seconds"
        firsts = [tell(process, "step") for process in (ours, other)]  # compiles
        pairs = [
            [tell(process, "step")[clock] for process in (ours, other)]
            for _ in range(arguments.rounds + 1)
        ]
        ends = [tell(process, "memory") for process in (ours, other)]
    seconds = [median(times) for times in zip(*pairs[1:], strict=True)]
    row = {
        "shape": arguments.shape,
        "against": name,
        "times_as_fast": round(median(its / ours for ours, its in pairs[1:]), 3),
        "ours_tokens_per_second": round(arguments.rows * arguments.seq_len / seconds[0], 1),
        "its_tokens_per_second": round(arguments.rows * arguments.seq_len / seconds[1], 1),
        **{
            f"{who}_gib": round(end["peak"] / 2**30, 3)
            for who, end in zip(("ours", "its"), ends, strict=True)
        },
        **{
            f"{who}_libraries_gib": round(end["before"] / 2**30, 3)
            for who, end in zip(("ours", "its"), ends, strict=True)
        },
        **{
            f"{who}_first_loss": first["loss"]
            for who, first in zip(("ours", "its"), firsts, strict=True)
        },
        **{
            f"{who}_first_seconds": round(first["seconds"], 1)
            for who, first in zip(("ours", "its"), firsts, strict=True)
        },
        "rows": arguments.rows,
        "seq_len": arguments.seq_len,
        "threads": arguments.threads,
        "clock": clock,
    }
    print(json.dumps(row), flush=True)
    return row


def profiled(shape: ModelConfig, name: str, rows: int, seq_len: int) -> dict[str, float]:
    """Shares of the time of our step: products with weights, attention, and the products in it;
    GFLOP/s of the first.
    """
    step = ours(shape, name)
    steps = [torch.randint(shape.vocab_size, (rows, seq_len + 1)) for _ in range(5)]
    for batch in steps[:3]:  # compiles
        step(batch)
    with torch.profiler.profile() as profile:
        for batch in steps[3:]:
            step(batch)
    operators = profile.key_averages()
    total = sum(operator.self_cpu_time_total for operator in operators)
    products, inner = (
        sum(e.self_cpu_time_total for e in operators if e.key == op)
        for op in ("aten::mm", "aten::bmm")
    )
    attention = sum(e.cpu_time_total for e in operators if e.key in ATTENTION)
    flops = flops_of(shape, rows, seq_len)
    return {
        "products_share": round(products / total, 3),
        # two steps, microseconds
        "products_gflops": round(2 * 3 * (flops.products + flops.head) / products / 1e3),
        "attention_share": round(attention / total, 3),
        "attention_products_share": round(inner / total, 3),
    }


@contextmanager
def child(name: str, arguments: argparse.Namespace) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        __file__,
        arguments.shape,
        "--child",
        name,
        "--threads",
        str(arguments.threads),
    ]
    command += ["--rows", str(arguments.rows), "--seq-len", str(arguments.seq_len)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], word: str) -> dict[str, float]:
    """What the child answers to one word. Other lines of its output are its libraries'."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith('{"'):
            return json.loads(line)
    raise RuntimeError(f"a child ended before it answered to {word!r}; its error stands above")


def serve(name: str, shape: ModelConfig, rows: int, seq_len: int) -> None:
    """A contestant: a step for each line "step" of standard input, on rows that follow from the
    step's number.
    """
    vocab_size = shape.vocab_size

    def drawn(number: int) -> Tensor:
        return torch.randint(
            vocab_size, (rows, seq_len + 1), generator=torch.Generator().manual_seed(number)
        )

    if name.startswith("trainer"):
        run_trainer(shape, drawn, compiled=name.endswith("compiled"))
        return
    step = {"litgpt": litgpt, "plain": plain, "plain-compiled": plain_compiled}.get(
        name, lambda *_: ours(shape, name)
    )(shape)
    before, number = memory_bytes(), 0
    while word := sys.stdin.readline().strip():
        if word == "memory":
            answer(before=before, peak=peak_memory_bytes())
            continue
        batch = drawn(number)
        started, cpu_started = perf_counter(), process_time()
        loss = step(batch)
        answer(
            seconds=perf_counter() - started,
            cpu_seconds=process_time() - cpu_started,
            loss=round(loss, 4),
        )
        number += 1


def answer(**figures: float) -> None:
    print(json.dumps(figures), flush=True)


def ours(shape: ModelConfig, name: str) -> Step:
    """Ours as it trains where that takes long, compiled, or changed as `name` says."""
    from pocketlm.train.loop import train_step
    from pocketlm.train.losses import next_token_loss
    from pocketlm.train.optim import OptimConfig, make_optimizers

    how = name.removeprefix("ours").removeprefix("-")
    config = OptimConfig(lr=LR, num_steps=1, warmup_steps=0, final_lr_share=1.0, grad_clip=CLIP)
    model = Transformer(shape, seed=SEED).train()
    for scheme in SCHEMES.values():
        if how.split("+")[0] == scheme.name:
            prepare(model, scheme)
    optimizers = make_optimizers(model, config)
    model.compute = ComputeSettings(
        dtype=torch.bfloat16,
        attention="sdpa" if "sdpa" in how else "auto",
        checkpoint_every_n_blocks=int("recompute" in how),
        compile="eager" not in how,
    )

    def step(rows: Tensor) -> float:
        batch = Batch(input_ids=rows[:, :-1], labels=rows[:, 1:])
        if "documents" in how:
            place = torch.arange(batch.input_ids.shape[1]).expand(batch.input_ids.shape)
            batch = replace(batch, positions=place % DOCUMENT, doc_ids=place // DOCUMENT)
        return train_step(model, optimizers, [batch], next_token_loss, LR, CLIP, 0)[0]

    return step


def qwen3(shape: ModelConfig) -> Any:
    """The same network and first weights in transformers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
    )
    names += (
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
    )
    config = Qwen3Config(
        **{name: getattr(shape, name) for name in names},
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = Qwen3ForCausalLM(config)
    model.load_state_dict(Transformer(shape, seed=SEED).state_dict(), strict=False)
    return model.train()


def plain(shape: ModelConfig, *, compiled: bool = False) -> Step:
    model = qwen3(shape)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    network = torch.compile(model) if compiled else model

    def step(rows: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(input_ids=rows[:, :-1]).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def plain_compiled(shape: ModelConfig) -> Step:
    return plain(shape, compiled=True)


def litgpt(shape: ModelConfig) -> Step:
    """litgpt's GPT and the lines of its pretrain.py, with AdamW fused on the CPU too."""
    import lightning
    from litgpt.model import GPT, Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_qwen_3
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=shape.max_position_embeddings,
        padded_vocab_size=shape.vocab_size,
        n_layer=shape.num_hidden_layers,
        n_head=shape.num_attention_heads,
        n_query_groups=shape.num_key_value_heads,
        n_embd=shape.hidden_size,
        head_size=shape.head_dim,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=shape.rms_norm_eps,
        norm_qk=True,
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.intermediate_size,
        rope_base=int(shape.rope_theta),
    )
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    network = GPT(config)
    converted: dict[str, Tensor] = {}
    copy_weights_qwen_3(config, {}, converted, dict(Transformer(shape, seed=SEED).state_dict()))  # type: ignore[arg-type]
    network.load_state_dict(converted)
    network.transformer.wte.weight = network.lm_head.weight  # `tie_embeddings`
    model = fabric.setup(torch.compile(network))
    optimizer = fabric.setup_optimizers(
        torch.optim.AdamW(
            model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
    )

    def step(rows: Tensor) -> float:
        input_ids, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        logits = model(input_ids)
        loss = chunked_cross_entropy(logits, targets)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def run_trainer(shape: ModelConfig, drawn: Callable[[int], Tensor], *, compiled: bool) -> None:
    """The Trainer's own loop; a callback holds each step until it is requested. Its loader's time
    is not counted.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for number in range(10**9):
                for row in drawn(number):
                    yield {"input_ids": row[:-1], "labels": row[:-1], "shift_labels": row[1:]}

    class InTurns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            while (word := sys.stdin.readline().strip()) == "memory":
                answer(before=before, peak=peak_memory_bytes())
            if not word:
                sys.exit()
            self.started, self.cpu_started = perf_counter(), process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seconds = {
                "seconds": perf_counter() - self.started,
                "cpu_seconds": process_time() - self.cpu_started,
            }

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            answer(**self.seconds, loss=round(float(logs["loss"]), 4))

    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=len(drawn(0)),
            max_steps=10**6,
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_grad_norm=CLIP,
            weight_decay=0.1,
            adam_beta2=0.95,
            optim="adamw_torch_fused",
            bf16=True,
            use_cpu=True,
            torch_compile=compiled,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        model = qwen3(shape)
        before = memory_bytes()
        Trainer(model, settings, train_dataset=Rows(), callbacks=[InTurns()]).train()


if __name__ == "__main__":
    main()
