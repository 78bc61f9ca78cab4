"""A teacher in few bytes: KL error and bytes a token of ours, of fixed k, and of a published
scheme; and reading speed.

    python benchmarks/teacher_cache.py models/SmolLM2-135M texts.jsonl --tokens 4096

Texts are .txt, or .jsonl with "text" on each line. Documents of even number are for the shares of
words without entry; all figures are of the others. Prints one JSON line for each scheme, then a
table.

KL: from the full distributions to those read back, nats a token. The gradient's error is by hidden
states, of forward KL with what is read back against forward KL with the full distributions, in
parts of the latter's size, for two students: the teacher at four bits, and the teacher without the
upper half of its layers.

The published scheme (DistillKit, "budget pick"): 50 likeliest words, the first log-probability in
bfloat16, the others by a least-squares fit of a + b t + c sqrt(t) in float32, ids packed. What is
left goes to the other words evenly, as published, or by our shares. "bucket": what is left goes to
the other words as the student has it, so they only learn their sum; its KL is that of the second
student.
"""

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketlm.data.batches import BatchPlan, ConversationRows, make_batches
from pocketlm.model.batch import document_key
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.model.quant import SCHEMES, prepare
from pocketlm.model.transformer import Transformer
from pocketlm.train.distill.cache import CacheWriter, cached_scores, open_cache
from pocketlm.train.distill.codec import decode, encode, id_bits, size_in_bytes
from pocketlm.train.distill.encode import encode_documents, estimate_tail_prior

