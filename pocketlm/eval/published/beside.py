"""A paper's figures beside ours: where the protocol is the paper's, and else the fields that
differ.
"""

from __future__ import annotations

from typing import Any

from pocketlm.eval.published import pro, r1
from pocketlm.eval.suites.suite import DIFFERS, NOT_FOUND, Suite

TABLES = (*r1.TABLES, *pro.TABLES)
ALONE = {"samples": 1}  # what Suite.protocol() leaves out where it is so


def published(suite: Suite, limit: int | None) -> list[dict[str, Any]]:
    """What papers print of this suite, a dict for each table, for evaluation.json.

    source: paper and table. differs: the fields that are not the paper's, each with both values; a
    figure is the paper's where there is none. open: what the paper does not say, and what stands
    in its place here. cells: model, parameters (millions), value (percent), certainty.
    """
    entries = []
    for table in TABLES:
        for column in table.columns:
            if column.suite and column.suite == suite.name:
                entries.append(
                    {
                        "source": table.source,
                        "benchmark": column.benchmark,
                        "differs": differing(suite, column.protocol, limit),
                        "open": [
                            f"{field}: {text}"
                            for field, text in suite.sources.items()
                            if NOT_FOUND in text
                        ],
                        "cells": [vars(cell) for cell in column.cells],
                    }
                )
    return entries


def differing(suite: Suite, stated: Any, limit: int | None) -> list[str]:
    """The fields of a suite that are other than a paper states, one text each."""
    ours = {**ALONE, **suite.protocol()}
    lines = [
        f"{field}: {ours.get(field, 'none')} here, {value} there"
        for field, value in stated.items()
        if ours.get(field) != value
    ]
    lines += [
        f"{field}: {text.partition(DIFFERS)[2].lstrip(': ')}"
        for field, text in suite.sources.items()
        if text.startswith(DIFFERS)
    ]
    if limit is not None:
        lines.append(f"documents: {limit:,} here, of all families, all there")
    return lines
