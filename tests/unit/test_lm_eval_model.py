"""lm-eval's tasks on our runtimes: its own code asks, and its own answers are known beforehand."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shapes import small

from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer

pytest.importorskip("lm_eval", reason="needs the extra pocketlm[lm-eval]")

from pocketlm.eval.lm_eval_model import RuntimeLM, as_json, problems_of, run_tasks, table_of

COLOURS = ["blue", "green", "red"]
ROWS = [
    {"thing": f"the {thing} number {n}", "colours": COLOURS, "right": n % 3}
    for n, thing in enumerate(["sky", "grass", "rose", "sea", "leaf", "cherry", "ink"])
]
TASKS = {
    "chosen": """
output_type: multiple_choice
doc_to_choice: "{{colours}}"
doc_to_target: "{{right}}"
num_fewshot: 3
training_split: train
fewshot_split: train
fewshot_config: {sampler: first_n}
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "written": """
output_type: generate_until
doc_to_target: "{{colours[right]}}"
generation_kwargs: {until: ["q"], max_gen_toks: 9, do_sample: true, temperature: 1.0}
repeats: 3
metric_list: [{metric: exact_match}]
""",
    "rolled": """
output_type: loglikelihood_rolling
metric_list: [{metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    texts = [f"Which colour has {row['thing']}?" for row in ROWS] + COLOURS
    tokenizer = train_tokenizer(texts * 3, 290)
    network = Transformer(
        small(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=400,
            initializer_range=0.3,
        )
    )
    return LanguageModel(network, tokenizer)


@pytest.fixture()
def tasks(tmp_path: Path) -> dict[str, str]:
    """Names -> .yaml files of tasks over rows beside them."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    head = f"""
dataset_path: json
dataset_kwargs:
  data_files: {{train: {tmp_path}/rows.jsonl, test: {tmp_path}/rows.jsonl}}
test_split: test
doc_to_text: "Which colour has {{{{thing}}}}?"
metadata: {{version: 1.0}}
"""
    for name, rest in TASKS.items():
        text = head.replace('"Which', '"x" #') if name == "rolled" else head
        rest += 'doc_to_target: "Which colour has {{thing}}?"\n' if name == "rolled" else ""
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{text}{rest}")
    return {name: str(tmp_path / f"{name}.yaml") for name in TASKS}


def nats(model: LanguageModel, context: list[int], ids: list[int]) -> float:
    log_probs = torch.from_numpy(model.logits((context + ids)[:-1])).double().log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(ids) - 1)
    return sum(log_probs[place, token].item() for place, token in zip(places, ids, strict=True))


def test_tasks_over_local_files_have_the_figures_of_whole_texts(model, tasks, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    results = run_tasks(model, list(tasks.values()), limit=5)
    encode, bos = model.tokenizer.encode, model.tokenizer.bos_id
    right = 0
    for sample in results["samples"]["chosen"]:
        (context, first), *_ = sample["arguments"]
        assert context.count("Which") == 4 and first == " blue"
        sums = [nats(model, encode(context), encode(f" {colour}")) for colour in COLOURS]
        given = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert given == pytest.approx(sums, abs=1e-4)
        right += sums.index(max(sums)) == sample["doc"]["right"]
    assert results["results"]["chosen"]["acc,none"] == pytest.approx(right / 5)
    texts = [f"Which colour has {row['thing']}?" for row in ROWS[:5]]
    bits = -sum(nats(model, [bos], encode(text)) for text in texts) / math.log(2)
    found = results["results"]["rolled"]["bits_per_byte,none"]
    assert found == pytest.approx(bits / sum(map(len, texts)), rel=1e-5)
    repeats = [sample["resps"][0] for sample in results["samples"]["written"]]
    # a seed for every repeat, not for every document
    assert all(len(texts) == 3 for texts in repeats)
    assert max(len(set(texts)) for texts in repeats) == 3
    assert not any("q" in text for texts in repeats for text in texts)
    assert results["truncated"] == 0 and "chosen" in table_of(results)
    assert json.loads(as_json(results))["results"]["chosen"]["alias"] == "chosen"


def request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_long_texts_are_rolled_over_and_contexts_that_do_not_fit_are_counted(model) -> None:
    asked = RuntimeLM(model)
    text = " ".join(row["thing"] for row in ROWS) * 12
    ids = model.tokenizer.encode(text)
    longest = model.max_length
    assert longest < len(ids) < 2 * longest
    start = [model.tokenizer.bos_id]
    # lm-eval: the last window is full, and what it has in common with the one before is context
    last = len(ids) - longest
    windows = [(start, ids[:longest]), (ids[last - 1 : longest], ids[longest:])]
    assert [len(a + b) for a, b in windows] == [longest + 1] * 2
    wanted = sum(nats(model, context, rest) for context, rest in windows)
    assert asked.loglikelihood_rolling([request(text)]) == [pytest.approx(wanted, abs=1e-3)]
    assert asked.truncated == 0
    ((found, _),) = asked.loglikelihood([request(text, " blue")])
    rest = model.tokenizer.encode(" blue")
    kept = (ids + rest)[-(longest + 1) :]
    assert found == pytest.approx(nats(model, kept[: -len(rest)], rest), abs=1e-4)
    assert asked.truncated == 1


def test_an_answer_that_is_begun_goes_on_and_special_words_are_tokens(model) -> None:
    asked = RuntimeLM(model)
    ids = asked.tok_encode("<|endoftext|>blue")
    assert ids == [model.tokenizer.eos_id, *model.tokenizer.encode("blue")]
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}>"
    try:
        question = {"role": "user", "content": "sky?"}
        assert asked.apply_chat_template([question]) == "[sky?]>"
        begun = [question, {"role": "assistant", "content": "It is"}]
        assert asked.apply_chat_template(begun, add_generation_prompt=False) == "[sky?]>It is"
    finally:
        model.tokenizer.chat_template = None


def test_what_cannot_be_asked_or_loaded_is_one_line(model, tasks, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"lm-eval cannot run .*none\.yaml"):
        run_tasks(model, [str(tmp_path / "none.yaml")])
    greedy = {"until": ["q"], "do_sample": False, "temperature": 0.0, "top_p": 0.9, "max_tokens": 3}
    ((text,), (again,)) = (RuntimeLM(model).generate_until([request("sky", greedy)]) for _ in "ab")
    assert text == again and len(model.tokenizer.encode(text)) <= 3
    options = {"until": ["q"], "num_beams": 4}
    with pytest.raises(ValueError, match="generate with num_beams, which is not known here"):
        RuntimeLM(model).generate_until([request("blue", options)])
    with pytest.raises(ValueError, match="asks for 400 new tokens, the model reads 400"):
        RuntimeLM(model).generate_until([request("blue", {"max_gen_toks": 400})])


def test_every_pair_is_in_one_problem_whose_contexts_go_on_from_what_is_shared() -> None:
    rng = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 50, (count,), generator=rng).tolist()

    shots = [ids(60), ids(90), ids(10)]
    contexts = [[*shots[n % 3], *ids(1 + n % 17)] for n in range(300)] + [[5], [5, 9]]
    pairs = [(context, ids(2)) for context in contexts for _ in range(3)]
    seen: list[int] = []
    lengths = set()
    for shared, problems in problems_of(pairs):
        lengths.add(len(shared))
        for numbers in problems:
            seen += numbers
            (context,) = {tuple(pairs[number][0]) for number in numbers}
            assert list(context[: len(shared)]) == shared and len(context) > len(shared)
    assert sorted(seen) == list(range(len(pairs))) and lengths == {0, 60, 90}
