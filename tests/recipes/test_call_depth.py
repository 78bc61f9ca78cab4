"""How deep the calls go from the command to the loss: what a person reads in a traceback.

pytest -s tests/recipes/test_call_depth.py prints the stack.
"""

import sys
import traceback
from pathlib import Path

import pytest
from torch import Tensor

from pocketlm import cli
from pocketlm.model.batch import Batch
from pocketlm.model.transformer import Transformer
from pocketlm.stages import training
from pocketlm.train.losses import next_token_loss

PACKAGE = Path(cli.__file__).parent
MOST_FRAMES = 12  # from `main` to the loss, both counted
RECIPE = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from dataclasses import replace

from tiny import PHASE, SHAPE, corpus_of, curate, pretrain


def recipe(run, folder: Path):
    corpus = run(curate, corpus_of(folder))
    shares = dict.fromkeys(("problems", "notes"), 0.5)
    return run(pretrain, replace(PHASE, name="base", model=SHAPE, shares=shares), corpus=corpus)
"""


def test_the_loss_is_at_most_12_calls_below_the_command(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "two_stages.py"
    recipe.write_text(RECIPE.format(tests=str(Path(__file__).parent)))
    stacks: list[list[str]] = []

    def spied_loss(model: Transformer, batch: Batch) -> Tensor:
        stacks.append(
            [
                f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_stack()[:-1]
                if Path(frame.filename).is_relative_to(PACKAGE) or frame.filename == str(recipe)
            ]
        )
        return next_token_loss(model, batch)

    monkeypatch.setattr(training, "next_token_loss", spied_loss)
    words = ["run", str(recipe), str(documents), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["pocketlm", *words])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert not exited.value.code and stacks
    calls = [*stacks[0], "losses.py next_token_loss"]
    print("", *(f"{number:3} {call}" for number, call in enumerate(calls, start=1)), sep="\n")
    assert calls[0].endswith(" main") and len(calls) <= MOST_FRAMES
