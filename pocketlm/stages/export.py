"""Export: one checkpoint to the files other runtimes run, each opened there and compared before it
counts as written.
"""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console

from pocketlm.corpus.python_docs import read_language_reference
from pocketlm.data.conversations import read_conversations
from pocketlm.data.corpus_folder import open_shards
from pocketlm.data.shards import list_sources
from pocketlm.eval.agreement import Agreement, Passage, agreement
from pocketlm.export.differences import most_different_tensor
from pocketlm.export.gguf import write_gguf
from pocketlm.export.llamacpp_template import unlike_prompts
from pocketlm.export.packed_folders import CONTAINERS, write_repacked
from pocketlm.export.plain import as_stored, dequantized_model, unrolled
from pocketlm.export.text_agreement import refuse_other_folder, refuse_other_text
from pocketlm.export.writable import Wanted, cache_note, refuse_lossy, refuse_unwritable
from pocketlm.inference.open import opened
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import load_checkpoint, quantization_of, save_checkpoint, shape_of
from pocketlm.model.files import write_folder, write_json, write_text
from pocketlm.model.json_lines import row_files
from pocketlm.model.quant import scheme as scheme_named
from pocketlm.model.quant import scheme_of
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.report.model_card import model_card

SPLITS = ("validation", "train")
PASSAGES = 50  # the most documents that a source lends; this and the next three are our choice
COMPARED_TOKENS = 1000  # one disagreement is a tenth of a point
PASSAGE_TOKENS, PASSAGE_PROMPT = 144, 16
QUESTION = "What is this text about?\n\n"
EXACT_GREEDY = 1.0  # of a float32 file: every greedy token


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """formats: of hf, gguf, pte, and for four-bit models mlx, compressed-tensors (vLLM).

    gguf_dtype: f32, f16, q8_0, q4_0; None takes q4_0 for a four-bit model, else f16.
    context_length: what the .pte's cache holds; None takes the model's positions. int8_cache: it
    holds keys and values as int8, a quarter of the bytes; the .gguf's runtime chooses that when it
    opens the file. layout: of the Hugging Face folder, a name of LAYOUTS; None takes the one that
    stock transformers opens. min_agreement: the least share of positions at which a file's
    likeliest token must be the model's.
    """

    name: str
    formats: tuple[str, ...] = ("hf", "gguf", "pte")
    gguf_dtype: str | None = None
    context_length: int | None = None
    int8_cache: bool = False
    layout: str | None = None
    min_agreement: float = 0.985

    def __post_init__(self) -> None:
        self.wanted()
        if not 0 <= self.min_agreement <= 1:
            raise ValueError(f"min_agreement {self.min_agreement} must be between 0 and 1")

    def wanted(self) -> Wanted:
        """What of this must be asked before a model is trained: stages/formats.py asks it."""
        return Wanted(
            formats=self.formats,
            gguf_dtype=self.gguf_dtype,
            context_length=self.context_length,
            layout=self.layout,
        )

    def summary(self) -> str:
        return ", ".join(self.formats)


def export(config: ExportConfig, out: Path, *, model: Path, corpus: Path | None = None) -> Path:
    """`out`, with what was asked for, hf/ model.gguf model.pte and so on, export.json with sizes
    and agreement, and a model card, README.md.

    A four-bit model keeps the grid it was trained on in all of them: Q4_0 blocks, XNNPACK, MLX and
    compressed-tensors take its integers and scales as they are, and the Hugging Face folder holds
    their values in float32.

    A .gguf or .pte runs in its own runtime, on the `corpus` if there is one, and is compared with
    the model in memory. ValueError, and no file, where they agree less than config.min_agreement,
    or a float32 file answers otherwise. An mlx or compressed-tensors folder is read back and
    compared to the bit.
    """
    refuse_checkpoint(config, model)
    network, tokenizer = load_checkpoint(model)
    network.eval()
    context_length = config.context_length or network.config.max_position_embeddings
    run = {"gguf", "pte"} & set(config.formats)
    passages = (
        real_passages(LanguageModel(network, tokenizer), context_length, corpus) if run else []
    )
    scheme = scheme_of(network)
    sizes: dict[str, int] = {}
    agreements: dict[str, Any] = {}
    notes: dict[str, list[str]] = {}
    for name in config.formats:
        if name == "gguf":
            file, agreed = export_gguf(config, out, network, tokenizer, passages)
        elif name == "pte":
            file, agreed = export_pte(config, out, network, tokenizer, passages, context_length)
        else:
            file, agreed = export_folder(config, out / name, network, tokenizer), None
        sizes[file.name] = file.stat().st_size if file.is_file() else folder_bytes(file)
        if agreed is not None:
            agreements[file.name] = asdict(agreed)
            notes[file.name] = check_text(file, tokenizer, network.config.vocab_size)
            notes[file.name] += cache_note(file, scheme)
    origin = {"model": model.name, "quantization": scheme.name if scheme else None}
    write_json(
        out / "export.json", {**origin, "bytes": sizes, "agreement": agreements, "unlike": notes}
    )
    write_text(out / "README.md", model_card(out, model.name, model=model))
    console = Console(stderr=True, highlight=False)
    for name, note in ((name, note) for name, lines in notes.items() for note in lines):
        console.print(f"  {name}: {note}", style="yellow", soft_wrap=True, markup=False)
    return out


