"""The scorer that a config names: a classifier of Hugging Face, or one trained on labels."""

from pathlib import Path
from typing import Any

import torch

from pocketlm.data.probe_building.classifier import open_classifier
from pocketlm.data.probe_building.embedding import EmbedderName, open_embedder
from pocketlm.data.probe_building.light_scorer import read_labels, train_light_scorer
from pocketlm.data.probe_building.scores import Scorer

LABELS = ".jsonl"


def open_scorer(
    name: str, embedder: EmbedderName, device: torch.device
) -> tuple[Scorer, dict[str, Any]]:
    """(the scorer, what is to be known of it). name: a folder, a hub id, or a .jsonl of labels."""
    if not name.endswith(LABELS):
        return open_classifier(name, device), {"by": name}
    file = Path(name).expanduser()
    if not file.is_file():
        raise ValueError(f"scorer {name}: no such file of labels")
    scorer = train_light_scorer(*read_labels(file), open_embedder(embedder))
    facts = {
        "by": f"ridge regression on {scorer.num_labels} labels of {file.name}",
        "penalty": scorer.penalty,
        "layout_scale": scorer.layout_scale,
        "leave_one_out_error": round(scorer.error, 4),
        "spread_of_labels": round(scorer.spread, 4),
    }
    return scorer, facts
