"""Training steps on a GPU: tokens a second, memory and the share of the device's products, over
networks, lengths, attention kernels, codes of the loss, compiling and micro-batches.

    python benchmarks/gpu.py                              # all cases, on the GPU here (make gpu)
    python benchmarks/gpu.py --list                       # their names
    python benchmarks/gpu.py --cases "r1-950m 2k" "r1-950m 2k, loss by liger"
    python benchmarks/gpu.py --device cpu --tiny --out /tmp/tiny   # its logic, in half a minute

Each case is a process of its own and one row: the median of STEPS steps after WARM ones, on other
random tokens each, through the training's own step (batches pinned, optimizer, clipping). `mfu` is
the model's operations (three times those of a forward pass, causal pairs of a document alone, none
for what is recomputed, a teacher's forward pass too) over the time and the maker's figure for dense
bfloat16 products. `ceiling` is the same for the step's products with weights by themselves, each
shape timed alone, a teacher's and recomputed ones too; `of_ceiling` their time in the step's.
`waits` counts how often the host waited for the GPU in a step, by torch's own warning. What does
not fit, or is not installed, is a row that says so. Writes gpu.json and gpu.md to --out.
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import torch

from pocketlm.estimate.devices import DEVICES
from pocketlm.model.batch import Batch
from pocketlm.model.costs import block_matrices, head_parameters, num_parameters
from pocketlm.model.kernels.varlen import flash_attention
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.presets import PRESETS
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.transformer import Transformer
from pocketlm.train.distill.teacher import live_teacher
from pocketlm.train.loop import train_step
from pocketlm.train.losses import LossFn, distillation_loss, next_token_loss
from pocketlm.train.optim import (
    OptimConfig,
    compute_settings,
    describe,
    make_optimizers,
    product_dtype,
)
from pocketlm.train.prefetch import ready
from pocketlm.train.vocab_blocks import tokens_at_a_time

WARM, STEPS, BATCHES = 4, 10, 4
RESULTS = Path(__file__).parent.parent / "docs" / "results"
# the shape of Llama 3.1 8B (its config.json), whose vocabulary is R1's
LLAMA_8B = replace(
    PRESETS["r1-140m"],
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=False,
    use_qk_norm=False,
)
NETWORKS = {**PRESETS, "llama-8b": LLAMA_8B}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row. rows: of a micro-batch, of which a step has one. packed: rows of documents that do
    not see each other, "sft" with labels for half of the tokens.
    """

    model: str
    seq_len: int
    rows: int
    packed: Literal["", "documents", "sft"] = ""
    teacher: str = ""
    scheme: str = ""
    attention: Literal["auto", "sdpa", "flex", "varlen"] = "auto"
    head_loss: Literal["auto", "chunked", "torch", "liger", "cce"] = "auto"
    optimizer: Literal["adamw", "muon"] = "adamw"
    compile: bool = True
    checkpoint: int = 0

    @property
    def tokens(self) -> int:
        return self.rows * self.seq_len


def all_cases() -> dict[str, Case]:
    """Every case by its name. Micro-batches are of 32,768 tokens, or one row."""
    cases: dict[str, Case] = {}
    for name in ("r1-140m", "r1-360m", "r1-950m"):
        base = Case(model=name, seq_len=2048, rows=16)
        cases[f"{name} 2k"] = base
        cases[f"{name} 2k, documents"] = replace(base, packed="documents")
        cases[f"{name} 4k"] = replace(base, seq_len=4096, rows=8)
        cases[f"{name} 4k, documents"] = replace(base, seq_len=4096, rows=8, packed="documents")
    base = cases["r1-950m 2k"]
    for attention in ("varlen", "flex"):
        cases[f"r1-950m 2k, {attention}"] = replace(base, attention=attention)
    for attention in ("sdpa", "flex"):
        changed = replace(base, packed="documents", attention=attention)
        cases[f"r1-950m 2k, documents, {attention}"] = changed
    for head_loss in ("torch", "liger", "cce"):
        cases[f"r1-950m 2k, loss by {head_loss}"] = replace(base, head_loss=head_loss)
    for rows in (4, 8, 32):
        cases[f"r1-950m 2k, {rows} rows"] = replace(base, rows=rows)
    cases["r1-950m 2k, not compiled"] = replace(base, compile=False)
    cases["r1-950m 2k, checkpointing"] = replace(base, checkpoint=1)
    cases["r1-950m 2k, muon"] = replace(base, optimizer="muon")
    pro = Case(model="pro", seq_len=4096, rows=8, packed="documents")
    cases["pro 4k, documents"] = pro
    cases["pro 32k, documents"] = replace(pro, seq_len=32_768, rows=1)
    cases["pro 32k, one document"] = replace(pro, seq_len=32_768, rows=1, packed="")
    cases["r1-950m 2k, distil from 8B"] = replace(base, rows=8, teacher="llama-8b")
    cases["pro 2k, int4_group32 from itself"] = Case(
        model="pro", seq_len=2048, rows=8, teacher="pro", scheme="int4_group32"
    )
    cases["pro 2k, int4_channel from itself"] = Case(
        model="pro", seq_len=2048, rows=8, teacher="pro", scheme="int4_channel"
    )
    cases["r1-950m 32k, sft"] = Case(model="r1-950m", seq_len=32_768, rows=1, packed="sft")
    return cases


