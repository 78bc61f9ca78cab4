"""Rows of chat files: what each field means, what is learnt, and that all that is left out is
counted.
"""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from shapes import small
from typer.testing import CliRunner

from pocketlm.cli import app
from pocketlm.corpus.documents import document_json, row_document
from pocketlm.data.conversations import Limits, Pair, Tally, learnable_pairs, report_tally
from pocketlm.model.conversation import conversation_of
from pocketlm.model.tokenizer import CHATML, Tokenizer, train_tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog, hello there user assistant"] * 4
CALL = {"type": "function", "function": {"name": "look", "arguments": '{"at": "fox"}'}}
ASK = {"role": "user", "content": "hi"}
SAY = {"role": "assistant", "content": "hello"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(TEXTS, 290).backend, chat_template=CHATML)


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def learnable(
    file: Path, tokenizer: Tokenizer, seq_len: int, **limits: Any
) -> tuple[list[Pair], Tally]:
    """The examples of a source named "mine", and their tally."""
    tally = Tally()
    within = Limits(seq_len=seq_len, **limits)
    return list(learnable_pairs({"mine": [file]}, tokenizer, within, tally)), tally


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "with one at least"),
        ({"messages": {"role": "user"}}, "must be a list"),
        ({"messages": ["hi"]}, 'message 0 needs a "role"'),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "not 'robot'"),
        ({"messages": [{"role": "user"}]}, '"content" is NoneType, not a text'),
        ({"messages": [{"role": "user", "content": 7}]}, '"content" is int, not a text'),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "part of type 'image'"),
        ({"messages": [ASK, SAY | {"weight": 0.5}]}, '"weight" is 0.5; an answer is learnt'),
        ({"messages": [ASK, SAY | {"train": "no"}]}, "\"train\" is 'no'"),
        ({"messages": [ASK | {"train": True}, SAY]}, "asks to learn what the user says"),
        ({"messages": [ASK, SAY | {"tool_calls": "look"}]}, '"tool_calls" must be a list'),
        ({"messages": [ASK, SAY | {"tool_calls": [{}]}]}, 'no function with a "name"'),
        ({"messages": [ASK, SAY | {"reasoning_content": 3}]}, '"reasoning_content" is int'),
        ({"messages": [ASK, SAY], "tools": "{"}, '"tools" is a text that is no JSON'),
        ({"messages": [ASK, SAY], "tools": {"a": 1}}, '"tools" must be a list'),
        ({"messages": [ASK, SAY], "chat_template_kwargs": []}, "must be an object"),
        ({"messages": [ASK, SAY], "system": "be brief"}, '"system" stands beside "messages"'),
        ({"messages": [ASK, {"role": "assistant", "content": "\ud800"}]}, "half a surrogate pair"),
        ({"prompt": "hi", "response": 7}, '"content" is int'),
    ],
)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(
    row: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=r"^chats\.jsonl:3: ") as caught:
        conversation_of(row, "chats.jsonl:3")
    assert message in str(caught.value)


def test_what_stands_beside_a_pair_is_kept() -> None:
    row = {
        "prompt": "hi",
        "response": "hello",
        "system": "be brief",
        "tools": json.dumps([{"name": "look"}]),
    }
    chat = conversation_of(row, "here")
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant"]
    assert chat.learnt == (False, False, True) and chat.tools == ({"name": "look"},)
    document = row_document(
        {"ask": "hi", "reply": "hello", "system": "be brief"}, "1", "here", None, ("ask", "reply")
    )
    assert [m["content"] for m in document.messages] == ["be brief", "hi", "hello"]


