"""DataInf beside what it stands for: its formula with explicit gradients, the exact inverse of the
damped Fisher matrix, the cheap score, and the transformation of dattri (0.3.0) where that package
is there; and what it costs.

python benchmarks/datainf.py agreement
python benchmarks/datainf.py cost --rows 4 --length 128
"""

import argparse
import importlib
import importlib.util
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pocketlm.data.datainf import (
    datainf_directions,
    mean_gradients,
    sample_products,
    score_directions,
)
from pocketlm.data.influence import influence
from pocketlm.data.rank_correlation import spearman
from pocketlm.model.batch import Batch
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.presets import PRESETS
from pocketlm.model.transformer import Transformer
from pocketlm.train.losses import next_token_loss

V, D, LENGTH = 50, 8, 12
DAMPING = 0.1
NET = ModelConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    max_position_embeddings=32,
    rope_theta=1e4,
    initializer_range=0.3,
)


def drawn(rows: int, seed: int, words: int = V, length: int = LENGTH) -> Batch:
    """Rows of a language in which each token mostly sets the next one, other for each range of
    words.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(words, (rows, length + 1), generator=generator)
    follows = torch.randperm(words, generator=torch.Generator().manual_seed(words))
    for place in range(1, length + 1):
        certain = torch.rand(rows, generator=generator) < 0.7
        ids[:, place] = torch.where(certain, follows[ids[:, place - 1]], ids[:, place])
    return Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])


def trained(model: Transformer, steps: int) -> Transformer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = drawn(16, 1000 + step)
        loss = next_token_loss(model, batch) / batch.num_labels
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def explicit(model: Transformer, batch: Batch) -> Tensor:
    """[n, M, V D] in float64: of each row's mean loss, by autograd alone."""
    head = [] if model.lm_head is None else [model.lm_head.weight]
    rows = []
    for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
        loss = F.cross_entropy(model(ids[None])[0], labels)
        by_matrix = torch.autograd.grad(loss, [model.model.embed_tokens.weight, *head])
        rows.append(torch.stack([gradient.flatten() for gradient in by_matrix]))
    return torch.stack(rows).double()


def dense_scores(samples: Tensor, probe: Tensor, candidates: Tensor) -> dict[str, Tensor]:
    """[n] by the formula, sample by sample, and by the exact inverse; samples and candidates
    [n, M, d], probe [M, d].
    """
    formula, exact = torch.zeros_like(probe), torch.zeros_like(probe)
    for matrix, v in enumerate(probe):
        rows = samples[:, matrix]
        damping = DAMPING * rows.square().sum(1).mean() / rows.shape[1]
        for g in rows:
            formula[matrix] += (v - (v @ g) / (damping + g @ g) * g) / damping / len(rows)
        fisher = rows.T @ rows / len(rows) + damping * torch.eye(rows.shape[1]).double()
        exact[matrix] = torch.linalg.solve(fisher, v)
    return {
        "formula": (candidates * formula).sum((1, 2)),
        "exact inverse": (candidates * exact).sum((1, 2)),
        "plain product": (candidates * probe).sum((1, 2)),
    }


def dattri_scores(samples: Tensor, probe: Tensor, candidates: Tensor) -> Tensor | None:
    """[n], with h by dattri's DataInf attributor on these gradients, matrix by matrix; None without
    the package.
    """
    if importlib.util.find_spec("dattri") is None:
        return None
    kind = importlib.import_module("dattri.algorithm.influence_function").IFAttributorDataInf
    total = candidates.new_zeros(len(candidates), dtype=torch.float32)
    for matrix, v in enumerate(probe.float()):
        rows = samples[:, matrix].float()
        attributor = kind.__new__(kind)  # its task would take gradients of all weights
        attributor.regularization = float(DAMPING * rows.square().sum(1).mean() / rows.shape[1])
        attributor._cached_train_reps = {0: rows}
        attributor._get_layer_wise_reps = lambda checkpoint, query: (query,)
        total += candidates[:, matrix].float() @ attributor.transform_test_rep(0, v[None])[0]
    return total


def print_agreement(num_samples: int, num_candidates: int) -> None:
    print(f"V {V}, D {D}, {num_samples} samples of {LENGTH} tokens, {num_candidates} candidates")
    print("error: the largest over the largest score; ranks: Spearman's, with the exact inverse's")
    print("matrices steps  error to formula  error to dattri  ranks: datainf  plain product  adam")
    samples, candidates = drawn(num_samples, 1), drawn(num_candidates, 2)
    probes = {"probe": [drawn(32, 3, words=25)]}
    for tied in (True, False):
        for steps in (0, 300):
            model = trained(Transformer(replace(NET, tie_word_embeddings=tied), seed=3), steps)
            probe = explicit(model, probes["probe"][0]).mean(0)
            by_row, wanted = explicit(model, samples), explicit(model, candidates)
            dense = dense_scores(by_row, probe, wanted)
            directions = score_directions("datainf", model, probes, [samples])
            scores = influence(model, candidates, directions)[:, 0].double()
            cheap = score_directions("adam", model, probes, [])
            adam = influence(model, candidates, cheap)[:, 0].double()
            exact, other = dense["exact inverse"], dattri_scores(by_row, probe, wanted)
            errors = [
                "not installed" if values is None else f"{relative_error(scores, values):.1e}"
                for values in (dense["formula"], other)
            ]
            ranks = [spearman(values, exact) for values in (scores, dense["plain product"], adam)]
            first, second, third = ("none" if rank is None else f"{rank:.3f}" for rank in ranks)
            print(
                f"{'one' if tied else 'two':8} {steps:5}  {errors[0]:>16} {errors[1]:>16}"
                f" {first:>15} {second:>14} {third:>5}"
            )


def relative_error(values: Tensor, expected: Tensor) -> float:
    return float((values - expected).abs().max() / expected.abs().max())


def print_cost(rows: int, length: int, layers: int | None, repeats: int) -> None:
    shape = PRESETS["r1-140m"]
    shape = replace(shape, num_hidden_layers=layers or shape.num_hidden_layers)
    model = Transformer(shape)
    batch = drawn(rows, 1, words=shape.vocab_size, length=length)
    probes = {"probe": [batch]}
    model.requires_grad_(False)
    gradients = mean_gradients(model, probes)
    passes = {
        "score": lambda: influence(model, batch, gradients),
        "norms and products (pass 1)": lambda: sample_products(model, batch, gradients),
        "direction (passes 1 and 2)": lambda: datainf_directions(model, [batch], gradients),
    }
    print(
        f"R1-140M with {shape.num_hidden_layers} layers, {rows} x {length} tokens, "
        f"{torch.get_num_threads()} threads; processor seconds, best of {repeats}"
    )
    for name, function in passes.items():
        times = []
        for _ in range(repeats):
            began = time.process_time()
            function()
            times.append(time.process_time() - began)
        print(f"{name:30} {np.min(times):8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("agreement", "cost"))
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    if given.what == "agreement":
        print_agreement(given.samples, given.candidates)
    else:
        print_cost(given.rows, given.length, given.layers, given.repeats)


if __name__ == "__main__":
    main()
