"""Which documents stay: one pass over their records, in the order of the sources, then of reading.

A document goes when it is like an earlier one that stays, so the first of a group is kept whatever
the number of workers. max_bytes ends a source at the first document that does not fit.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from pocketlm.corpus.clean import CONTAMINATED
from pocketlm.corpus.documents import SPLITS, SplitRule, row_document
from pocketlm.corpus.duplicates import Groups
from pocketlm.corpus.read_step import (
    EXAMPLES,
    ReadTask,
    example,
    load_items,
    load_records,
    part_folder,
    read_part_record,
)
from pocketlm.corpus.reading import Reading, unread_words
from pocketlm.corpus.sources import LocalSource, Source

# of each piece, one byte in decisions/<task>.bin. FILTERED: its record names the reason
KEPT, FILTERED, EXACT, NEAR, AFTER_CAP = range(5)
DUPLICATES = {EXACT: "exact_duplicate", NEAR: "near_duplicate"}


@dataclass(kw_only=True)
class Outcome:
    """What one source gave: every piece read is kept, or counted under what dropped it.

    shortened: documents that a filter cut something out of, and the bytes it cut. capped: max_bytes
    was reached, so the source was not read to its end. moves: places that leave "train" for a split
    that got none.
    """

    source: Source
    read: dict[str, int] = field(default_factory=lambda: {"documents": 0, "bytes": 0})
    dropped: dict[str, int] = field(default_factory=dict)
    shortened: dict[str, int] = field(default_factory=lambda: {"documents": 0, "bytes": 0})
    kept: dict[str, dict[str, int]] = field(
        default_factory=lambda: {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    )
    examples: dict[str, list[str]] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    capped: bool = False
    moves: dict[float, str] = field(default_factory=dict)
    lowest: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in SPLITS})

    def report(self) -> dict[str, Any]:
        """What documents/<source>/source.json says."""
        return {
            "files": self.reading.summary(),
            "read": self.read,
            "capped": self.capped,
            "dropped": self.dropped,
            "shortened": self.shortened,
            "kept": self.kept,
            "examples": self.examples,
        }


class TooShort(Exception):
    """Tasks that ended at their limit, though duplicates left room below the source's cap."""

    def __init__(self, tasks: list[int]) -> None:
        super().__init__(tasks)
        self.tasks = tasks


def decide(
    tasks: Sequence[ReadTask],
    unread: dict[str, dict[str, Any]],
    groups: Groups,
    work: Path,
    rule: SplitRule,
) -> dict[str, Outcome]:
    """What became of each source, by name; decisions/<task>.bin says it of each piece.

    unread: for each source, files that no task reads. TooShort where tasks must read on first.
    ValueError where nothing is left of a source.
    """
    (work / "decisions").mkdir(exist_ok=True)
    taken = [np.zeros(size, dtype=bool) for size in groups.sizes()]
    outcomes: dict[str, Outcome] = {}
    too_short = []
    for number, task in enumerate(tasks):
        outcome = outcomes.setdefault(
            task.source.name,
            Outcome(source=task.source, reading=Reading(unread=deepcopy(unread[task.source.name]))),
        )
        part, folder = read_part_record(work, number), part_folder(work / "parts", number)
        items = load_items(folder)
        members = groups.of_task(number, np.flatnonzero(items["near"]))
        contaminated = _reason(part, CONTAMINATED)
        codes = (items["reason"] > 0).astype(np.uint8)
        end = _mark(
            codes, items, members, taken, contaminated, groups.num_ranges, task.source.max_bytes
        )
        (work / "decisions" / f"{number:05d}.bin").write_bytes(codes.tobytes())
        if end is None and not part["ended"]:
            too_short.append(number)
        _count(outcome, items, codes, part, end, folder, task)
    if too_short:
        raise TooShort(too_short)
    for name, outcome in outcomes.items():
        _check_not_empty(outcome)
        outcome.moves = rule.moved(outcome.lowest)
        for number, task in enumerate(tasks):
            if outcome.moves and task.source.name == name:
                _count_moves(outcome, work, number)
    return outcomes


def _reason(part: dict[str, Any], name: str) -> int:
    """The number of a reason in this part's records; one that none has where it is not there."""
    return part["reasons"].index(name) + 1 if name in part["reasons"] else 255


def _mark(
    codes: np.ndarray,
    items: np.ndarray,
    members: np.ndarray,
    taken: list[np.ndarray],
    contaminated: int,
    num_ranges: int,
    max_bytes: int | None,
) -> int | None:
    """Sets the codes of duplicates, and of all that follows the cap, which is where it returns."""
    by_item = groupby(members.tolist(), key=itemgetter(0))
    if max_bytes is None:
        for item, rows in by_item:
            is_contaminated = int(items["reason"][item]) == contaminated
            code = int(codes[item])
            codes[item] = _decide(code, is_contaminated, list(rows), taken, num_ranges)
        return None
    waiting = next(by_item, None)
    kept_bytes = 0
    sizes, reasons = items["size"].tolist(), items["reason"].tolist()
    for item, size in enumerate(sizes):
        rows = []
        if waiting is not None and waiting[0] == item:
            rows = list(waiting[1])
            waiting = next(by_item, None)
        fits = kept_bytes + size <= max_bytes
        code = _decide(
            int(codes[item]), reasons[item] == contaminated, rows, taken, num_ranges, take=fits
        )
        if code == KEPT and not fits:
            codes[item:] = AFTER_CAP
            return item
        codes[item] = code
        kept_bytes += size if code == KEPT else 0
    return None