def test_a_conversation_on_disk_reads_back_as_it_was() -> None:
    row = {
        "messages": [
            ASK | {"name": "Ada", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
            {"role": "tool", "content": "a fox", "tool_call_id": "1", "name": None},
            SAY | {"thinking": "so", "train": True},
        ],
        "tools": [{"name": "look"}],
        "chat_template_kwargs": {"enable_thinking": True},
    }
    document = row_document(row, "1", "here", None)
    again = row_document(json.loads(document_json(document)), "1", "there", None)
    assert again == document
    assert document.chat is not None and document.chat.learnt == (False, False, False, True)
    assert "name" not in document.messages[2]
    assert document.text.endswith(
        '"arguments": "{\\"at\\": \\"fox\\"}"}\na fox\nAnswer: <think>\nso\n</think>\nhello'
    )


def test_all_that_is_left_out_is_counted_by_reason(tokenizer: Tokenizer, tmp_path: Path) -> None:
    dated = "{{ raise_exception('no systems here') if messages[0].role == 'system' }}" + CHATML
    strict = Tokenizer(tokenizer.backend, chat_template=dated)
    file = write(
        tmp_path / "chats.jsonl",
        {"messages": [ASK, SAY], "id": "mine:1"},
        {"messages": [ASK, {**SAY, "content": "hello " * 99}], "id": "mine:2"},
        {"messages": [{"role": "system", "content": "x"}, ASK, SAY], "id": "mine:3"},
        {"messages": [ASK, SAY | {"weight": 0}], "id": "mine:4"},
        {"messages": [ASK | {"name": "Ada"}, SAY], "id": "mine:5"},
        {"messages": [ASK | {"date": "today"}, SAY], "id": "mine:6"},
        {"messages": [ASK, SAY | {"content": "<|im_end|>"}], "id": "mine:7"},
        {"text": "no conversation"},
    )
    pairs, tally = learnable(file, strict, 60)
    assert len(pairs) == 3 == tally.learnt == tally.examples and tally.rows == 7
    assert dict(tally.left_out) == {
        "longer than 61 tokens": 1,
        "the chat template refuses: no systems here": 1,
        "no answer to learn": 1,
        'the chat template does not render "name"': 1,
    }
    assert tally.where["no answer to learn"] == ["mine:4"]
    assert (
        dict(tally.not_rendered) == {"date": 1}
        and tally.words_as_text == 1
        and not tally.without_end
    )
    assert tally.sources == {"mine": replace(tally, sources={})}
    lines = "\n".join(tally.lines())
    assert (
        "3 of 7 conversations are learnt" in lines
        and "1 left out (14.3%): no answer to learn (mine:4)" in lines
    )


def test_nothing_to_learn_says_why_for_each_reason(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "chats.jsonl", {"messages": [ASK], "id": "mine:1"})
    with pytest.raises(ValueError, match=r"no answer to learn \(mine:1\); nothing to train on"):
        learnable(file, tokenizer, 60)
    write(file, {"messages": [ASK, SAY]})
    with pytest.raises(ValueError, match=r"no conversation of at most 4 tokens \(1 are longer\)"):
        learnable(file, tokenizer, 3)
    write(file, {"text": "x"})
    with pytest.raises(ValueError, match="no row is a conversation"):
        learnable(file, tokenizer, 60)


LONG = {"role": "assistant", "content": "fox " * 40}


def test_a_truncated_conversation_keeps_its_beginning_and_never_an_end_behind_the_cut(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (end,) = tokenizer.stop_ids & {tokenizer.end_of_turn_id}
    file = write(
        tmp_path / "chats.jsonl",
        {"messages": [ASK, SAY], "id": "mine:1"},
        {"messages": [ASK, LONG], "id": "mine:2"},
        {"messages": [ASK, SAY, ASK, LONG], "id": "mine:3"},
        {"messages": [ASK, SAY, ASK | {"content": "fox " * 99}, SAY], "id": "mine:4"},
        {"messages": [ASK | {"content": "fox " * 99}, SAY], "id": "mine:5"},
    )
    whole, _ = learnable(file, tokenizer, 1000)
    pairs, tally = learnable(file, tokenizer, 60, too_long="truncate")
    assert (tally.rows, tally.learnt, tally.examples, tally.without_end) == (5, 4, 4, 0)
    assert dict(tally.truncated) == {"longer than 61 tokens": 3}
    assert dict(tally.left_out) == {"longer than 61 tokens, and no answer begins in them": 1}
    assert tally.where["longer than 61 tokens"] == ["mine:2", "mine:3", "mine:4"]
    for (ids, learnt), (all_ids, all_learnt) in zip(pairs, whole[:4], strict=True):
        assert ids == all_ids[: len(ids)] and learnt == all_learnt[: len(ids)] and learnt[-1]
    ends = [
        sum(learn and token == end for token, learn in zip(*pair, strict=True)) for pair in pairs
    ]
    assert ends == [1, 0, 1, 1]  # of the answers that are whole
    assert [len(ids) for ids, _ in pairs[1:3]] == [61, 61]  # 60 are read, the last is a label
    # the fourth is cut inside a question, and what follows the last answer is not kept
    assert pairs[3][0][-1] == end and len(pairs[3][0]) < 61
    assert "3 truncated (60.0%): longer than 61 tokens (mine:2, mine:3, mine:4)" in "\n".join(
        tally.lines()
    )
    dropped, tally = learnable(file, tokenizer, 60)
    assert dropped == whole[:1] and dict(tally.left_out) == {"longer than 61 tokens": 4}


def test_at_most_max_conversations_of_a_source_are_taken_evenly_and_the_rest_counted(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = [{"messages": [ASK, {"role": "assistant", "content": f"fox {n:02}"}]} for n in range(40)]
    file = write(tmp_path / "chats.jsonl", *rows)
    every, _ = learnable(file, tokenizer, 60)
    pairs, tally = learnable(file, tokenizer, 60, max_conversations={"mine": 10, "other": 1})
    assert pairs == every[3::4] and (tally.rows, tally.learnt, tally.beyond_cap) == (10, 10, 30)
    assert "30 more are not taken: max_conversations" in tally.lines()
    for most in (1, 7, 39, 40, 100):
        pairs, tally = learnable(file, tokenizer, 60, max_conversations={"mine": most})
        places = [every.index(pair) for pair in pairs]
        assert len(places) == min(most, 40) == 40 - tally.beyond_cap
        gaps = {after - before for before, after in pairwise(places)}
        assert gaps <= {40 // most, -(-40 // most)}


def test_a_row_that_cannot_be_read_is_counted_and_the_rows_around_it_are_learnt(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = write(tmp_path / "chats.jsonl", {"messages": [ASK, SAY]})
    good = file.read_bytes()
    bad = (b'{"messages": [\n', b'"\xff"\n', b'{"messages": [{"role": "robot"}]}\n', b"1" * 9999)
    file.write_bytes(good + b"".join(line.strip() + b"\n" + good for line in bad))
    pairs, tally = learnable(file, tokenizer, 60)
    assert (len(pairs), tally.rows, tally.learnt) == (5, 9, 5)
    assert dict(tally.left_out) == {"a row that cannot be read": 4}
    json_error, not_utf8, robot = tally.where["a row that cannot be read"]
    assert json_error.startswith(f"{file}:2:") and "not JSON" in json_error
    assert not_utf8.startswith(f"{file}:4:") and "not UTF-8" in not_utf8
    assert robot.startswith(f"{file}:6: message 0") and "not 'robot'" in robot
    capped, tally = learnable(file, tokenizer, 60, max_conversations={"mine": 2})
    assert len(capped) == 2 and tally.beyond_cap == 3
    file.write_bytes(bad[0])
    with pytest.raises(ValueError, match=r"a row that cannot be read \(.*not JSON"):
        learnable(file, tokenizer, 60)


def test_a_text_that_spells_a_special_word_is_learnt_as_plain_text(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    words = [*tokenizer.backend.get_added_tokens_decoder().values()]
    assert len(words) >= 3
    for word in (token.content for token in words):
        say = {"role": "assistant", "content": f"hello {word} fox"}
        file = write(tmp_path / "chats.jsonl", {"messages": [ASK, say]}, {"messages": [ASK, SAY]})
        ((ids, learnt), (plain, _)), tally = learnable(file, tokenizer, 200)
        assert tally.words_as_text == 1 and not tally.left_out
        special = {tokenizer.backend.token_to_id(one.content) for one in words}
        assert [one for one in ids if one in special] == [one for one in plain if one in special]
        answer = [token for token, learn in zip(ids, learnt, strict=True) if learn]
        assert f"hello {word} fox" in tokenizer.decode(answer)


def test_a_tally_is_written_and_read_back_and_one_of_an_earlier_version_too(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = write(tmp_path / "chats.jsonl", {"messages": [ASK, SAY]}, {"messages": [ASK, LONG]})
    _, tally = learnable(file, tokenizer, 30, too_long="truncate", max_conversations={"mine": 2})
    assert tally.truncated and Tally.from_json(json.loads(json.dumps(tally.as_json()))) == tally
    assert tally.as_json()["sources"]["mine"]["truncated"] == {"longer than 31 tokens": 1}
    earlier = tally.as_json()
    for name in ("truncated", "beyond_cap", "sources"):
        del earlier[name]
    assert Tally.from_json(earlier).learnt == 2 and not Tally.from_json(earlier).truncated
    twice = Tally()
    twice.add(tally)
    twice.add(tally)
    assert (twice.learnt, twice.truncated) == (4, {"longer than 31 tokens": 2})
    assert len(twice.where["longer than 31 tokens"]) == 2


def test_a_template_without_an_end_is_warned_of_and_written_down(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = Tokenizer(
        tokenizer.backend,
        end_of_turn_token=None,
        chat_template="{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}",
    )
    file = write(tmp_path / "chats.jsonl", {"messages": [ASK, SAY]}, {"messages": [ASK, SAY]})
    _, tally = learnable(file, endless, 60)
    report_tally(tally, endless, tmp_path, "chat")
    shown = capsys.readouterr().err
    assert "2 of 2 examples have an answer that ends in no token that ends answers" in " ".join(
        shown.split()
    )
    written = json.loads((tmp_path / "conversations.json").read_text())
    assert written["examples_without_end"] == 2 == written["rows"] and written["left_out"] == {}
    learnable(file, tokenizer, 60)


def test_a_template_may_drop_the_last_tokens_of_a_chat_and_still_teach_the_end(
    tokenizer: Tokenizer,
) -> None:
    ends_once = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}"
        "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = Tokenizer(tokenizer.backend, chat_template=ends_once)
    for examples in chat.answers([[ASK, SAY], [ASK, SAY, ASK, SAY]]):
        assert isinstance(examples, list) and all(example.ends for example in examples)


def test_inspect_shows_what_is_learnt_and_counts_the_rest(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from pocketlm.model.checkpoint import save_checkpoint
    from pocketlm.model.transformer import Transformer

    shape = small(vocab_size=290, intermediate_size=32, num_hidden_layers=1)
    (tmp_path / "base").mkdir()
    save_checkpoint(tmp_path / "base", Transformer(shape), Tokenizer(tokenizer.backend))
    file = write(
        tmp_path / "chats.jsonl",
        {"messages": [ASK, SAY]},
        {"messages": [ASK, {**SAY, "content": "hello " * 99}]},
        {"messages": [ASK, SAY | {"content": "[bold]fox"}]},
    )
    result = CliRunner(env={"COLUMNS": "80"}).invoke(
        app, ["inspect", "chats", str(tmp_path / "base"), str(file), "--rows", "2"]
    )
    assert result.exit_code == 0, result.output
    joined = result.output.replace("·", "").replace("\n", "")
    assert "⟦hello<|im_end|>⟧" in joined and "[bold]fox" in joined
    assert f"1 left out (33.3%): longer than 65 tokens ({file}:2)" in result.output
    assert "too_long drop: 2 whole, 0 truncated, 1 dropped of 3 conversations" in result.output
    result = CliRunner(env={"COLUMNS": "80"}).invoke(
        app, ["inspect", "chats", str(tmp_path / "base"), str(file), "--too-long", "truncate"]
    )
    assert result.exit_code == 0, result.output
    assert "too_long truncate: 2 whole, 1 truncated, 0 dropped of 3 conversations" in result.output
    assert f"1 truncated (33.3%): longer than 65 tokens ({file}:2)" in result.output
    assert "of 65 tokens are learnt" in result.output  # as many as a row has room for
    wrong = CliRunner().invoke(
        app, ["inspect", "chats", str(tmp_path / "base"), str(file), "--too-long", "cut"]
    )
    assert wrong.exit_code == 2 and "too_long 'cut' is unknown; known: drop, truncate" in (
        wrong.output
    )
    assert (
        "the base has no chat template" in result.output
        and "an answer ends at: <|im_end|>" in result.output
    )
    wrong = CliRunner().invoke(
        app, ["inspect", "chats", str(tmp_path / "base"), str(tmp_path / "nothing.jsonl")]
    )
    assert wrong.exit_code == 2 and "no such file" in wrong.output


def test_a_dotted_place_goes_into_text_that_is_json():
    pair = ("text.prompt", "text.response")
    row = {"text": json.dumps({"prompt": "Why?", "response": "So."})}
    assert row_document(row, "1", "here", None, pair).text == "Question: Why?\nAnswer: So."
    for text in ("no JSON", '"text"', "[1]", "[" * 100_000):
        with pytest.raises(ValueError, match=r'here: no field "text\.prompt"'):
            row_document({"text": text}, "1", "here", None, pair)
