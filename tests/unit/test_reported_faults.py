"""What people reported of tools for this job, and the tests of the right behaviour: a table that
holds as long as the tests it names are there, and the tests that stand nowhere else.
"""

import ast
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import transformers
from chat_templates import CHATML, IM, KINDS, Kind, write_tokenizer

from pocketlm.data.encoding import encode_documents
from pocketlm.export.gguf import write_gguf
from pocketlm.inference.gguf_header import read_header
from pocketlm.inference.gguf_tokenizer import tokenizer_of
from pocketlm.model.answers import Example
from pocketlm.model.chat_template import ChatRefused
from pocketlm.model.tokenizer import Tokenizer
from tests.unit.test_foreign_tokenizers import changed
from tests.unit.test_gguf_header import rewritten
from tests.unit.tokenizer_kinds import byte_level, tiny

TESTS = Path(__file__).parent.parent
HERE = "unit/test_reported_faults.py"
CHATS, FOREIGN = "unit/test_conversations.py", "unit/test_foreign_tokenizers.py"
TEMPLATES, WEIGHTS = "numerics/test_chat_templates.py", "unit/test_weights.py"
TALK = [
    {"role": "user", "content": "What is 12 + 30?"},
    {"role": "assistant", "content": "It is 42"},
]

# fault -> {file of tests: names}
REPORTED: dict[str, dict[str, tuple[str, ...]]] = {
    # bos begins a turn (SmolLM2-Instruct), and stood before every document
    "bos-is-turn-start": {
        FOREIGN: (
            "test_documents_begin_with_what_the_tokenizer_offers_for_that",
            "test_documents_begin_with_nothing_where_every_special_token_is_a_turns",
            "test_whether_a_bos_is_added_is_read_kept_and_written",
        ),
        HERE: ("test_no_document_of_a_shard_begins_with_the_start_of_a_turn",),
    },
    # stop texts of a base model cut the answers of a chat model
    "eval-cuts-answers": {
        "unit/test_eval_harness.py": (
            "test_a_chat_models_whole_answer_counts_whatever_texts_are_in_it",
        ),
        "unit/test_terminal.py": (
            "test_a_chat_models_answer_ends_with_its_turn_and_not_where_a_base_model_runs_on",
        ),
    },
    # a .gguf whose eos is the base model's, and that names no end of a turn
    "gguf-without-eot": {
        "unit/test_gguf_header.py": (
            "test_what_another_program_leaves_out_follows_as_in_llama_cpp",
        ),
        HERE: ("test_a_gguf_that_names_no_end_of_a_turn_teaches_that_of_its_template",),
    },
    # a template that thinks in the last answer alone: conversations of two answers ended the run
    "hybrid-thinking-multiturn": {
        "unit/test_tokenizer.py": (
            "test_a_template_that_rewrites_earlier_turns_is_learnt_answer_by_answer",
            "test_a_template_that_asks_otherwise_than_it_shows_is_refused",
        ),
        TEMPLATES: ("test_thinking_is_learnt_with_the_answer_it_belongs_to",),
    },
    # templates that transformers renders: tags, functions, a list of templates, refusals
    "jinja-crashes": {
        TEMPLATES: (
            "test_ids_and_prompts_are_those_of_transformers",
            "test_masks_are_transformers_where_the_template_marks_generations",
            "test_what_a_template_does_not_say_is_refused_by_name",
            "test_templates_by_name",
        ),
        CHATS: ("test_all_that_is_left_out_is_counted_by_reason",),
        HERE: ("test_a_template_may_leave_its_loop_as_in_transformers",),
    },
    # conversations longer than a row were left out, and nobody counted them
    "long-chats-uncounted": {
        CHATS: (
            "test_all_that_is_left_out_is_counted_by_reason",
            "test_a_truncated_conversation_keeps_its_beginning_and_never_an_end_behind_the_cut",
            "test_inspect_shows_what_is_learnt_and_counts_the_rest",
        )
    },
    # branches with other tokenizers were averaged
    "merge-other-tokenizer": {
        "unit/test_merge_stage.py": (
            "test_models_that_mean_other_things_by_their_ids_are_not_merged",
        )
    },
    # weight 0, reasoning_content and tool_calls were dropped without a word
    "message-fields": {
        CHATS: (
            "test_a_field_that_cannot_be_honoured_is_refused_by_name",
            "test_a_conversation_on_disk_reads_back_as_it_was",
        ),
        TEMPLATES: (
            "test_an_answer_of_weight_0_is_read_and_not_learnt",
            "test_tools_and_calls_reach_the_template",
            "test_what_a_template_does_not_say_is_refused_by_name",
        ),
    },
    # JSON of another shape ended in a traceback
    "odd-json": {
        "unit/test_json_shape.py": (
            "test_a_file_that_holds_no_object_is_named",
            "test_a_field_of_another_kind_is_named_with_what_it_is",
            "test_a_missing_field_is_named_by_its_place_and_never_a_key_error",
        ),
        WEIGHTS: ("test_an_index_of_another_shape_is_one_message",),
        FOREIGN: ("test_files_of_another_shape_end_in_one_message_that_names_them",),
    },
    # rope_scaling beside rope_parameters was passed over
    "rope-scaling-beside-parameters": {
        "numerics/test_config_fields.py": (
            "test_a_field_that_is_read_changes_the_logits_as_in_transformers",
            "test_a_field_that_cannot_be_honoured_is_refused_by_its_name",
        )
    },
    # bos and eos in special_tokens_map.json alone
    "special-tokens-map": {FOREIGN: ("test_special_tokens_of_special_tokens_map_json_are_read",)},
    # a chat that spells a special token ended the run
    "special-words-in-chat": {
        CHATS: ("test_a_text_that_spells_a_special_word_is_learnt_as_plain_text",),
        TEMPLATES: ("test_special_words_in_random_conversations_are_text",),
        "unit/test_corpus_curate.py": (
            "test_a_text_that_spells_a_special_token_is_plain_text_and_stops_nothing",
        ),
    },
    # turns encoded apart: each answer began with a space that no prompt has
    "spm-turn-prefix": {
        TEMPLATES: (
            "test_ids_and_prompts_are_those_of_transformers",
            "test_an_answer_and_its_end_are_learnt_after_the_ids_of_the_prompt",
            "test_random_conversations_have_the_ids_of_transformers",
        )
    },
    # an index of older shards beside a newer file of weights
    "stale-shards": {
        WEIGHTS: (
            "test_of_an_index_and_a_single_file_the_single_file_is_read_and_said",
            "test_shards_that_the_index_does_not_name_are_told",
        )
    },
    # a template that ends no answer: the model never stops
    "template-without-eos": {
        CHATS: ("test_a_template_without_an_end_is_warned_of_and_written_down",)
    },
    # tokenizer.model without tokenizer.json
    "tokenizer-model-only": {FOREIGN: ("test_a_sentencepiece_model_alone_is_read",)},
    # truncation that a script left in tokenizer.json
    "tokenizer-truncation": {
        FOREIGN: ("test_truncation_and_padding_that_a_script_left_are_dropped_and_told",)
    },
    # turns end in a token that generation_config.json or the template alone names
    "turn-end-by-name": {
        FOREIGN: (
            "test_answers_end_where_the_folder_says",
            "test_the_template_tells_where_turns_end_whatever_the_token_is_called",
        ),
        HERE: ("test_what_is_learnt_ends_with_the_end_of_the_turn_whatever_it_is_called",),
    },
    # a tokenizer that no .gguf can hold, said after the training
    "unigram-gguf": {
        "unit/test_gguf_vocab.py": ("test_what_a_gguf_cannot_hold_is_refused_with_what_can",),
        "unit/test_formats.py": (
            "test_a_recipe_that_cannot_end_in_its_formats_trains_nothing",
            "test_a_sentencepiece_base_becomes_a_gguf",
        ),
    },
    # files of a folder that were not read, and nobody said so
    "unread-files": {
        "unit/test_corpus_sources.py": (
            "test_what_people_plainly_mean_is_read",
            "test_each_file_of_a_folder_is_read_or_counted_by_reason",
            "test_linked_folders_are_read_once_and_circles_end",
        ),
        "unit/test_corpus_curate.py": (
            "test_files_and_documents_left_out_are_told_in_the_terminal_and_in_curation_json",
        ),
    },
    # special tokens beyond a gap in the ids
    "vocab-gap": {
        "unit/test_gguf_vocab.py": (
            "test_words_beyond_a_gap_stay_at_their_ids_and_unused_ids_get_names",
            "test_more_words_than_rows_are_refused_with_both_counts",
        ),
        FOREIGN: ("test_the_size_of_a_vocabulary_is_its_greatest_id_and_one",),
        "unit/test_checkpoint.py": (
            "test_a_tokenizer_larger_than_the_embedding_belongs_to_another_checkpoint",
        ),
    },
}


