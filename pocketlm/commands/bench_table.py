"""What a bench measured, as tables for the terminal."""

import statistics
from typing import Any

from rich.console import Group
from rich.table import Table


def bench_table(report: dict[str, Any]) -> Group:
    """The figures of bench.json: for each model a table, its size and load above, what is missing
    below.
    """
    return Group(
        *(part for label, figures in report["models"].items() for part in _parts(label, figures)),
        f"On {report['threads']} thread{'s' * (report['threads'] > 1)}, medians of "
        f"{report['repeats']}; the last "
        f"{report['new_tokens']} tokens of a context are made. prefill, decode: tokens a second. "
        "first: seconds until the "
        "first token. of limit: decode against reading weights and cache once a token, at the "
        f"{report['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s of this run.",
    )


def _parts(label: str, figures: dict[str, Any]) -> list[Any]:
    """The table of a model, and what a draft gains it."""
    table = _table(label, figures)
    return [table, _draft_line(label, figures["draft"]), ""] if "draft" in figures else [table]


def _draft_line(label: str, draft: dict[str, Any]) -> str:
    gain, taken = sorted(draft["gain"]), draft["accepted"] / max(1, draft["proposed"])
    return (
        f"{label} with {draft['draft']} as its draft: {statistics.median(gain):.2f} x the pace "
        f"({gain[0]:.2f} to {gain[-1]:.2f} over {draft['questions']} questions); {taken:.0%} of "
        f"{draft['proposed']:,} proposed tokens were taken"
    )


def _table(label: str, figures: dict[str, Any]) -> Table:
    rows = figures["contexts"]
    title = f"{label}: {figures['bytes'] / 1e6:,.2f} MB, loads in {figures['load_seconds']:.2f} s"
    notes = [f"{figures['memory_before_bytes'] / 1e6:,.0f} MB were used before the file was opened"]
    if figures["left_out"]:
        over = ", ".join(map(str, figures["left_out"]))
        notes.append(f"at most {figures['max_length']} tokens, so without {over}")
    if None in (row["share_of_limit"] for row in rows.values()):
        notes.append("the file does not tell what ? stands for: export it again")
    table = Table(
        title=title, caption="; ".join(notes), title_justify="left", caption_justify="left"
    )
    for name in ("context", "prefill", "decode", "first", "peak MB", "KV MB", "of limit"):
        table.add_column(name, justify="right", no_wrap=True)
    for context, row in rows.items():
        kv, share = row["kv_bytes"], row["share_of_limit"]
        table.add_row(
            context,
            f"{row['prefill_tokens_per_second']:,.0f}",
            f"{row['decode_tokens_per_second']:,.1f}",
            f"{row['time_to_first_token_seconds']:.3f}",
            f"{row['peak_memory_bytes'] / 1e6:,.0f}",
            "?" if kv is None else f"{kv / 1e6:,.2f}",
            "?" if share is None else f"{share:.0%}",
        )
    return table
