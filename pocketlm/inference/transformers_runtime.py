"""Any causal language model that stock transformers computes, as a Runtime: families that our own
network does not hold.

Shapes: B prompts, T tokens, R rows that go on, V vocabulary
"""

import contextlib
import inspect
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketlm.inference.continuations import Scorer
from pocketlm.inference.decode import RowDecoder, decode
from pocketlm.inference.runtime import Memory, check_ids, log_probs_from
from pocketlm.inference.sampling import Sampling
from pocketlm.inference.torch_runtime import LOGITS_BYTES, left_padded
from pocketlm.inference.transformers_scorer import transformers_scorer
from pocketlm.model.checkpoint import quantization_of, raw_config
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.weights import ADAPTER_CONFIG, weight_files

# what config.json calls the longest text; the first that is there counts
LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
UNSAID_LENGTH = 4096  # where none is there, as in a state-space model; our choice


class TransformersModel(RowDecoder):
    """A Hugging Face folder as a Runtime, computed by the library's own network in float32.

    Nothing is fetched, no code of the folder runs, and weights are read from safetensors alone.
    context_length: the longest text, config.json's own by default. device: the processor by
    default. Threads: forward passes wait for each other, for some families change their rotary
    table in one; answers are independent.
    """

    def __init__(
        self, folder: Path, *, context_length: int | None = None, device: torch.device | None = None
    ) -> None:
        folder = Path(folder)
        refuse_folder(folder)
        self.tokenizer = Tokenizer.load(folder)
        self._model: Any = load_network(folder).to(device or "cpu")
        self.vocab_size = int(self._model.get_input_embeddings().weight.shape[0])
        greatest = max([*self.tokenizer.stop_ids, self.tokenizer.vocab_size - 1])
        if greatest >= self.vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has ids up to {greatest}, the embedding only "
                f"{self.vocab_size} rows; this tokenizer belongs to another checkpoint"
            )
        self.max_length = context_length or longest_text(self._model.config)
        self._takes = set(inspect.signature(self._model.forward).parameters)
        self._cache_name = "cache" if "cache" in self._takes else "past_key_values"
        self._lock = threading.Lock()
        try:
            with quiet():
                _, cache = self._run(torch.zeros(1, 1, dtype=torch.long, device=self.device))
        except (TypeError, KeyError):
            raise ValueError(
                f"{folder}: transformers' {type(self._model).__name__} answers without a cache, "
                "which is not read here; give a model of another family"
            ) from None
        self._layers = attention_layers(cache)

    @property
    def device(self) -> torch.device:
        return self._model.get_input_embeddings().weight.device

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V], float32, of the token after each of `ids`."""
        self._check(ids)
        logits, _ = self._run(torch.tensor([list(ids)], device=self.device))
        return logits[0].float().cpu().numpy()

    def log_probs(self, ids: Sequence[int]) -> np.ndarray:
        """Log-probability [T - 1] of each id but the first.

        In chunks through the cache; in one pass where the cache is more than keys and values, for a
        recurrent state is read token by token or from its beginning only.
        """
        self._check(ids)
        chunk_tokens = max(1, LOGITS_BYTES // (4 * self.vocab_size)) if self._layers else len(ids)
        return log_probs_from(self._chunks(ids, chunk_tokens), ids)

    def _chunks(self, ids: Sequence[int], chunk_tokens: int) -> Iterator[Tensor]:
        cache = None
        for start in range(0, len(ids), chunk_tokens):
            chunk = list(ids[start : start + chunk_tokens])
            logits, cache = self._run(torch.tensor([chunk], device=self.device), cache=cache)
            yield logits[0]
            del logits

    def scorer(self) -> Scorer:
        """The texts of a tree as a batch after what they have in common."""
        return transformers_scorer(self._run, self.device, self.vocab_size, bool(self._layers))

    def memory(self, length: int) -> Memory:
        """Bytes of the keys and values that the library keeps, and of the weights a token reads.

        None where the cache is more than keys and values. Every weight counts but a table that is
        no head; of experts a token reads fewer.
        """
        if not self._layers:
            return Memory(kv_bytes=None, step_bytes=None)
        kv_bytes = sum(
            token_bytes * (length if window is None else min(length, window))
            for token_bytes, window in self._layers
        )
        table = self._model.get_input_embeddings().weight
        head = self._model.get_output_embeddings()
        unread = 0 if head is None or head.weight is table else table.nbytes
        weights = sum(weight.nbytes for weight in self._model.parameters())
        return Memory(kv_bytes=kv_bytes, step_bytes=weights - unread + kv_bytes)

    def close(self) -> None:
        """Drop the weights."""
        self._model = None

    def _check(self, ids: Sequence[int]) -> None:
        if self._model is None:
            raise ValueError("this TransformersModel was closed; open the folder again")
        check_ids(
            ids,
            vocab_size=self.vocab_size,
            max_length=self.max_length,
            limit=f"the model's {self.max_length}",
            advice="open a model with a longer context",
        )

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling,
        stop_strings: Sequence[str] = (),
    ) -> Iterator[tuple[int, int]]:
        """(row, new id) pairs. All are one batch, padded on the left; one after the other where
        the cache is more than keys and values, for padding would enter a recurrent state.
        """
        rows = range(len(prompts))
        batches = [list(rows)] if self._layers else [[row] for row in rows]
        for batch in batches if prompts else ():
            seeded = replace(sampling, seed=sampling.seed + batch[0])
            chosen = [prompts[row] for row in batch]
            for place, token in self._decode_batch(
                chosen, max_new_tokens, stop_ids, seeded, stop_strings
            ):
                yield batch[place], token

    def _decode_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: set[int],
        sampling: Sampling,
        stop_strings: Sequence[str] = (),
    ) -> Iterator[tuple[int, int]]:
        """(row, new id) pairs."""
        for prompt in prompts:
            self._check(prompt)
        cache: Any = None
        padding: tuple[Tensor, Tensor] | None = None  # (mask, positions), where lengths differ

        def run(ids: Tensor) -> Tensor:
            nonlocal cache
            mask, positions = padding or (None, None)
            logits, cache = self._run(ids, mask=mask, positions=positions, cache=cache, last=True)
            return logits[:, -1]

        def prefill() -> Tensor:
            nonlocal padding
            ids, positions = left_padded(prompts, self.device)
            if len(set(map(len, prompts))) > 1:
                padding = (positions >= 0).long(), positions.clamp(min=0)
            return run(ids)

        def step(tokens: Tensor, keep: Tensor | None) -> Tensor:
            nonlocal padding
            if keep is not None:
                cache.reorder_cache(keep)
            if padding is not None:
                mask, positions = padding if keep is None else (tensor[keep] for tensor in padding)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                padding = mask, positions[:, -1:] + 1
            return run(tokens[:, None])

        return decode(
            prompts,
            prefill,
            step,
            room=[min(max_new_tokens, self.max_length - len(prompt)) for prompt in prompts],
            tokenizer=self.tokenizer,
            stop_ids=stop_ids,
            stop_strings=stop_strings,
            sampling=sampling,
        )

    def read(self, ids: Sequence[int], text: Any = None) -> tuple[Tensor, Any]:
        """(logits [1, V] after `ids`, the text so far: its cache), which go on with `text`, what an
        earlier call gave.
        """
        logits, cache = self._run(
            torch.tensor([list(ids)], device=self.device), cache=text, last=True
        )
        return logits[:, -1].float(), cache

    @torch.inference_mode()
    def _run(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
        last: bool = False,
    ) -> tuple[Tensor, Any]:
        """(logits [B, T, V], the cache after ids [B, T]); logits of the last token where `last` and
        the family can.

        mask: 1 for every token of the text so far [B, all], 0 for padding.
        """
        options: dict[str, Any] = {"attention_mask": mask} if mask is not None else {}
        if positions is not None and "position_ids" in self._takes:
            options["position_ids"] = positions
        if last and "logits_to_keep" in self._takes:
            options["logits_to_keep"] = 1
        if cache is not None:
            options[self._cache_name] = cache
        with self._lock:
            output = self._model(input_ids=ids, use_cache=True, **options)
        return output.logits, output[self._cache_name]


def refuse_folder(folder: Path) -> None:
    """Nothing, or an error where the folder is no checkpoint with safetensors, or one that the
    library would compute otherwise than it was meant: it ignores a scheme of ours, and would apply
    an adapter.
    """
    raw_config(folder)
    weight_files(folder)
    if scheme := quantization_of(folder):
        raise ValueError(
            f"{folder}: trained for {scheme}, and transformers would compute the weights before "
            "rounding; `pocketlm export --to hf` writes their four-bit values"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{folder}: {ADAPTER_CONFIG} is there, so its weights are not the whole model; merge "
            "the adapter into its base first"
        )


def load_network(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The folder's causal language model with its weights in `dtype`, from its safetensors, by the
    library's code alone.

    ValueError in one line where the library knows no such family, or tensors are missing or of
    another shape: they would be random numbers.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except MemoryError:
        raise
    except Exception as error:  # the library raises whatever its parsers meet
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder}: transformers cannot open it: {reason}") from None
    network, report = loaded
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, report.get(kind) or ())):
            raise ValueError(
                f"{folder}: {len(names)} tensors are {kind.removesuffix('_keys')}, the first "
                f"{names[0]}; save or fetch the weights again"
            )
    return network.eval()


def empty_network(folder: Path, dtype: torch.dtype) -> Any:
    """The same network without weights, on the meta device, by config.json alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet(), torch.device("meta"):
        config = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        network = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    return network.eval()


def longest_text(config: Any) -> int:
    """Tokens of the longest text by a model's config, UNSAID_LENGTH where it names none."""
    text_config = config.get_text_config()
    lengths = (getattr(text_config, name, None) for name in LENGTH_FIELDS)
    return next((int(length) for length in lengths if length), UNSAID_LENGTH)


def attention_layers(cache: Any) -> list[tuple[int, int | None]]:
    """For each layer of the cache of one token (bytes, the most tokens it keeps); [] for a cache
    that holds more than keys and values, such as a recurrent state.
    """
    layers = list(getattr(cache, "layers", ()))
    if any(not hasattr(layer, "keys") or hasattr(layer, "conv_states") for layer in layers):
        return []
    windows = (getattr(layer, "sliding_window", None) for layer in layers)
    return [
        (layer.keys.nbytes + layer.values.nbytes, None if window is None else window - 1)
        for layer, window in zip(layers, windows, strict=True)
    ]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's remarks and progress bars; what matters is checked here."""
    from transformers.utils import logging as library_logging

    logger = logging.getLogger("transformers")
    level, bars = logger.level, library_logging.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    library_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            library_logging.enable_progress_bar()
