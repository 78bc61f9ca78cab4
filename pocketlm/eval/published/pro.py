"""MobileLLM-Pro (arXiv 2511.06719): tables 4, 5 and 7. The report's text was not at hand: figures
come from notes made from it, from Gemma 3's card, and where they are marked from memory.

Shots of table 4 are those of Gemma 3's card, from which its Gemma column is copied; table 7 follows
the Llama 3.2 card, whose column it repeats.
"""

from pocketlm.eval.published.tables import column, table

PAPER = "MobileLLM-Pro"

BASE_COLUMNS = (
    *(
        column(benchmark, f"pro-base.{suite}", shots=shots)
        for benchmark, suite, shots in (
            ("HellaSwag", "hellaswag", 10),
            ("BoolQ", "boolq", 0),
            ("PIQA", "piqa", 0),
            ("SocialIQA", "siqa", 0),
            ("TriviaQA", "triviaqa", 5),
            ("NaturalQuestions", "nq_open", 5),
            ("ARC-challenge", "arc_challenge", 25),
            ("ARC-easy", "arc_easy", 0),
            ("WinoGrande", "winogrande", 5),
        )
    ),
    column("OBQA", "pro-base.openbookqa"),
    column("needle in a haystack", "pro-base.needles", shots=0, max_new_tokens=256),
    column("mean, without OBQA", ""),
)

BASE = table(
    PAPER,
    "table 4",
    BASE_COLUMNS,
    """
MobileLLM-Pro-base | 1084 | 67.11 | 76.24 | 76.55s | 50.87s | 39.85s | \
15.76 | 52.62 | 76.28s | 62.83s | 43.60s | 100.00 | 61.81
Gemma-3-1B-pt | 1000 | 62.30 | 63.20 | 73.80 | 48.90 | 39.80 | \
9.48 | 38.40 | 73.00 | 58.20 | - | - | -
Llama-3.2-1B | 1240 | 65.69 | 62.51 | 75.14s | 45.60s | 23.81s | \
5.48 | 38.28 | 63.47s | 61.09s | 37.20s | 96.80 | -
""",
)

FOUR_BITS = table(
    PAPER,
    "table 5",
    BASE_COLUMNS,
    """
MobileLLM-Pro-base int4, CPU | 1084 | 64.89s | 77.49s | 76.66s | 51.18s | 37.26s | \
15.43s | 52.45s | 76.58s | 62.43s | 44.20r | 96.44 | 61.08
MobileLLM-Pro-base int4, accelerator | 1084 | 65.10s | 76.36s | 75.52s | 50.05s | 36.42s | \
13.19s | 51.24s | 75.73s | 61.96s | 40.40r | 98.67 | 60.42
""",
)

INSTRUCT = table(
    PAPER,
    "table 7",
    (
        column("MMLU", "pro-instruct.mmlu", shots=5, average="families", max_new_tokens=10),
        column("IFEval", "pro-instruct.ifeval", shots=0, metric="mean_of_four"),
        column("MBPP", "pro-instruct.mbpp", metric="pass@1"),
        column("HumanEval", "pro-instruct.humaneval", metric="pass@1"),
        column("BFCL v2", "pro-instruct.bfcl", shots=0),
        column("ARC-challenge", "pro-instruct.arc_challenge", shots=0, max_new_tokens=100),
        column("HellaSwag", "pro-instruct.hellaswag", shots=0, metric="acc"),
        column("Open-Rewrite", "pro-instruct.open_rewrite", shots=0, max_new_tokens=512),
        column("TLDR9+", "pro-instruct.tldr9", shots=1, max_new_tokens=512),
    ),
    """
MobileLLM-Pro | 1084 | 44.8 | 62.0 | 46.8 | 59.8 | 29.4 | 62.7r | 58.4r | 51.0r | 16.8r
Gemma-3-1B-it | 1000 | 29.9 | 80.2 | 35.2r | 41.5 | - | - | - | - | -
Llama-3.2-1B-Instruct | 1240 | 49.3 | 59.5r | 39.6r | 37.8 | 25.7r | 59.4r | 41.2r | 41.6r | 16.8r
""",
)

TABLES = (BASE, FOUR_BITS, INSTRUCT)
