"""What measure_shapes found, as a table for the terminal."""

from typing import Any

from rich.console import Group
from rich.table import Table

LISTED = 12


def shapes_table(report: dict[str, Any], wait: float) -> Group:
    """How well latency is predicted, what costs how much, and of the measured shapes those that
    answer within `wait` seconds, the largest first.
    """
    fast = [row for row in report["shapes"] if row["seconds"] <= wait]
    fast.sort(key=lambda row: -row["parameters"])
    table = Table(
        title=f"{len(fast)} of {len(report['shapes'])} shapes begin to answer a prompt of "
        f"{report['context']:,} tokens within {wait:g} s, the largest first",
        title_justify="left",
    )
    for name in ("layers", "width", "inner", "heads", "local", "million", "first s", "tok/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in fast[:LISTED]:
        shape = row["shape"]
        local = sum(kind == "sliding_attention" for kind in shape["layer_types"])
        table.add_row(
            str(shape["num_hidden_layers"]),
            str(shape["hidden_size"]),
            str(shape["intermediate_size"]),
            f"{shape['num_attention_heads']}/{shape['num_key_value_heads']}",
            str(local),
            f"{row['parameters'] / 1e6:,.1f}",
            f"{row['seconds']:.3f}",
            f"{row['tokens_per_second']:,.0f}",
        )
    held, parts = report["held_out"], report["seconds_of_parts"]
    whole = sum(parts.values()) or 1.0
    shares = ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in parts.items())
    fewest = min(row["seconds"] for row in report["shapes"])
    none = () if fast else (f"The fastest shape takes {fewest:.3f} s: give more time, or smaller.",)
    return Group(
        table,
        *none,
        f"Predicted for shapes held out: R2 {held['r2']:.3f}, Kendall's tau "
        f"{held['kendall']:.2f}; by parameters alone tau {report['kendall_of_parameters']:.2f}, by "
        f"FLOPs {report['kendall_of_flops']:.2f}. Where the time goes: {shares}.",
        f"{report['runtime']}, {report['threads']} threads; one file's own times lay "
        f"{report['reference_spread']:.1%} apart.",
    )
