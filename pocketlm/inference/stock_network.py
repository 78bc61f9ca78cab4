"""A network that stock transformers computes, read for its hidden states and its head, so that it
can stand where our own frozen network stands: as a teacher.

What a family does is not taken from a list of names: `check` runs a few tokens and compares.

Shapes: B rows, T tokens, D hidden, V vocabulary
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketlm.inference.stock_shape import blocks_of, stock_shape
from pocketlm.inference.transformers_runtime import empty_network, load_network, refuse_folder
from pocketlm.model.costs import StockShape

PROBE_TOKENS = 12  # of the texts that `check` runs
# most that rounding alone makes different, of the standard deviation of all logits. Measured, tiny
# families: 4e-6 in float32, 0.025 in bfloat16; where documents do see each other 0.85
AGREEMENT, NARROW_AGREEMENT = 1e-3, 0.15
# rotary tables that depend on the longest text of a batch
CHANGING_TABLES = ("dynamic", "longrope")


class HeadTap(nn.Module):
    """Stands in the head's place inside the network: keeps what the head would get. The logits are
    computed there only while `whole`.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.whole = False
        self.states: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """[V, D], of which some families ask the dtype."""
        return self.head.weight  # type: ignore[return-value]

    def forward(self, states: Tensor) -> Tensor:
        self.states = states
        return self.head(states) if self.whole else states[..., :1]


class StockNetwork(nn.Module):
    """`hidden` and `head` as our own Transformer has them, of any causal language model.

    Frozen: for teachers alone. `check` comes first, on the device where it is to run.
    """

    def __init__(self, network: Any, shape: StockShape, name: str) -> None:
        super().__init__()
        self.config, self.name = shape, name
        self.network = network
        tap = HeadTap(network.get_output_embeddings())
        for module in list(network.modules()):
            for child, value in list(module.named_children()):
                if value is tap.head and module is not tap:
                    setattr(module, child, tap)
        self._taps = (tap,)  # in a tuple: it is a part of the network already
        self._takes = set(inspect.signature(network.forward).parameters)
        self._own_logits: Tensor | None = None
        self.separates_documents = "position_ids" in self._takes
        config = network.config.get_text_config()
        cap = (getattr(config, name, None) for name in SOFTCAPS)
        self.softcap: float | None = next((value for value in cap if value), None)
        self.factor = head_factor(config)
        self.mixed_length = longest_mixed(config)

    @property
    def weight(self) -> Tensor:
        """The head's weight [V, D]."""
        return self._taps[0].weight

    @property
    def bias(self) -> Tensor | None:
        """The head's bias [V]."""
        return getattr(self._taps[0].head, "bias", None)

    @property
    def blocks(self) -> list[nn.Module]:
        """The parts whose weights are gathered together where they are sharded."""
        return list(blocks_of(self.network))

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        *,
        doc_ids: Tensor | None = None,
        documents: object = None,
    ) -> Tensor:
        """States [B, T, D] as the head gets them. documents: what our own network reads instead of
        asking doc_ids; the library asks.

        doc_ids [B, T]: tokens see only tokens of the same id, and positions start anew in each
        document, which is what `positions` must say too: the library tells documents by them.
        ValueError: documents of a row that this family cannot keep apart.
        """
        options: dict[str, Any] = {"use_cache": False} if "use_cache" in self._takes else {}
        if doc_ids is not None:
            self._refuse_packed(doc_ids.shape[1])
            options["position_ids"] = document_positions(doc_ids)
        elif positions is not None:
            raise ValueError(f"{self.name}: positions of a row need its doc_ids")
        output = self.network(input_ids=input_ids, **options)
        (tap,) = self._taps
        self._own_logits = output.logits if tap.whole else None
        states, tap.states = tap.states, None
        assert states is not None
        return states

    def head(self, states: Tensor, words: slice = slice(None)) -> Tensor:
        """Logits [..., W], float32, of states [..., D]: of all words, or of these.

        What a family does to the products, a factor and a soft cap, it does word by word.
        """
        bias = None if self.bias is None else self.bias[words]
        logits = nn.functional.linear(states, self.weight[words], bias).float()
        if self.factor != 1:
            logits = logits * self.factor
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def refuse_mixed(self, num_tokens: int) -> None:
        """Nothing, or a ValueError where texts of different lengths, the longest of num_tokens,
        would not be read alike in one batch and one by one.
        """
        if self.mixed_length is not None and num_tokens > self.mixed_length:
            raise ValueError(
                f"{self.name}: beyond {self.mixed_length} tokens the rotary table of this model "
                f"changes with the longest text of a batch, and here texts of up to {num_tokens} "
                f"lie beside shorter ones; keep to {self.mixed_length} tokens"
            )

    def _refuse_packed(self, num_tokens: int) -> None:
        if not self.separates_documents:
            raise ValueError(
                f"{self.name}: transformers' {type(self.network).__name__} does not keep the "
                "documents of a row apart; run teach, which reads each document by itself, and "
                "give its folder as the teacher, or train with separate_documents=False"
            )
        self.refuse_mixed(num_tokens)

    @torch.no_grad()
    def check(self) -> None:
        """Nothing, or a ValueError where these scores would not be the network's.

        Compared on a few tokens: the head with the network's own logits; a text with another of the
        same beginning; two documents in one row with each by itself. Where only the last differ,
        rows of separate documents are refused when one comes.
        """
        where, half, V = self.weight.device, PROBE_TOKENS // 2, self.config.vocab_size
        ids = torch.arange(1, 2 * PROBE_TOKENS + 1, device=where).view(2, -1) * 7919 % V
        ids[1, :half] = ids[0, :half]
        (tap,) = self._taps
        tap.whole = True
        logits = self.head(self.hidden(ids))
        own_logits, self._own_logits, tap.whole = self._own_logits, None, False
        assert own_logits is not None
        wide = self.weight.dtype == torch.float32
        most = (AGREEMENT if wide else NARROW_AGREEMENT) * float(own_logits.float().std())
        kind = type(self.network).__name__
        if own_logits.shape != logits.shape or _difference(own_logits.float(), logits) > most / 5:
            raise ValueError(
                f"{self.name}: the logits of transformers' {kind} are not its last states times "
                "its head; a model of this family cannot be a teacher"
            )
        if _difference(logits[0, :half], logits[1, :half]) > most:
            raise ValueError(
                f"{self.name}: what transformers' {kind} says after a token depends on later "
                "tokens; a teacher must be a causal language model"
            )
        if self.separates_documents:
            first, second = ids[0, : half + 1], ids[1, half + 1 :]
            doc_ids = torch.arange(PROBE_TOKENS, device=where)[None].gt(half).long()
            packed = self.head(self.hidden(torch.cat([first, second])[None], doc_ids=doc_ids))
            alone = self.head(self.hidden(second[None]))
            self.separates_documents = _difference(packed[0, half + 1 :], alone[0]) <= most


SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def head_factor(config: Any) -> float:
    """What a family multiplies the head's products by (Cohere, Granite, Falcon-H1); `check` holds
    it against the network's own logits.
    """
    factor = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        factor *= getattr(config, name, None) or 1.0
    return factor / (getattr(config, "logits_scaling", None) or 1.0)


def longest_mixed(config: Any) -> int | None:
    """Tokens of the longest batch whose texts may have different lengths; None: any."""
    tables = getattr(config, "rope_parameters", None) or {}
    tables = [tables] if "rope_type" in tables else [t for t in tables.values() if t]
    lengths = [
        table.get("original_max_position_embeddings") or config.max_position_embeddings
        for table in tables
        if isinstance(table, dict) and table.get("rope_type") in CHANGING_TABLES
    ]
    return min(lengths, default=None)


def document_positions(doc_ids: Tensor) -> Tensor:
    """[B, T]: the place of each token in its document, or part of one, of doc_ids [B, T]."""
    places = torch.arange(doc_ids.shape[1], device=doc_ids.device).expand_as(doc_ids)
    begins = torch.ones_like(doc_ids, dtype=torch.bool)
    begins[:, 1:] = doc_ids[:, 1:] != doc_ids[:, :-1]
    return places - torch.where(begins, places, 0).cummax(1).values


def _difference(one: Tensor, two: Tensor) -> float:
    """Of logits [..., V]: the root mean square of a token, the median of all tokens, for rounding
    sends a token now and then to another expert.
    """
    return float((one - two).square().mean(-1).sqrt().median())


def load_stock_network(folder: Path, dtype: torch.dtype | None) -> StockNetwork:
    """The frozen network of a folder with its weights in `dtype` (None: float32), as the library
    itself would run it.

    ValueError where the library does not open it, or it has no head of its own.
    """
    refuse_folder(folder)
    network = load_network(folder, dtype or torch.float32)
    return _frozen(network, folder)


def empty_stock_network(folder: Path, dtype: torch.dtype | None) -> StockNetwork:
    """The same without weights, on the meta device: what other ranks have of a network that the
    first one loads, until it is sharded.
    """
    return _frozen(empty_network(folder, dtype or torch.float32), folder)


def _frozen(network: Any, folder: Path) -> StockNetwork:
    return StockNetwork(network, stock_shape(folder), str(folder)).requires_grad_(False).eval()
