"""MobileLLM-R1 (arXiv 2509.24945): tables 6, 7 and 13, all read in the paper's text and its
repository's README. The number of table 6 is taken from its place between tables 5 and 7.
"""

from pocketlm.eval.published.tables import column, table

PAPER = "MobileLLM-R1"

BASE = table(
    PAPER,
    "table 6",
    (
        column("MATH500", "r1-base.math500", shots=4),
        column("GSM8K", "r1-base.gsm8k", shots=8),
        column("MBPP", "r1-base.mbpp", shots=3, metric="pass@1"),
        column("HumanEval", "r1-base.humaneval", shots=0, metric="pass@1"),
        column("mean of 8 commonsense tasks", "", shots=0),
        column("MMLU", "r1-base.mmlu", shots=5, metric="acc"),
    ),
    """
SmolLM2-135M | 135 | 0.4 | 1.8 | 3.8 | 0.0 | 50.7 | -
MobileLLM-R1-140M-base | 140 | 4.6 | 16.3 | 5.4 | 15.9 | 44.3 | -
Gemma-3-270M-pt | 268 | 0.6 | 1.1 | 2.0 | 3.1 | 48.4 | 26.5
SmolLM2-360M | 362 | 1.8 | 5.0 | 19.4 | 0.0 | 56.6 | 24.7
MobileLLM-R1-360M-base | 359 | 13.4 | 39.4 | 20.8 | 32.9 | 51.0 | 26.8
Qwen2.5-0.5B | 494 | 14.8 | 41.8 | 29.6 | 28.1 | 52.3 | 47.5
Qwen3-0.6B-Base | 596 | 29.8 | 60.9 | 39.0 | 30.5 | 55.3 | 52.4
MobileLLM-R1-950M-base | 949 | 26.8 | 61.6 | 39.2 | 46.3 | 58.6 | 47.4
Gemma-3-1B-pt | 1000 | 0.6 | 2.4 | 9.4 | 6.1 | 57.3 | 26.1
LLaMA3.2-1B | 1240 | 1.6 | 6.8 | 26.6 | 17.1 | 58.4 | 32.0
OLMo-2-0425-1B | 1480 | 5.2 | 39.8 | 7.8 | 6.7 | 61.0 | 42.4
Qwen2.5-1.5B | 1540 | 31.0 | 68.4 | 44.6 | 36.6 | 58.7 | 61.2
SmolLM2-1.7B | 1710 | 11.6 | 31.8 | 35.4 | 0.6 | 62.9 | 50.0
Qwen3-1.7B-Base | 2030 | 38.5 | 76.2 | 56.4 | 47.6 | 60.9 | 62.1
""",
)

DRAWN = {"shots": 0, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 30_000}
FINAL = table(
    PAPER,
    "table 7",
    (
        column("MATH500", "r1-final.math500", samples=1, **DRAWN),
        column("GSM8K", "r1-final.gsm8k", samples=1, **DRAWN),
        column("AIME'24", "r1-final.aime24", samples=64, **DRAWN),
        column("AIME'25", "r1-final.aime25", samples=64, **DRAWN),
        column("LiveCodeBench-v6", "r1-final.livecodebench", shots=0, samples=16),
    ),
    """
SmolLM2-135M-Instruct | 135 | 3.0 | 2.4 | - | - | 0.0
MobileLLM-R1-140M | 140 | 6.2 | 4.1 | - | - | 1.7
Gemma-3-270m-it | 268 | 6.8 | 8.4 | - | - | 0.0
SmolLM2-360M-Instruct | 362 | 3.4 | 8.1 | - | - | 0.7
MobileLLM-R1-360M | 359 | 28.4 | 24.5 | - | - | 5.1
Qwen2.5-0.5B-Instruct | 494 | 31.2 | 48.1 | 0.1 | 0.3 | 3.6
Qwen3-0.6B | 596 | 73.0 | 79.2 | 11.3 | 17.0 | 14.9
MobileLLM-R1-950M | 949 | 74.0 | 67.5 | 15.5 | 16.3 | 19.9
Gemma-3-1B-it | 1000 | 45.4 | 62.9 | 0.9 | 0.0 | 2.0
LLaMA3.2-1B-Instruct | 1240 | 24.8 | 38.8 | 1.1 | 0.2 | 4.1
OLMo-2-0425-1B-Instruct | 1480 | 19.2 | 69.7 | 0.6 | 0.1 | 0.0
OpenReasoning-Nemotron-1.5B | 1540 | 83.4 | 76.7 | 49.7 | 40.4 | 28.3
DeepSeek-R1-Distill-Qwen-1.5B | 1540 | 83.2 | 77.3 | 29.1 | 23.4 | 19.9
Qwen2.5-1.5B-Instruct | 1540 | 54.0 | 70.0 | 2.5 | 0.9 | 7.9
SmolLM2-1.7B-Instruct | 1710 | 19.2 | 41.8 | 0.3 | 0.1 | 4.4
Qwen3-1.7B | 2030 | 89.4 | 90.3 | 47.0 | 37.0 | 29.8
""",
)