def tiny(case: Case) -> Case:
    """The same on a few tokens; TINY networks are of the same kind."""
    return replace(case, seq_len=64 * (1 + (case.seq_len > 2048)), rows=2, compile=False)


def tiny_network(config: ModelConfig) -> ModelConfig:
    """Two layers of 64 channels and 512 words, local and global where the network has both."""
    return replace(
        config,
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        layer_types=config.layer_types[:2],
        sliding_window=config.sliding_window and 32,
    )


# ---- arithmetic ----


def causal_pairs(length: int, window: int | None) -> int:
    """Pairs of query and key in one document: each token sees itself and those before, `window` in
    all.
    """
    full = min(length, window or length)
    return full * (full + 1) // 2 + (length - full) * full


def forward_flops(config: ModelConfig, lengths: list[int], labels: int) -> int:
    """Operations of a forward pass over documents of these lengths, with logits for `labels`
    tokens.
    """
    windows = [config.window(n // config.layer_repeats) for n in range(config.applications)]
    pairs = sum(causal_pairs(length, window) for window in windows for length in lengths)
    products = 2 * sum(lengths) * block_matrices(config) * config.applications
    attention = 4 * config.num_attention_heads * config.head_dim * pairs
    return products + attention + 2 * labels * head_parameters(config)


def peak_flops(device_name: str) -> float | None:
    """What the maker says of dense bfloat16 products, or None for a device without a row in
    estimate/devices.py.
    """
    words = device_name.lower().replace(" ", "")
    return next((row.flops for name, row in DEVICES.items() if name in words), None)


def product_shapes(
    config: ModelConfig, tokens: int, labels: int, where: torch.device
) -> list[tuple[int, tuple[int, int, int]]]:
    """(how often, (rows, inputs, outputs)) of the products with weights of a forward pass."""
    D, F = config.hidden_size, config.intermediate_size
    q, kv = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    layers = config.applications
    shapes = [
        (layers, (tokens, D, q)),
        (2 * layers, (tokens, D, kv)),
        (layers, (tokens, q, D)),
        (2 * layers, (tokens, D, F)),
        (layers, (tokens, F, D)),
    ]
    chunk = tokens_at_a_time(labels, 2 * config.vocab_size, where)
    return [*shapes, (-(-labels // chunk), (chunk, D, config.vocab_size))]


# ---- measuring ----


def batches_of(case: Case, vocab_size: int) -> Callable[[int], list[Batch]]:
    """Random rows of BATCHES steps. Documents have an eighth of the longest to the longest: 2,048
    tokens, of conversations 4,096, or the row.
    """
    shape = (case.rows, case.seq_len)

    def make(step: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(step % BATCHES)
        ids = torch.randint(vocab_size, shape, generator=generator)
        if not case.packed:
            return [Batch(input_ids=ids, labels=ids)]
        longest = min(case.seq_len, 4096 if case.packed == "sft" else 2048)
        begins = torch.zeros(shape, dtype=torch.bool)
        for row in begins:
            at = 0
            while at < case.seq_len:
                row[at] = True
                at += int(torch.randint(longest // 8, longest, (), generator=generator))
        place = torch.arange(case.seq_len).expand(shape)
        positions = place - torch.where(begins, place, 0).cummax(1).values
        labels = ids
        if case.packed == "sft":  # prompts, the first half of each hundred tokens
            labels = ids.masked_fill(place % 100 < 50, -100)
        doc_ids = begins.long().cumsum(1)
        return [Batch(input_ids=ids, labels=labels, positions=positions, doc_ids=doc_ids)]

    return make


def document_lengths(batch: Batch) -> list[int]:
    if batch.doc_ids is None:
        return [batch.input_ids.shape[1]] * len(batch.input_ids)
    return [int(n) for row in batch.doc_ids for n in row.unique_consecutive(return_counts=True)[1]]


def network(name: str, small: bool, where: torch.device, seed: int = 0) -> Transformer:
    """Random weights, drawn on the device."""
    config = tiny_network(NETWORKS[name]) if small else NETWORKS[name]
    with torch.device("meta"):
        model = Transformer(config)
    model.to_empty(device=where)
    generator = torch.Generator(where).manual_seed(seed)
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=config.initializer_range, generator=generator)
        else:
            torch.nn.init.ones_(p)
    return model


def loss_of(case: Case, small: bool, optim: OptimConfig, where: torch.device) -> LossFn:
    """An 8B teacher has weights in bfloat16, as stock transformers would hold it."""
    if not case.teacher:
        return next_token_loss
    teacher = network(case.teacher, small, where, seed=1)
    if case.teacher not in PRESETS:
        teacher = teacher.to(torch.bfloat16)
    return distillation_loss(live_teacher(teacher, optim))


def measure(case: Case, where: torch.device, *, small: bool = False) -> dict[str, Any]:
    """The row of a case. ValueError or OutOfMemoryError where it cannot run."""
    optim = OptimConfig(
        lr=1e-4,
        num_steps=1,
        warmup_steps=0,
        final_lr_share=1.0,
        attention=case.attention,
        head_loss=case.head_loss,
        optimizer=case.optimizer,
        compile="yes" if case.compile else "no",
        checkpoint_every_n_blocks=case.checkpoint,
    )
    loss_fn = loss_of(case, small, optim, where)
    model = network(case.model, small, where).train()
    if case.scheme:
        prepare(model, SCHEMES[case.scheme]).to(where)
    model.compute = compute_settings(model, optim)
    optimizers = make_optimizers(model, optim)
    made = ready(batches_of(case, model.config.vocab_size), where)
    made_ahead = [made(step) for step in range(BATCHES)]

    def update(number: int) -> None:
        batch = made_ahead[number % BATCHES]
        train_step(model, optimizers, batch, loss_fn, 1e-4, 1.0, number)

    def step(number: int) -> float:
        started = perf_counter()
        update(number)
        settle(where)
        return perf_counter() - started

    first = step(0)
    for number in range(1, WARM if not small else 2):
        step(number)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    seconds = median(step(WARM + number) for number in range(STEPS if not small else 2))
    row = {
        **asdict(case),
        "parameters": num_parameters(model.config),
        "how": describe(model.compute, model.config, made_ahead[0][0], where),
        "seconds": seconds,
        "tokens_per_second": case.tokens / seconds,
        "first_seconds": first,
        "waits": waits(lambda: update(WARM), where),
        **memory(where),
    }
    flops = operations(case, model.config, made_ahead, small)
    products = step_products(case, model.config, made_ahead, small, where)
    return {**row, **shares(products, flops, seconds, where, optim)}


def operations(case: Case, config: ModelConfig, steps: list[list[Batch]], small: bool) -> float:
    """Of a step, on average over the steps' documents."""
    total = 0
    for (batch,) in steps:
        lengths, labels = document_lengths(batch), batch.num_labels
        total += 3 * forward_flops(config, lengths, labels)
        if case.teacher:
            teacher = NETWORKS[case.teacher]
            total += forward_flops(tiny_network(teacher) if small else teacher, lengths, labels)
    return total / len(steps)


# (forward passes, backward passes, (rows, inputs, outputs)) of products with weights
Products = list[tuple[float, float, tuple[int, int, int]]]


def step_products(
    case: Case, config: ModelConfig, steps: list[list[Batch]], small: bool, where: torch.device
) -> Products:
    """All of a step, with as many labels as the steps have on average: the network's, those of
    blocks that the backward pass computes once more, and a teacher's, which has no backward pass.
    """
    labels = round(sum(batch.num_labels for (batch,) in steps) / len(steps))
    *blocks, head = product_shapes(config, case.tokens, labels, where)
    applications = config.applications
    again = len(range(0, applications, case.checkpoint)) / applications if case.checkpoint else 0.0
    products: Products = [(count * (1 + again), count, shape) for count, shape in blocks]
    products.append((head[0], head[0], head[1]))
    if case.teacher:
        teacher = NETWORKS[case.teacher]
        teacher = tiny_network(teacher) if small else teacher
        shapes = product_shapes(teacher, case.tokens, labels, where)
        products += [(count, 0, shape) for count, shape in shapes]
    return products


def shares(
    products: Products, flops: float, seconds: float, where: torch.device, optim: OptimConfig
) -> dict[str, float | None]:
    """Operations a second, as a share of the device's, beside those of the products alone."""
    dtype = product_dtype(optim, where) or torch.float32
    alone = product_flops = 0.0
    for forward, backward, (m, k, n) in products:
        once, twice = product_seconds((m, k, n), dtype, where)
        alone += forward * once + backward * twice
        product_flops += (forward + 2 * backward) * 2 * m * k * n
    peak = peak_flops(torch.cuda.get_device_name(where)) if where.type == "cuda" else None
    return {
        "tflops": flops / seconds / 1e12,
        "mfu": peak and flops / seconds / peak,
        "ceiling": peak and product_flops / alone / peak,
        "of_ceiling": alone / seconds,
    }


def product_seconds(
    shape: tuple[int, int, int], dtype: torch.dtype, where: torch.device, repeats: int = 5
) -> tuple[float, float]:
    """(of a product with a weight, of the two of its backward pass), by themselves."""
    rows, inputs, outputs = shape
    x, weight, gradient = (
        torch.randn(n, dtype=dtype, device=where)
        for n in ((rows, inputs), (outputs, inputs), (rows, outputs))
    )
    forward, backward = [], []
    for _ in range(repeats):
        settle(where)
        started = perf_counter()
        torch.mm(x, weight.T)
        settle(where)
        forward.append(perf_counter() - started)
        started = perf_counter()
        torch.mm(gradient, weight)
        torch.mm(gradient.T, x)
        settle(where)
        backward.append(perf_counter() - started)
    return median(forward), median(backward)


def settle(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def waits(step: Callable[[], object], where: torch.device) -> int | None:
    """How often the host waited for the GPU in a step; None on a processor."""
    if where.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def memory(where: torch.device) -> dict[str, float | None]:
    """GiB that tensors took at most, and that the process kept for them."""
    if where.type != "cuda":
        return {"peak_gib": None, "reserved_gib": None}
    return {
        "peak_gib": torch.cuda.max_memory_allocated(where) / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved(where) / 2**30,
    }


# ---- the table ----


def machine(where: torch.device) -> dict[str, Any]:
    on_gpu = where.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(where) if on_gpu else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "flash_attention": flash_attention() if on_gpu else None,
    }


def run(name: str, case: Case, where: torch.device, small: bool) -> dict[str, Any]:
    """The row of a case, or one that says why there is none."""
    try:
        return {"case": name, **measure(case, where, small=small)}
    except torch.cuda.OutOfMemoryError:
        return {"case": name, **asdict(case), "problem": "out of memory"}
    # a kernel's, a compiler's, a library's
    except (ValueError, RuntimeError, ImportError) as failed:
        problem = (str(failed).splitlines() or [type(failed).__name__])[0]
        return {"case": name, **asdict(case), "problem": problem}


def in_process(name: str, where: torch.device) -> dict[str, Any]:
    command = [sys.executable, __file__, "--device", str(where), "--child", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"case"')]
    if lines:
        return json.loads(lines[-1])
    problem = f"the process ended with status {done.returncode}"
    return {"case": name, **asdict(all_cases()[name]), "problem": problem}


COLUMNS: dict[str, Callable[[Any], str]] = {
    "tokens_per_second": "{:,.0f}".format,
    "mfu": "{:.1%}".format,
    "ceiling": "{:.1%}".format,
    "of_ceiling": "{:.1%}".format,
    "peak_gib": "{:.1f}".format,
    "waits": "{}".format,
    "first_seconds": "{:.0f}".format,
}


def table(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The page: what ran where, and a line for each case."""
    facts = ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)
    heads = "case | computed in | tokens/s | MFU | products alone | their share of the step"
    lines = [
        "# Training steps on a GPU",
        "",
        f"`python benchmarks/gpu.py`, whose docstring says what each figure is: {facts}.",
        "",
        f"| {heads} | peak GiB | waits a step | first step, s |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        if "problem" in row:
            lines.append(f"| {row['case']} | {row['problem']} |" + " – |" * len(COLUMNS))
            continue
        cells = ["–" if row[name] is None else show(row[name]) for name, show in COLUMNS.items()]
        lines.append(f"| {row['case']} | {row['how']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=all_cases(), default=list(all_cases()))
    parser.add_argument("--list", action="store_true", help="names of the cases, and end")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, in one process")
    parser.add_argument("--out", type=Path, help="a folder; default docs/results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    where, cases = torch.device(arguments.device), all_cases()
    if arguments.list:
        print("\n".join(cases))
        return
    if where.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --device cpu --tiny tries the logic alone")
    if arguments.tiny and arguments.out is None:
        parser.error("--tiny needs --out: its figures mean nothing, and belong in no document")
    if arguments.child:
        print(json.dumps(run(arguments.child, cases[arguments.child], where, small=False)))
        return
    rows = []
    for name in arguments.cases:
        if arguments.tiny:
            rows.append(run(name, tiny(cases[name]), where, small=True))
        else:
            rows.append(in_process(name, where))
        print(json.dumps(rows[-1]), flush=True)
    write(arguments.out or RESULTS, machine(where), rows)


def write(out: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    (out / "gpu.md").write_text(table(about, rows))


if __name__ == "__main__":
    main()