@cache
def names_of_tests(file: str) -> frozenset[str]:
    """The tests of a file that run: those that are not marked to be skipped or to fail."""
    functions = (
        node
        for node in ast.parse((TESTS / file).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )
    return frozenset(
        function.name
        for function in functions
        if not any(map(is_left_out, function.decorator_list))
    )


def is_left_out(mark: ast.expr) -> bool:
    return any(word in ast.unparse(mark) for word in ("mark.skip", "mark.xfail"))


@pytest.mark.parametrize("fault", REPORTED)
def test_the_tests_of_a_reported_fault_are_there_and_run(fault: str) -> None:
    missing = [
        f"tests/{file}::{name}"
        for file, names in REPORTED[fault].items()
        for name in names
        if name not in names_of_tests(file)
    ]
    assert not missing


def learnt_of(tokenizer: Tokenizer) -> str:
    """What the first answer of TALK teaches, special tokens written out."""
    (examples,) = tokenizer.answers([TALK])
    assert not isinstance(examples, ChatRefused)
    (example,) = examples
    assert isinstance(example, Example) and example.ends
    ids = [i for i, learn in zip(example.ids, example.learnt, strict=True) if learn]
    return tokenizer.decode(ids, keep_special=True)


def test_no_document_of_a_shard_begins_with_the_start_of_a_turn(tmp_path: Path) -> None:
    """SmolLM2-Instruct's tokenizer calls <|im_start|> its bos."""
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path / "t", KINDS["smollm 2"]))
    texts = [f"the quick brown fox {number}" for number in range(3)]
    documents = list(encode_documents(texts, tokenizer))
    end, turn = (tokenizer.backend.token_to_id(word) for word in ("<|endoftext|>", "<|im_start|>"))
    assert [ids[0] for ids in documents] == [end] * 3
    assert turn is not None and turn not in np.concatenate(documents)
    assert [tokenizer.decode(ids.tolist()) for ids in documents] == texts


