"""Speed and size of the models, as a user meets them: the wait, the pace, the memory."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from pocketlm.report.number_format import percent, size
from pocketlm.report.page import Cell, number, paragraph, section, table
from pocketlm.report.timeline import Stage

HEADINGS = (
    "model",
    "size",
    "loads in",
    "context",
    "prefill",
    "decode",
    "first token",
    "peak memory",
    "KV cache",
    "of limit",
)


def speed_section(stages: Sequence[Stage]) -> Element | None:
    """What each bench stage measured."""
    benches = [stage.files["bench.json"] for stage in stages if "bench.json" in stage.files]
    if not benches:
        return None
    parts = []
    for bench in benches:
        rows: list[list[Cell]] = []
        for label, model in bench["models"].items():
            whole: list[Cell] = [
                label,
                number(size(model["bytes"])),
                number(f"{model['load_seconds']:.2f} s"),
            ]
            for context, row in model["contexts"].items():
                kv, share = row["kv_bytes"], row["share_of_limit"]
                rows.append(
                    [
                        *whole,
                        number(f"{int(context):,}"),
                        number(f"{row['prefill_tokens_per_second']:,.0f}"),
                        number(f"{row['decode_tokens_per_second']:,.0f}", strong=True),
                        number(f"{row['time_to_first_token_seconds']:.3f} s"),
                        number(size(row["peak_memory_bytes"])),
                        None if kv is None else number(size(kv)),
                        None if share is None else number(percent(share)),
                    ]
                )
                whole = ["", number(""), number("")]
        parts.append(table("Speed and size of each model", HEADINGS, rows))
        parts.append(
            paragraph(
                f"Each model alone in a process, on {bench['threads']} "
                f"thread{'s' * (bench['threads'] > 1)}, medians of "
                f"{bench['repeats']}; the last {bench['new_tokens']} tokens of a context are made "
                "by the model. Prefill and decode in tokens a second. Peak memory counts Python "
                "and the runtime too. Of limit: decode against reading all weights and the cache "
                "once a token, at the "
                f"{bench['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s of memory "
                "that this run measured; what stays in the processor's cache can be above.",
                quiet=True,
            )
        )
    return section("speed", "Speed and size", *parts)
