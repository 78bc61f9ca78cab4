"""What stages found, as tables for the terminal."""

from typing import Any

from rich.console import Group
from rich.table import Table


def evaluation_table(report: dict[str, Any], width: int) -> Table:
    """What an evaluation found: a row for each model; the families of problems have columns where
    `width` allows.
    """
    models = report["models"]
    first = next(iter(models.values()))
    needles = list(first.get("needle", {}))
    families = list(first["problems"]) if width >= 70 + 11 * len(first["problems"]) else []
    table = Table(
        title=f"solved on suite {report['suite']}" + ", and needles found" * bool(needles),
        title_justify="left",
    )
    table.add_column("model", no_wrap=True)
    needle_columns = [f"needle {tokens}" for tokens in needles]
    for name in [
        "accuracy",
        *(family.replace("_", " ") for family in families),
        *needle_columns,
        "MB",
        "tokens/s",
    ]:
        table.add_column(name, justify="right", no_wrap=name in ("accuracy", "MB", "tokens/s"))
    for label, figures in models.items():
        solved = [figures["problems"][family] for family in families]
        found = [figures["needle"][tokens] for tokens in needles]
        cells = [f"{figures['accuracy']:.1%}", *(f"{s['solved'] / s['total']:.0%}" for s in solved)]
        cells += [f"{f['found']}/{f['of']}" for f in found]
        table.add_row(
            label, *cells, f"{figures['bytes'] / 1e6:,.2f}", f"{figures['tokens_per_second']:,.0f}"
        )
    table.add_section()
    constant = first["constant_answer"]
    total = sum(constant[f] * first["problems"][f]["total"] for f in constant)
    rate = total / sum(problems["total"] for problems in first["problems"].values())
    table.add_row(
        "[dim]best constant answer[/dim]", f"{rate:.1%}", *(f"{constant[f]:.0%}" for f in families)
    )
    if cut := [
        line for label, figures in models.items() if (line := cut_answers(label, figures, report))
    ]:
        table.caption, table.caption_justify = "\n".join(cut), "left"
    return table


def cut_answers(label: str, figures: dict[str, Any], report: dict[str, Any]) -> str:
    """How many of a model's answers were cut, in words; "" for none."""
    cut, total = (
        figures.get("answers_cut", 0),
        sum(problems["total"] for problems in figures["problems"].values()),
    )
    limit = f"max_new_tokens {report['max_new_tokens']} or the model's length" if cut else ""
    return (
        f"{label}: {cut:,} of {total:,} answers reached {limit} and were cut there" if cut else ""
    )


def bench_table(report: dict[str, Any]) -> Group:
    """The figures of bench.json: for each model a table, its size and load above, what is missing
    below.
    """
    return Group(
        *(_table(label, figures) for label, figures in report["models"].items()),
        f"On {report['threads']} thread{'s' * (report['threads'] > 1)}, medians of "
        f"{report['repeats']}; the last "
        f"{report['new_tokens']} tokens of a context are made. prefill, decode: tokens a second. "
        "first: seconds until the "
        "first token. of limit: decode against reading weights and cache once a token, at the "
        f"{report['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s of this run.",
    )


def _table(label: str, figures: dict[str, Any]) -> Table:
    rows = figures["contexts"]
    title = f"{label}: {figures['bytes'] / 1e6:,.2f} MB, loads in {figures['load_seconds']:.2f} s"
    told = [f"{figures['memory_before_bytes'] / 1e6:,.0f} MB were used before the file was opened"]
    if figures["left_out"]:
        over = ", ".join(map(str, figures["left_out"]))
        told.append(f"at most {figures['max_length']} tokens, so without {over}")
    if None in (row["share_of_limit"] for row in rows.values()):
        told.append("the file does not tell what ? stands for: export it again")
    table = Table(
        title=title, caption="; ".join(told), title_justify="left", caption_justify="left"
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