@pytest.mark.parametrize("eos", ["<|endoftext|>", "<|im_end|>"])
def test_a_gguf_that_names_no_end_of_a_turn_teaches_that_of_its_template(
    eos: str, tmp_path: Path
) -> None:
    tokenizer = byte_level(eos_token=eos)
    file = write_gguf(tiny(tokenizer.vocab_size), tokenizer, tmp_path / "m.gguf", "f32")
    file = rewritten(file, {"tokenizer.ggml.eot_token_id": None}, tmp_path / "theirs.gguf")
    read = tokenizer_of(read_header(file))
    assert read.stop_ids == tokenizer.stop_ids
    assert learnt_of(read) == learnt_of(tokenizer) == "It is 42<|im_end|>"


LEAVES = CHATML.replace(
    "{% for message in messages %}",
    "{% for message in messages %}{% if message.role == 'x' %}{% continue %}{% endif %}"
    "{% if loop.index0 > 1 %}{% break %}{% endif %}",
)


def test_a_template_may_leave_its_loop_as_in_transformers(tmp_path: Path) -> None:
    kind = Kind(template=LEAVES, bos=None, eos="<|im_end|>", special=IM)
    folder = write_tokenizer(tmp_path / "t", kind)
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for messages in (TALK[:1], TALK, TALK + TALK):
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert ours.encode_chat(messages) == expected
    assert ours.render(TALK + TALK) == ours.render(TALK)
    assert learnt_of(ours) == "It is 42<|im_end|>"


def test_what_is_learnt_ends_with_the_end_of_the_turn_whatever_it_is_called(tmp_path: Path) -> None:
    """The template writes a newline after it, which no answer learns."""
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    special = ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>")
    kind = Kind(template=template, bos=None, eos="<|endoftext|>", special=special)
    folder = write_tokenizer(tmp_path / "t", kind)
    changed(folder, "generation_config.json", eos_token_id=[0, 1])
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.stop_ids == {0, 1} and learnt_of(tokenizer) == "It is 42<|end|>"
