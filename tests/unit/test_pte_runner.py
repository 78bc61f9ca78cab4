"""The runner of ExecuTorch's phone apps opens our .pte with the tokenizer.json beside it, and says
what PteModel says.
"""

import copy
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import small
from torch import nn

from pocketlm.export import pte_network
from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.model_config import GLOBAL, LOCAL
from pocketlm.model.quant import CPU, prepare
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer
from pocketlm.model.transformer import Transformer

pytest.importorskip("executorch", reason="needs the extra pocketlm[executorch]")
from pocketlm.export.pte import write_pte
from pocketlm.inference.executorch import PteModel, load_kernels, silent_stderr, tokenizer_folder

VOCABULARY = 300
CONTEXT = 160
CHUNK = 16
NEW_TOKENS = 30
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is 12 and 345?\n\tA  number?"},
]
PROMPTS = [
    "a banana",
    'the year 1984, in 3 words: it\'s "two"',
    "naïve café, 東京 🚀!\n\n  def f(x):\n\t\treturn  x ** 2\r\n",
    "a banana and a bandana and an ananas. " * 3,
]


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pte_network, "CHUNK_TOKENS", CHUNK)
        load_kernels()
        yield


def tokenizer(end_of_turn: str | None = None) -> Tokenizer:
    """Ours; its answers end at <|endoftext|> and at `end_of_turn`."""
    trained = train_tokenizer([" ".join(PROMPTS), "a banana and a bandana"] * 4, VOCABULARY)
    return Tokenizer(
        trained.backend,
        end_of_turn_token=end_of_turn or trained.end_of_turn_token,
        chat_template=CHATML,
    )