WINDOW = 512
GAINS = (2e-2, 1e-2, 5e-3, 3e-3, 2e-3)
FIXED = (16, 32, 50, 100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument(
        "--tokens", type=int, default=4096, help="reported on; as many serve the shares"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    teacher, tokenizer = load_checkpoint(arguments.model)
    teacher = teacher.eval().requires_grad_(False)
    documents = [
        np.asarray(tokenizer.encode(text)[:WINDOW]) for text in read_texts(arguments.texts)
    ]
    documents = [ids for ids in documents if len(ids) == WINDOW][: 2 * (arguments.tokens // WINDOW)]
    shares = estimate_tail_prior(teacher, documents[::2], WINDOW, WINDOW)
    rows = compare(teacher, documents[1::2], shares)
    for row in rows:
        print(json.dumps(row), flush=True)
    print(json.dumps(reading(teacher, documents[1::2], shares, tokenizer.vocab_size)), flush=True)
    print(f"\n{'scheme':<34}{'B/token':>9}{'KL':>9}{'gradient, 4 bits':>18}{'half':>8}")
    for row in rows:
        told = (
            f"{row['bytes_per_token']:>9.1f}{row['kl']:>9.4f}"
            if row["kl"] is not None
            else f"{row['bytes_per_token']:>9.1f}{'':>9}"
        )
        print(
            f"{row['scheme']:<34}{told}{row['gradient_4_bits']:>18.3f}{row['gradient_half']:>8.3f}"
        )


def read_texts(files: list[Path]) -> list[str]:
    """Documents of all files, in turns."""
    found = []
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        found.append(
            [json.loads(line)["text"] for line in lines]
            if file.suffix == ".jsonl"
            else ["\n".join(lines)]
        )
    return [each[n] for n in range(max(map(len, found))) for each in found if n < len(each)]


def compare(teacher: Transformer, documents: list[np.ndarray], shares: Tensor) -> list[dict]:
    """A row for each scheme, over all tokens."""
    four_bits = prepare(copy.deepcopy(teacher), SCHEMES["int4_group32"])
    weight = teacher.head(torch.eye(teacher.config.hidden_size)).T  # [V, D]
    half = Half(teacher)
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for ids in documents:
            tokens = torch.from_numpy(ids)[None]
            states = [
                teacher.hidden(tokens, None)[0],
                four_bits.hidden(tokens, None)[0],
                half.hidden(tokens),
            ]
            for some in torch.arange(len(ids)).split(128):
                log_q, *log_ps = ((s[some] @ weight.T).log_softmax(-1) for s in states)
                for name, size, log_backs in schemes(log_q, shares, log_ps):
                    add(sums.setdefault(name, [0.0] * 7), size, log_q, log_backs, log_ps, weight)
    return [row(name, found) for name, found in sums.items()]


class Half:
    """A network without the upper half of its blocks: a student that has learnt something."""

    def __init__(self, model: Transformer) -> None:
        self.model = copy.deepcopy(model)
        self.model.model.layers = self.model.model.layers[: len(model.model.layers) // 2]
        object.__setattr__(self.model.config, "num_hidden_layers", len(self.model.model.layers))

    def hidden(self, ids: Tensor) -> Tensor:
        return self.model.hidden(ids, None)[0]


def add(
    sums: list[float],
    size: float,
    log_q: Tensor,
    log_backs: list[Tensor],
    log_ps: list[Tensor],
    weight: Tensor,
) -> None:
    """One piece's tokens, bytes, KL, and squared gradients: error and size for each student."""
    q = log_q.exp()
    sums[0] += len(q)
    sums[1] += size
    sums[2] += float((q * (log_q - log_backs[1])).sum())
    for place, log_back, log_p in zip((3, 5), log_backs, log_ps, strict=True):
        sums[place] += float(((log_back.exp() - q) @ weight).square().sum())
        sums[place + 1] += float(((log_p.exp() - q) @ weight).square().sum())


def row(name: str, sums: list[float]) -> dict:
    tokens, size, kl, *gradients = sums
    return {
        "scheme": name,
        "tokens": int(tokens),
        "bytes_per_token": round(size / tokens, 1),
        "kl": round(kl / tokens, 4) if np.isfinite(kl) else None,
        "gradient_4_bits": round((gradients[0] / gradients[1]) ** 0.5, 3),
        "gradient_half": round((gradients[2] / gradients[3]) ** 0.5, 3),
    }


def schemes(log_q: Tensor, shares: Tensor, log_ps: list[Tensor]):
    """(name, bytes of these tokens, logs [N, V] of what each student reads back) of each scheme."""
    tokens, vocab_size = log_q.shape
    bits, even = id_bits(vocab_size), torch.full_like(shares, -float(np.log(vocab_size)))
    for gain in GAINS:
        coded, _ = encode(log_q, shares, gain)
        back = decode(coded, shares).block(slice(0, vocab_size)).log_softmax(-1)
        yield f"ours, min_gain {gain:g}", size_in_bytes(tokens, len(coded.ids), bits), [back] * 2
        if gain == 5e-3:
            stored = torch.zeros_like(log_q, dtype=torch.bool)
            counts = torch.from_numpy(coded.counts.astype(int))
            stored[
                torch.arange(tokens).repeat_interleave(counts),
                torch.from_numpy(coded.ids.astype(int)),
            ] = True
            size = size_in_bytes(tokens, len(coded.ids), bits)
            yield "the same entries, rest even", size, [filled(stored, back, even)] * 2
            yield (
                "the same entries, rest a bucket",
                size,
                [filled(stored, back, log_p) for log_p in log_ps],
            )
            yield (
                "the same entries, rest dropped",
                size,
                [back.masked_fill(~stored, -torch.inf).log_softmax(-1)] * 2,
            )
    values, ids = log_q.topk(max(FIXED))
    for k in FIXED:
        stored = torch.zeros_like(log_q, dtype=torch.bool).scatter_(1, ids[:, :k], True)
        yield (
            f"fixed k {k}, 16-bit values, shares",
            tokens * (k * bits / 8 + 2 * k),
            [filled(stored, log_q, shares)] * 2,
        )
    fitted = published(values[:, :50])
    stored = torch.zeros_like(log_q, dtype=torch.bool).scatter_(1, ids[:, :50], True)
    size = tokens * (-(-50 * bits // 8) + 2 + 3 * 4)
    back = log_q.scatter(1, ids[:, :50], fitted)
    yield "published, 50, rest even", size, [filled(stored, back, even)] * 2
    yield "published, 50, rest by shares", size, [filled(stored, back, shares)] * 2


def published(values: Tensor) -> Tensor:
    """What the published scheme keeps of the 50 largest log-probabilities [N, 50]."""
    t = torch.arange(49, dtype=torch.float64)
    terms = torch.stack([t**0, t, t.sqrt()], -1)
    found = torch.linalg.lstsq(terms, values[:, 1:].double().T).solution.float()
    return torch.cat([values[:, :1].bfloat16().float(), (terms.float() @ found).T], -1)


def filled(stored: Tensor, logs: Tensor, others: Tensor) -> Tensor:
    """Log-probabilities: `logs` where stored, and elsewhere what is left of 1 in proportion to
    exp(others).
    """
    inside = logs.masked_fill(~stored, -torch.inf)
    left = (1 - inside.exp().sum(-1, keepdim=True)).clamp(min=1e-6).log()
    rest = others.expand_as(logs).masked_fill(stored, -torch.inf).log_softmax(-1) + left
    return torch.where(stored, logs, rest).log_softmax(-1)


def reading(teacher: Transformer, documents: list[np.ndarray], shares: Tensor, tokens: int) -> dict:
    """How fast a cache is written by this teacher, and read in rows of 2,048 tokens."""
    with tempfile.TemporaryDirectory() as scratch:
        facts = {"vocab_size": teacher.config.vocab_size, "tokens": tokens, "window": WINDOW}
        writer = CacheWriter(Path(scratch), facts)
        writer.write_tail_prior(shares.numpy())
        started = time.perf_counter()
        coded = encode_documents(
            teacher, documents, shares, window=WINDOW, batch_tokens=2048, min_gain=5e-3
        )
        taught = time.perf_counter() - started
        writer.write_shard(
            {document_key(ids): own for ids, own in zip(documents, coded, strict=True)}
        )
        writer.finish({})
        cache = open_cache(Path(scratch))
        rows = ConversationRows([(ids.tolist(), [True] * len(ids)) for ids in documents], 2048, 0)
        layout = BatchPlan(seq_len=2048, rows_per_step=1, micro_batch_size=1, seed=0)
        batches = make_batches(
            {"a": rows}, {"a": 1.0}, layout, separate_documents=True, name_documents=True
        )
        found = [batches(step)[0] for step in range(len(rows))]
        started = time.perf_counter()
        for _ in range(3):
            for batch in found:
                cached_scores(cache, batch)
        read = time.perf_counter() - started
        total = sum(len(ids) for ids in documents)
        size = cache.facts["bytes_per_token"]
    return {
        "written_tokens_per_second": round(total / taught),
        "read_tokens_per_second": round(3 * total / read),
        "bytes_per_token": round(size, 1),
        "gigabytes_for_1e9_tokens": round(size, 1),
    }


if __name__ == "__main__":
    main()
