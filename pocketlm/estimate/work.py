"""A training as the plan sees it: so many steps of rows through a network, and what that computes,
holds and writes.
"""

from dataclasses import dataclass

from pocketlm.model.costs import flops_of, num_parameters
from pocketlm.model.model_config import ModelConfig
from pocketlm.model.quant import scheme
from pocketlm.train.checkpoint import SaveConfig
from pocketlm.train.memory import TrainingMemory, training_memory
from pocketlm.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class Work:
    """One training. masked: documents of a row are kept apart. scheme: of training for four bits.
    copies: runs like it. trained: weights beside frozen ones (LoRA); None: all are trained.

    save: None where no states are written.
    """

    model: ModelConfig
    optim: OptimConfig
    seq_len: int
    rows_per_step: int
    micro_batch_size: int
    masked: bool = False
    teacher: ModelConfig | None = None
    scheme: str | None = None
    copies: int = 1
    save: SaveConfig | None = None
    trained: int | None = None

    @property
    def tokens(self) -> int:
        return self.copies * self.optim.num_steps * self.rows_per_step * self.seq_len

    @property
    def micro_batches(self) -> int:
        """Of a step, of all ranks together."""
        return self.rows_per_step // self.micro_batch_size

    def micro_batch_flops(self) -> int:
        """Of the forward and the backward pass, and the teacher's forward pass.

        Every token counts as a label, and every row as one document; in fine-tuning there is less
        of both.
        """
        rows = self.micro_batch_size
        student = flops_of(self.model, rows, self.seq_len).training(recomputed=self.recomputed)
        return student + (flops_of(self.teacher, rows, self.seq_len).forward if self.teacher else 0)

    @property
    def recomputed(self) -> float:
        """Share of the blocks that the backward pass recomputes (activation checkpointing)."""
        every = self.optim.checkpoint_every_n_blocks
        return 1 / every if every else 0.0

    @property
    def flops(self) -> int:
        """Of all steps of all copies."""
        return self.copies * self.optim.num_steps * self.micro_batches * self.micro_batch_flops()

    def ranks(self, count: int) -> int:
        """How many of `count` devices a step's micro-batches divide among evenly."""
        return max(
            n
            for n in range(1, max(1, min(count, self.micro_batches)) + 1)
            if self.micro_batches % n == 0
        )

    def memory(self, device: str, ranks: int, per_machine: int = 8) -> TrainingMemory:
        """Of one rank, weights and states sharded as in training."""
        return training_memory(
            self.model,
            self.optim,
            rows=self.micro_batch_size,
            seq_len=self.seq_len,
            accumulates=self.micro_batches > ranks,
            masked=self.masked,
            saves=self.save is not None,
            teacher=self.teacher,
            on_grid=self.scheme is not None,
            device=device,
            shards=self.shards(ranks, per_machine),
            trained=self.trained,
        )

    def shards(self, ranks: int, per_machine: int) -> int:
        """How many ranks hold the model's weights together: those of a machine, or all
        (train/distributed/fsdp.py).
        """
        return (
            ranks
            if self.optim.shard_over == "all" or ranks % per_machine
            else min(ranks, per_machine)
        )

    @property
    def checkpoint_bytes(self) -> int:
        """model.safetensors: float32 weights, and the scales that were learned."""
        return 4 * num_parameters(self.model) + scale_bytes(self.model, self.scheme)

    @property
    def resume_bytes(self) -> int:
        """Most of resume/: weights and the optimizer's states, as many times as are kept, and once
        while written.
        """
        need = self.memory("cpu", 1)
        one = need.weights + need.states + 3 * scale_bytes(self.model, self.scheme)
        if self.save is None:
            return one
        steps, every = self.optim.num_steps, self.save.every_steps
        written = -(-steps // every)
        milestones = steps // self.save.keep_every_steps if self.save.keep_every_steps else 0
        return one * min(written, self.save.keep_last + 1 + milestones)


def scale_bytes(model: ModelConfig, name: str | None) -> int:
    """Of a scheme's learned scales: one float32 for each output of each layer, and for each word of
    the table.
    """
    if name is None or not scheme(name).learned_ranges:
        return 0
    heads = model.num_attention_heads + 2 * model.num_key_value_heads
    outputs = heads * model.head_dim + 2 * model.hidden_size + 2 * model.intermediate_size
    tables = model.vocab_size * (1 if model.tie_word_embeddings else 2)
    return 4 * (model.num_hidden_layers * outputs + tables)