def _decide(
    code: int,
    contaminated: bool,
    rows: list[tuple[int, int, int]],
    taken: list[np.ndarray],
    num_ranges: int,
    *,
    take: bool = True,
) -> int:
    """The code of one piece, by its groups; what is kept takes them."""
    for _, file, group in rows:  # exact ones first
        if taken[file][group]:
            if file < num_ranges:
                return EXACT
            if not contaminated:
                return NEAR
    if code == KEPT and take:
        for _, file, group in rows:
            taken[file][group] = True
    return code


def _count(
    outcome: Outcome,
    items: np.ndarray,
    codes: np.ndarray,
    part: dict[str, Any],
    end: int | None,
    folder: Path,
    task: ReadTask,
) -> None:
    """Adds one task's pieces to what its source gave. end: the piece that did not fit."""
    stop = len(items) if end is None else end
    seen = items[: stop + 1]  # the piece that did not fit was read too
    outcome.read["documents"] += stop
    outcome.read["bytes"] += int(seen["read"].sum())
    outcome.shortened["documents"] += int((seen["cut"] > 0).sum())
    outcome.shortened["bytes"] += int(seen["cut"].sum())
    opened = part["files"]
    if end is not None:
        outcome.capped = True
        opened = opened[: int(items["file"][end])]
    outcome.reading.opened += opened
    if end is not None and isinstance(task.source, LocalSource):
        for name, *_ in task.place[len(opened) :]:
            outcome.reading.leave("after_max_bytes", name)
    kept = codes == KEPT
    for number, split in enumerate(SPLITS):
        chosen = items[kept & (items["split"] == number)]
        outcome.kept[split]["documents"] += len(chosen)
        outcome.kept[split]["bytes"] += int(chosen["size"].sum(dtype=np.int64))
        places = np.unique(chosen["place"])[:3].tolist()
        outcome.lowest[split] = sorted({*outcome.lowest[split], *places})[:3]
    _count_dropped(outcome, items[:stop], codes[:stop], part, folder)


def _count_dropped(
    outcome: Outcome, items: np.ndarray, codes: np.ndarray, part: dict[str, Any], folder: Path
) -> None:
    # reasons of this part from 1 on, duplicates behind them all
    labels = np.where(codes == FILTERED, items["reason"], 0).astype(np.int64)
    labels[codes == EXACT], labels[codes == NEAR] = 256 + EXACT, 256 + NEAR
    values, firsts, counts = np.unique(labels, return_index=True, return_counts=True)
    for at in np.argsort(firsts):
        value = int(values[at])
        if value == 0:
            continue
        name = DUPLICATES[value - 256] if value > 256 else part["reasons"][value - 1]
        outcome.dropped[name] = outcome.dropped.get(name, 0) + int(counts[at])
        examples = outcome.examples.setdefault(name, [])
        if (missing := EXAMPLES - len(examples)) <= 0:
            continue
        if value < 256:
            texts = part["examples"][name]
            examples += [text for item, text in texts if item < len(items)][:missing]
        else:
            written = np.flatnonzero((labels == value) & (items["reason"] == 0))[:missing]
            examples += [example(text) for text in _texts(folder, items, written)]


def _texts(folder: Path, items: np.ndarray, wanted: Iterable[int]) -> Iterator[str]:
    """The texts of these pieces, from the files of their splits."""
    good = items["reason"] == 0
    for item in wanted:
        split = int(items["split"][item])
        line_number = int((good & (items["split"] == split))[:item].sum())
        with open(folder / f"{SPLITS[split]}.jsonl", encoding="utf-8", newline="\n") as file:
            line = next(line for number, line in enumerate(file) if number == line_number)
        yield row_document(json.loads(line), "", str(folder), None).text


def _count_moves(outcome: Outcome, work: Path, number: int) -> None:
    items = load_items(part_folder(work / "parts", number))
    codes = load_records(work / "decisions" / f"{number:05d}.bin", np.dtype(np.uint8))
    train = items[(codes == KEPT) & (items["split"] == SPLITS.index("train"))]
    for place, split in outcome.moves.items():
        moved = train[train["place"] == place]
        for name, sign in (("train", -1), (split, 1)):
            outcome.kept[name]["documents"] += sign * len(moved)
            outcome.kept[name]["bytes"] += sign * int(moved["size"].sum(dtype=np.int64))


def _check_not_empty(outcome: Outcome) -> None:
    source = outcome.source
    where = f"{source.where} ({source.path})" if isinstance(source, LocalSource) else source.where
    if sum(split["documents"] for split in outcome.kept.values()):
        return
    if outcome.dropped:
        most = sorted(outcome.dropped.items(), key=lambda item: -item[1])
        reason = "dropped by " + ", ".join(f"{name} ({count})" for name, count in most)
        advice = "loosen these filters or their thresholds, or leave the source out"
    elif outcome.read["bytes"]:
        reason = f"the first is longer than max_bytes {source.max_bytes}"
        advice = "raise max_bytes, or set split_code for code"
    else:
        unread = outcome.reading.summary()["unread"]
        words = f" (files not read: {unread_words(unread)})" if unread else ""
        raise ValueError(
            f"{where} is empty: nothing was read{words}; check what it points at, or leave it out"
        )
    raise ValueError(f"{where}: no document is left: {reason}; {advice}")
