"""The models of one evaluation, compared document by document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketlm.eval.answers_file import transcript
from pocketlm.eval.figures import paired_difference
from pocketlm.eval.suites.suite import Suite
from pocketlm.model.json_lines import json_lines


def paired_differences(
    folder: Path, suites: Sequence[Suite], pairs: Mapping[str, str]
) -> list[dict[str, Any]]:
    """For each pair {label: the label it is compared to} and suite, from the answers that an
    evaluation's folder keeps.
    """
    differences = []
    for label, other in pairs.items():
        for suite in suites:
            rows, others = (
                [row for _, row in json_lines(transcript(folder, side, suite.name))]
                for side in (label, other)
            )
            difference = paired_difference(suite, rows, others)
            differences.append(
                {"suite": suite.name, "model": label, "compared_to": other, **difference}
            )
    return differences


def pairs_of(models: Mapping[str, Path], baseline: str | None) -> dict[str, str]:
    """{label: the label it is compared to}: an exported file with the last checkpoint before it,
    the baseline with the first checkpoint.
    """
    pairs, checkpoint = {}, None
    for label, path in models.items():
        if label == baseline:
            continue
        if path.is_dir():
            checkpoint = label
        elif checkpoint is not None:
            pairs[label] = checkpoint
    folders = [label for label, path in models.items() if path.is_dir() and label != baseline]
    if baseline is not None and folders:
        pairs[baseline] = folders[0]
    return pairs