def refuse_checkpoint(config: ExportConfig, model: Path) -> None:
    """Nothing, or a ValueError where a format cannot hold this checkpoint: asked before its weights
    are read.
    """
    name = quantization_of(model)
    shape, tokenizer = shape_of(model), Tokenizer.load(model)
    try:
        refuse_unwritable(config.wanted(), shape, tokenizer, scheme_named(name) if name else None)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None


def check_text(file: Path, tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    """What of the text of a .gguf or .pte is unlike and cannot be helped, in words.

    ValueError, and no file, where its tokenizer gives other ids for a text or another text for ids.
    """
    try:
        if file.suffix == ".pte":
            refuse_other_folder(file, tokenizer, vocab_size)
            return []
        return refuse_other_text(file, tokenizer, vocab_size) + unlike_prompts(file, tokenizer)
    except BaseException:
        discard(file)
        raise


def export_gguf(
    config: ExportConfig,
    out: Path,
    network: Transformer,
    tokenizer: Tokenizer,
    passages: list[Passage],
) -> tuple[Path, Agreement]:
    dtype = config.wanted().dtype(scheme_of(network))
    refuse_lossy(network, dtype)
    file = write_gguf(network, tokenizer, out / "model.gguf", dtype)
    reference = as_stored(network, dtype)
    return file, check_file(file, reference, tokenizer, passages, config, exact=dtype == "f32")


def export_pte(
    config: ExportConfig,
    out: Path,
    network: Transformer,
    tokenizer: Tokenizer,
    passages: list[Passage],
    context_length: int,
) -> tuple[Path, Agreement]:
    from pocketlm.export.pte import write_pte

    file = out / "model.pte"
    write_pte(network, tokenizer, file, context_length=context_length, int8_cache=config.int8_cache)
    exact = scheme_of(network) is None and not config.int8_cache
    return file, check_file(file, network, tokenizer, passages, config, exact=exact)


def export_folder(
    config: ExportConfig, out: Path, network: Transformer, tokenizer: Tokenizer
) -> Path:
    """A Hugging Face folder, or integers and scales in another runtime's container, by the name of
    `out`.
    """
    if out.name in CONTAINERS:
        write_repacked(unrolled(network), tokenizer, out, out.name)
        return out
    plain = dequantized_model(network)
    with write_folder(out) as folder:
        save_checkpoint(
            folder,
            unrolled(plain) if config.layout is None else plain,
            tokenizer,
            layout=config.layout,
        )
    return out


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def real_passages(model: LanguageModel, context_length: int, corpus: Path | None) -> list[Passage]:
    """Real text to compare on, about COMPARED_TOKENS of it: the corpus's, or else Python's language
    reference.

    A model that chats is compared on answers: the assistant's in the corpus's conversations, or its
    own to questions about the reference. What it was never taught to predict tells little: there
    its likeliest tokens are near ties.
    """
    length = min(PASSAGE_TOKENS, context_length)
    tokenizer = model.tokenizer
    sources = [
        own_answers(model, length)
        if tokenizer.chat_template
        else reference_pages(tokenizer, length)
    ]
    if corpus is not None:
        held_out = held_conversations if tokenizer.chat_template else held_documents
        sources.insert(0, held_out(tokenizer, length, corpus))
    for source in sources:
        passages: list[Passage] = []
        tokens = 0
        for passage in source:
            passages.append(passage)
            tokens += len(passage.ids) - passage.prompt
            if tokens >= COMPARED_TOKENS:
                break
        if passages:
            return passages
    raise ValueError(
        f"no text is as long as the {PASSAGE_PROMPT} tokens that a file is compared on; raise "
        "context_length"
    )


def own_answers(model: LanguageModel, length: int) -> Iterator[Passage]:
    """What the model itself answers, greedily, to questions about the pages of the language
    reference.
    """
    tokenizer = model.tokenizer
    reference = read_language_reference()
    while pages := list(islice(reference, 8)):
        excerpts = [tokenizer.decode(tokenizer.encode(page.text)[: length // 4]) for page in pages]
        prompts = [
            tokenizer.encode_chat([{"role": "user", "content": QUESTION + text}])
            for text in excerpts
        ]
        prompts = [prompt for prompt in prompts if len(prompt) < length - 1]
        room = length - max(map(len, prompts), default=length)
        answers = model.generate(prompts, max_new_tokens=room, stop_ids=tokenizer.stop_ids)
        for prompt, answer in zip(prompts, answers, strict=True):
            yield Passage(
                ids=[*prompt, *answer, tokenizer.end_of_turn_id][:length], prompt=len(prompt)
            )


def held_conversations(tokenizer: Tokenizer, length: int, corpus: Path) -> Iterator[Passage]:
    """The first answer of each of the corpus's conversations, held-out ones first, one source after
    the other.
    """
    files = [
        file
        for split in SPLITS
        for name in list_sources(corpus)
        for file in row_files(corpus / "documents" / name, split)
    ]
    readers = [read_conversations(file) for file in files]
    for round_of_rows in zip_longest(*(islice(reader, PASSAGES) for reader in readers)):
        answers = tokenizer.answers([row for row in round_of_rows if row is not None])
        examples = [example for rows in answers if isinstance(rows, list) for example in rows[:1]]
        for ids, mask in ((example.ids, example.learnt) for example in examples):
            if True in mask and mask.index(True) < length - 1:
                first = mask.index(True)
                last = next((i for i in range(first, len(mask)) if not mask[i]), len(mask))
                yield Passage(ids=ids[: min(last, length)], prompt=first)


def held_documents(tokenizer: Tokenizer, length: int, corpus: Path) -> Iterator[Passage]:
    """The beginnings of the corpus's documents, held-out ones first, one source after the other."""
    for split in SPLITS:
        shards = list(open_shards(corpus, split).values())
        for number in range(PASSAGES):
            for shard in shards:
                ids = shard.document(number)[:length].tolist() if number < len(shard) else []
                if len(ids) > PASSAGE_PROMPT:
                    yield Passage(ids=ids, prompt=PASSAGE_PROMPT)


def reference_pages(tokenizer: Tokenizer, length: int) -> Iterator[Passage]:
    """The beginnings of the pages of Python's language reference: text that every machine has."""
    for page in read_language_reference():
        ids = [*tokenizer.document_start, *tokenizer.encode(page.text)][:length]
        if len(ids) > PASSAGE_PROMPT:
            yield Passage(ids=ids, prompt=PASSAGE_PROMPT)


def check_file(
    file: Path,
    network: Transformer,
    tokenizer: Tokenizer,
    passages: list[Passage],
    config: ExportConfig,
    *,
    exact: bool,
) -> Agreement:
    """How the file agrees with the network. A file that agrees too little is removed, and a
    ValueError says how little.
    """
    try:
        with opened(file, exact=exact) as runtime:
            measured = agreement(LanguageModel(network, tokenizer), runtime, passages)
    # refused by its runtime, or interrupted: an unchecked file must not look like a checked one
    except BaseException:
        discard(file)
        raise
    if measured.top_token >= config.min_agreement and (
        not exact or measured.greedy == EXACT_GREEDY
    ):
        return measured
    try:
        worst = most_different_tensor(file, network)
    finally:
        discard(file)
    raise ValueError(
        f"{file.name} does not say what the model says: of {measured.tokens} tokens "
        f"{measured.top_token:.2%} agree "
        f"({config.min_agreement:.1%} asked), KL {measured.kl:.3g} nats, greedy answers equal for "
        f"{measured.greedy:.0%}"
        f"{' (a float32 file must equal all)' if exact else ''}{worst}. The file was removed. A "
        "lower min_agreement lets "
        "it pass; a model that is unsure of every token agrees less, for its likeliest tokens are "
        "near ties"
    )


def discard(file: Path) -> None:
    """Remove an exported file, and the tokenizer that goes with a .pte."""
    file.unlink(missing_ok=True)
    shutil.rmtree(file.with_name(f"{file.stem}.tokenizer"), ignore_errors=True)
