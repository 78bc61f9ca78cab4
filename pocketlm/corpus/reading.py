"""What of a source's files was read, what was not, and why: nothing vanishes uncounted."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

NAMES = 5  # kept of each reason
WARNED_SHARE = 0.01
# nothing that anyone would miss: not warned of
EXPECTED = ("hidden", "after_max_bytes", "linked_folder_seen_already")


@dataclass(kw_only=True)
class Reading:
    """Filled by a reader of files as it goes. Every file is opened, or counted under a reason.

    reasons: kind_not_read (by its name's end), hidden (the name or a folder's begins with a dot),
    empty, no_rows (not empty, but none of it is a document), after_max_bytes (the source's cap was
    reached before), and those of model/file_tree.py.
    """

    # [name, "" or the reason why nothing was read of it], in order
    opened: list[list[str]] = field(default_factory=list)
    unread: dict[str, dict[str, Any]] = field(default_factory=dict)  # reason -> {"count", "names"}

    def open(self, name: str) -> None:
        """A file whose documents come now."""
        self.opened.append([printable(name), ""])

    def close(self, reason: str) -> None:
        """Nothing was in the file opened last."""
        self.opened[-1][1] = reason

    def leave(self, reason: str, name: str) -> None:
        """Count one file that is not read."""
        files = self.unread.setdefault(reason, {"count": 0, "names": []})
        files["count"] += 1
        if len(files["names"]) < NAMES:
            files["names"].append(printable(name))

    def summary(self) -> dict[str, Any]:
        """{"found", "read", "unread": {reason: {"count", "names"}}}; "found" is 0 where the source
        is no files.
        """
        whole = Reading(unread=deepcopy(self.unread))
        for name, reason in self.opened:
            if reason:
                whole.leave(reason, name)
        read = sum(not reason for _, reason in self.opened)
        count = sum(files["count"] for files in whole.unread.values())
        return {"found": read + count, "read": read, "unread": whole.unread}


def printable(name: str) -> str:
    """A file's name as text that can be written; bytes of it that are not UTF-8 as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unread_words(unread: Mapping[str, Mapping[str, Any]]) -> str:
    """Reasons with counts and names on one line: "kind_not_read 2 (a.csv, b.png)"."""
    parts = []
    for reason, files in unread.items():
        more = ", ..." if files["count"] > len(files["names"]) else ""
        parts.append(f"{reason} {files['count']:,} ({', '.join(files['names'])}{more})")
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
        unread["count"] for reason, unread in files["unread"].items() if reason not in EXPECTED
    )
    warned = surprising > WARNED_SHARE * files["found"] or dropped > WARNED_SHARE * (kept + dropped)
    return f"{'warning: ' if warned else ''}source {name}: {'; '.join(parts)}"
