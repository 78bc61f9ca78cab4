"""Every training stage of the papers' recipes draws its first and its last step: its own mix and
rows, tiny text.
"""

from pathlib import Path

import pytest

from pocketlm.data.batches import (
    BLOCK,
    BatchPlan,
    ConversationRows,
    TextRows,
    block_totals,
    make_batches,
)
from pocketlm.data.mixture import check_shares
from pocketlm.data.shards import read_shard, write_shard
from pocketlm.runner.dry_run import dry_run
from pocketlm.runner.recipe_file import load_recipe
from pocketlm.runner.record import Call

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = {
    "r1-140m": ("r1.py", {"size": "140m"}),
    "r1-950m": ("r1.py", {"size": "950m"}),
    "pro": ("pro.py", {}),
}
SEQ_LEN = 8


@pytest.fixture(params=SIZES.values(), ids=list(SIZES))
def trainings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Call]:
    monkeypatch.chdir(tmp_path)  # where no tokenizer and no teacher lies
    recipe, flags = request.param
    calls = dry_run(load_recipe(RECIPES / recipe), tmp_path / "run", missing_ok=True, **flags).calls
    return [
        call
        for call in calls
        if getattr(call.config, "optim", None) and hasattr(call.config, "rows_per_step")
    ]


@pytest.fixture
def text(tmp_path: Path) -> TextRows:
    """Three rows of one shard."""
    write_shard(
        tmp_path,
        "train",
        [[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 9, 9], [0, 8, 7, 6, 5, 4, 3, 2]],
        vocab_size=10,
    )
    return TextRows(read_shard(tmp_path, "train"), SEQ_LEN, 0)


def test_each_stage_draws_its_first_and_last_step(trainings: list[Call], text: TextRows) -> None:
    chats = ConversationRows([([1, 2, 3], [False, True, True])] * 4, SEQ_LEN, 0)
    assert len(trainings) >= 6
    for call in trainings:
        config = call.config
        shares = getattr(config, "shares", None)
        mix = shares or getattr(config, "conversation_shares", None)
        own = check_shares(mix, list(mix), call.name) if mix else {"conversations": 1.0}
        sources = dict.fromkeys(own, text if shares else chats)
        layout = BatchPlan(
            seq_len=SEQ_LEN,
            rows_per_step=config.rows_per_step,
            micro_batch_size=config.micro_batch_size,
            seed=config.seed,
        )
        batches = make_batches(sources, own, layout, separate_documents=shares is None)
        for step in (0, config.optim.num_steps - 1):
            rows = [row for batch in batches(step) for row in batch.rows]
            assert len(rows) == config.rows_per_step and {name for name, _ in rows} <= set(own)


def test_over_a_whole_training_each_source_has_had_its_published_share_to_the_row(
    trainings: list[Call],
) -> None:
    mixes = [call for call in trainings if getattr(call.config, "shares", None)]
    assert mixes
    for call in mixes:
        shares = check_shares(call.config.shares, list(call.config.shares), call.name)
        names = sorted(shares)
        blocks = call.config.optim.num_steps * call.config.rows_per_step // BLOCK
        for number in {1, 2, blocks // 3, blocks} - {0}:
            totals = block_totals([shares[name] for name in names], number)
            for name, rows in zip(names, totals.tolist(), strict=True):
                assert abs(rows - number * BLOCK * shares[name]) < 1 + 1e-6, (call.name, name)