COMMONSENSE = table(
    PAPER,
    "table 13",
    (
        *(
            column(benchmark, f"r1-base.{suite}", shots=0, metric="acc")
            for benchmark, suite in (
                ("ARC-easy", "arc_easy"),
                ("ARC-challenge", "arc_challenge"),
                ("BoolQ", "boolq"),
                ("PIQA", "piqa"),
                ("SIQA", "siqa"),
                ("HellaSwag", "hellaswag"),
                ("OBQA", "openbookqa"),
                ("WinoGrande", "winogrande"),
            )
        ),
        column("mean", "", shots=0),
    ),
    """
SmolLM2-135M | 135 | 58.9 | 34.5 | 60.5 | 68.9 | 43.5 | 43.6 | 41.1 | 52.8 | 50.5
MobileLLM-R1-140M-base | 140 | 47.3 | 32.5 | 57.2 | 62.5 | 42.6 | 32.9 | 31.5 | 51.0 | 44.7
Gemma-3-270M-pt | 268 | 57.7 | 31.5 | 56.5 | 68.5 | 43.1 | 41.4 | 34.6 | 53.9 | 48.4
SmolLM2-360M | 362 | 67.9 | 42.0 | 63.4 | 72.1 | 44.7 | 56.2 | 47.4 | 59.0 | 56.6
MobileLLM-R1-360M-base | 359 | 59.8 | 36.0 | 65.9 | 68.3 | 45.0 | 42.7 | 34.4 | 53.5 | 50.7
Qwen2.5-0.5B | 494 | 63.3 | 36.1 | 56.9 | 69.4 | 44.6 | 50.7 | 40.7 | 56.1 | 52.2
Qwen3-0.6B-Base | 596 | 66.2 | 40.3 | 69.4 | 69.7 | 45.5 | 52.9 | 40.7 | 57.9 | 55.3
MobileLLM-R1-950M-base | 949 | 66.3 | 45.3 | 79.6 | 74.2 | 48.4 | 57.2 | 39.8 | 58.2 | 58.6
Gemma-3-1B-pt | 1000 | 71.6 | 37.7 | 66.3 | 74.8 | 45.4 | 61.9 | 41.9 | 58.3 | 57.2
LLaMA3.2-1B | 1240 | 64.8 | 42.9 | 64.7 | 74.9 | 44.8 | 64.4 | 50.0 | 60.4 | 58.4
OLMo-2-0425-1B | 1480 | 72.2 | 44.0 | 68.8 | 74.5 | 48.4 | 66.0 | 46.0 | 63.4 | 60.4
Qwen2.5-1.5B | 1540 | 70.4 | 41.2 | 73.9 | 72.9 | 48.2 | 65.2 | 36.3 | 61.2 | 58.7
SmolLM2-1.7B | 1710 | 73.6 | 49.5 | 72.0 | 77.6 | 46.1 | 70.7 | 47.8 | 64.4 | 62.7
Qwen3-1.7B-Base | 2030 | 72.9 | 47.0 | 77.9 | 74.7 | 47.6 | 64.2 | 43.3 | 62.4 | 61.3
""",
)

TABLES = (BASE, FINAL, COMMONSENSE)