@pytest.fixture(scope="module")
def model() -> Transformer:
    """A network that says ASCII letters: the Python binding of the runner decodes each token's
    bytes by itself.
    """
    config = small(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        layer_types=(LOCAL, GLOBAL),
        sliding_window=8,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    model = Transformer(config, seed=3).eval()
    backend = tokenizer().backend
    letters = [i for i in range(VOCABULARY) if (backend.id_to_token(i) or "").isascii() and i > 2]
    assert len(letters) > 90 and model.lm_head is not None
    silent = torch.ones(VOCABULARY, dtype=torch.bool)
    silent[letters] = False
    with torch.no_grad():
        model.lm_head.weight[silent] = 0
        nn.init.uniform_(
            model.model.norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(0)
        )
    return model


@pytest.fixture(scope="module")
def ending(model: Transformer) -> Tokenizer:
    """Our tokenizer, its end of turn a token that the model does say: the commonest of its
    answers.
    """
    plain = tokenizer()
    prompts = [plain.encode(text) for text in PROMPTS]
    answers = LanguageModel(model, plain).generate(
        prompts, max_new_tokens=NEW_TOKENS, stop_ids=set()
    )
    said = [i for answer in answers for i in answer[1:]]
    return tokenizer(plain.backend.id_to_token(max(set(said), key=said.count)))


@pytest.fixture(scope="module", params=["float32", "int4 and an int8 cache"])
def file(
    model: Transformer, ending: Tokenizer, request: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("pte") / "small.pte"
    network = model if request.param == "float32" else prepare(copy.deepcopy(model), CPU)
    return write_pte(
        network, ending, path, context_length=CONTEXT, int8_cache="int8" in request.param
    )


class StockRunner:
    """ExecuTorch's TextLLMRunner on the two files that a phone gets: the program and the
    tokenizer.json.
    """

    def __init__(self, file: Path, tokenizer_json: Path) -> None:
        from executorch.extension.llm.runner import TextLLMRunner

        with silent_stderr():
            self.runner = TextLLMRunner(str(file), str(tokenizer_json))

    def generate(self, prompt: str, max_new_tokens: int = NEW_TOKENS) -> list[str]:
        """The text of each new token, greedily; in `said` what there was of it before an error."""
        from executorch.extension.llm.runner import GenerationConfig

        self.said: list[str] = []
        self.stats: list[Any] = []
        config = GenerationConfig(echo=False, max_new_tokens=max_new_tokens, temperature=0.0)
        with silent_stderr():
            self.runner.generate(prompt, config, self.said.append, self.stats.append)
        return self.said


@pytest.fixture
def stock(file: Path, tmp_path: Path) -> StockRunner:
    shutil.copy(tokenizer_folder(file) / "tokenizer.json", tmp_path)
    return StockRunner(file, tmp_path / "tokenizer.json")


@pytest.fixture
def ours(file: Path) -> Iterator[PteModel]:
    with closing(PteModel(file)) as pte:
        yield pte


def expected(ours: PteModel, ids: list[int], max_new_tokens: int = NEW_TOKENS) -> list[int]:
    """What the stock runner should say: our runtime's ids, with the stop id, which it asks for from
    the second on.
    """
    ids = ours.generate([ids], max_new_tokens=max_new_tokens, stop_ids=set())[0]
    stop_ids = ours.tokenizer.stop_ids
    end = next((i for i, token in enumerate(ids) if i > 0 and token in stop_ids), len(ids) - 1)
    return ids[: end + 1]


def pieces(ours: PteModel, ids: list[int]) -> list[str]:
    return [ours.tokenizer.decode([i]) for i in ids]


def test_the_stock_runner_says_what_our_runtime_says_and_stops_where_it_stops(
    stock: StockRunner, ours: PteModel
) -> None:
    """Prompts below and above the chunk and the window, in words, digits, code and other scripts,
    and as a chat.
    """
    chat = ours.tokenizer.render(CHAT, add_generation_prompt=True)
    prompts = [(text, ours.tokenizer.encode(text)) for text in PROMPTS] + [
        (chat, ours.tokenizer.encode_chat(CHAT))
    ]
    assert (
        min(len(ids) for _, ids in prompts) < CHUNK
        and max(len(ids) for _, ids in prompts) > 3 * CHUNK
    )
    lengths = []
    for text, ids in prompts:
        answer = expected(ours, ids)
        lengths.append(len(answer))
        stock.runner.reset()
        assert stock.generate(text) == pieces(ours, answer)
        assert stock.stats[0].num_prompt_tokens == len(ids)
    assert min(lengths) < NEW_TOKENS == max(lengths)


def test_the_stock_runner_carries_a_conversation_on(stock: StockRunner, ours: PteModel) -> None:
    ids: list[int] = []
    for text in ("a banana", " and 12 bandanas\n", " and an ananas"):
        ids += ours.tokenizer.encode(text)
        answer = expected(ours, ids, 4)
        assert stock.generate(text, 4) == pieces(ours, answer)
        ids += answer[:-1]  # its cache never gets what it says last


def test_the_stock_runner_never_writes_past_the_context(stock: StockRunner, ours: PteModel) -> None:
    """ExecuTorch 1.5.1 forgets the prompt when it counts what there is room for: the program
    refuses, not overwrites.
    """
    filling, room = PROMPTS[3] * 5, 3
    while len(ours.tokenizer.encode(filling)) < CONTEXT - room:
        filling += "x"
    answer = expected(ours, ours.tokenizer.encode(filling), CONTEXT)
    assert len(answer) == room
    assert stock.generate(filling, room) == pieces(ours, answer)
    stock.runner.reset()
    with pytest.raises(RuntimeError):
        stock.generate(filling, CONTEXT)
    assert stock.said[:-1] == pieces(ours, answer)  # and one more, after the last place was taken
    stock.runner.reset()
    with pytest.raises(RuntimeError):
        stock.generate(filling + "x" * room)
    assert stock.said == []
    stock.runner.reset()
    assert stock.generate("a banana") == pieces(
        ours, expected(ours, ours.tokenizer.encode("a banana"))
    )
