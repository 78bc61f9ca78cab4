"""What of a source's files was read, what was not, and why: nothing vanishes uncounted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NAMES = 5  # kept of each reason
WARNED_SHARE = 0.01
# nothing that anyone would miss: not warned of
EXPECTED = ("hidden", "after_max_bytes", "linked_folder_seen_already")


@dataclass(kw_only=True)
class Reading:
    """Filled by a reader of files as it goes. Every file found is read, waits, or is counted under
    a reason.

    reasons: kind_not_read (by its name's end), hidden (the name or a folder's begins with a dot),
    empty, no_rows (not empty, but none of it is a document), after_max_bytes (the source's cap was
    reached before), and those of model/file_tree.py.
    """

    read: int = 0
    # names of files still to be read, the next one last
    waiting: list[str] = field(default_factory=list)
    unread: dict[str, dict[str, Any]] = field(default_factory=dict)  # reason -> {"count", "names"}

    def leave(self, reason: str, name: str) -> None:
        """Count one file that is not read."""
        name = printable(name)
        told = self.unread.setdefault(reason, {"count": 0, "names": []})
        told["count"] += 1
        if len(told["names"]) < NAMES:
            told["names"].append(name)

    def end(self) -> None:
        """Count what is still waiting: the reader was not asked for more."""
        while self.waiting:
            self.leave("after_max_bytes", self.waiting.pop())

    def summary(self) -> dict[str, Any]:
        """{"found", "read", "unread": {reason: {"count", "names"}}}; "found" is 0 where the source
        is no files.
        """
        count = sum(told["count"] for told in self.unread.values())
        return {"found": self.read + count, "read": self.read, "unread": self.unread}


def printable(name: str) -> str:
    """A file's name as text that can be written; bytes of it that are not UTF-8 as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unread_words(unread: Mapping[str, Mapping[str, Any]]) -> str:
    """Reasons with counts and names on one line: "kind_not_read 2 (a.csv, b.png)"."""
    parts = []
    for reason, told in unread.items():
        names = ", ".join(told["names"]) + (", ..." if told["count"] > len(told["names"]) else "")
        parts.append(f"{reason} {told['count']:,} ({names})")
    return "; ".join(parts)


def source_line(name: str, source: Mapping[str, Any]) -> str:
    """One line on a source of curation.json: what was read and kept of it, and what was left out by
    reason.

    It begins with "warning" where more than WARNED_SHARE of its files were not read, or of its
    documents not kept.
    """
    files = source.get("files", {"found": 0, "read": 0, "unread": {}})
    kept = sum(split["documents"] for split in source["kept"].values())
    dropped = sum(source["dropped"].values())
    parts = []
    if files["found"]:
        parts.append(f"{files['read']:,} of {files['found']:,} files read")
    parts.append(f"{kept:,} documents kept, {dropped:,} left out")
    if source["dropped"]:
        parts[-1] += (
            f" ({', '.join(f'{reason} {count:,}' for reason, count in source['dropped'].items())})"
        )
    if (shortened := source.get("shortened", {"documents": 0}))["documents"]:
        parts.append(f"{shortened['documents']:,} shortened by {shortened['bytes']:,} bytes in all")
    if source.get("capped"):
        parts.append("not read to its end: max_bytes was reached")
    if files["unread"]:
        parts.append(f"files not read: {unread_words(files['unread'])}")
    surprising = sum(
        told["count"] for reason, told in files["unread"].items() if reason not in EXPECTED
    )
    warned = surprising > WARNED_SHARE * files["found"] or dropped > WARNED_SHARE * (kept + dropped)
    return f"{'warning: ' if warned else ''}source {name}: {'; '.join(parts)}"
