"""The folders of a finished run, with figures as stages write them, for tests of what reads
them.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

SOURCES = {"problems": "maths", "notes": "knowledge", "docstrings": "knowledge", "code": "code"}
FAMILIES = ("chain_sum", "leg_counting", "simple_equations", "number_sorting", "spell_backward")
ACCURACY = {
    "phase2": 0.41,
    "long": 0.44,
    "chat": 0.78,
    "rounded": 0.61,
    "int4": 0.77,
    "gguf": 0.77,
    "pte": 0.76,
}
HOSTILE = (
    "</pre><script>alert('x')</script><img src=http://evil.example/a.png>\x00\ud800 & \"quoted\""
)


def write_stage(
    run: Path, stage: str, name: str, seconds: float, files: dict[str, Any], **inputs: Any
) -> Path:
    """A folder as a finished stage leaves it; a list is written as JSON lines."""
    folder = run / name
    told = {key: {"path": str(value), "fingerprint": "stage 0"} for key, value in inputs.items()}
    record = {
        "stage": stage,
        "config": {
            "name": name,
            "seq_len": 256,
            "optim": {"class": "OptimConfig", "lr": 0.004, "num_steps": 600},
        },
        "inputs": told,
        "digest": "0123456789abcdef",
        "pocketlm": "0.1.0",
        "started": "2026-01-01T10:00:00+00:00",
        "status": "finished",
        "seconds": seconds,
    }
    for path, content in {"stage.json": record, **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        lines = [content] if isinstance(content, dict) else content
        (folder / path).write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
    return folder


def steps(count: int, start: float, end: float, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    rows = []
    for step in range(count):
        done = step / count
        loss = end + (start - end) * math.exp(-6 * done) + rng.gauss(0, 0.05)
        lr = 0.004 * min(1, (step + 1) / 30) * (1 - 0.9 * done)
        row = {"step": step, "loss": loss, "lr": lr, "grad_norm": 1.0, "tokens": 2048}
        rows.append({**row, "tokens_per_second": 14000.0, "seconds": 0.146})
    return {"metrics.jsonl": rows}


def curation() -> dict[str, Any]:
    sources = {}
    for place, (name, domain) in enumerate(SOURCES.items()):
        dropped = {
            "length": 40 * place,
            "near_duplicate": 25 * place,
            "repetition": 9,
            "contaminated": 7,
        }
        kept = {
            split: {"documents": number, "bytes": number * 400, "tokens": number * 170}
            for split, number in (("train", 800), ("validation", 12), ("probe", 14))
        }
        read = {"documents": 826 + sum(dropped.values()), "bytes": 400_000}
        unread = (
            {"kind_not_read": {"count": 7, "names": ["a.pdf", HOSTILE]}} if name == "notes" else {}
        )
        files = {"found": 9 * place + len(unread) * 7, "read": 9 * place, "unread": unread}
        sources[name] = {
            "domain": domain,
            "files": files,
            "read": read,
            "dropped": dropped,
            "kept": kept,
        }
    examples = {
        name: [f"A text that {name} dropped.", HOSTILE, "third"]
        for name in ("length", "repetition")
    }
    tokenizer = {"vocab_size": 1024, "bytes_per_token": dict.fromkeys(SOURCES, 2.4)}
    speed = {"seconds": 4.0, "documents_per_second": 812.5, "megabytes_per_second": 3.25}
    slowest = {"source": "notes", "part": 2, "seconds": 1.75}
    throughput = {"executor": "local:2", "read": {**speed, "slowest_task": slowest}}
    return {
        "curation.json": {"sources": sources, "examples": examples, "tokenizer": tokenizer},
        "throughput.json": throughput,
    }


def mix() -> dict[str, Any]:
    even = dict.fromkeys(SOURCES, 0.25)
    found = dict(zip(SOURCES, (0.62, 0.17, 0.06, 0.15), strict=True))
    size = dict(zip(SOURCES, (0.21, 0.13, 0.16, 0.5), strict=True))
    bits = {
        name: {"code": 2.2 + off, "knowledge": 2.5 - off, "maths": 1.9 - 3 * off, "mean": 2.2 - off}
        for name, off in (("found", 0.05), ("uniform", 0.0), ("proportional", -0.02))
    }
    mixes = {
        name: {"method": f"way {name}", "shares": shares, "bits_per_byte": bits[name]}
        for name, shares in (("found", found), ("uniform", even), ("proportional", size))
    }
    mixes["found"] |= {"utility": found, "utility_by_probe": {}}
    return {"mix.json": {"selected": "found", "shares": found, "mixes": mixes}}


def mix_of_0_1() -> dict[str, Any]:
    """The same mixes as version 0.1 wrote them."""
    mixes = mix()["mix.json"]["mixes"]
    old = {name: mixes[name]["shares"] for name in ("uniform", "proportional")}
    old |= {key: mixes["found"][key] for key in ("shares", "utility", "utility_by_probe")}
    return {**old, "bits_per_byte": {name: each["bits_per_byte"] for name, each in mixes.items()}}


def selection(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    influence = {
        name: [rng.gauss(0.3 - 0.1 * place, 0.2) for _ in range(400)]
        for place, name in enumerate(SOURCES)
    }
    kept = {
        name: {"documents": sum(v > 0 for v in values) * 2, "of": 800, "tokens": 1}
        for name, values in influence.items()
    }
    return {
        "selection.json": {
            "shares": dict.fromkeys(SOURCES, 0.25),
            "kept": kept,
            "influence": influence,
        }
    }


def merged(names: tuple[str, ...], resolution: int) -> dict[str, Any]:
    def loss(weights: tuple[float, ...]) -> dict[str, float]:
        far = sum(
            (weight - (0.6, 0.3, 0.1, 0.0)[place]) ** 2 for place, weight in enumerate(weights)
        )
        return {"code": 1.6 + far / 9, "maths": 1.2 + far / 7, "mean": 1.4 + far / 8}

    grid = [()]
    for _ in names[1:]:
        grid = [(*w, n) for w in grid for n in range(resolution + 1 - sum(w))]
    tried = [tuple(n / resolution for n in (*w, resolution - sum(w))) for w in grid]
    best = min(tried, key=lambda weights: loss(weights)["mean"])
    told = {
        "weights": dict(zip(names, best, strict=True)),
        "best": loss(best),
        "uniform": loss(tuple(1 / len(names) for _ in names)),
        "single": {name: loss(tuple(float(other == name) for other in names)) for name in names},
        "search": [{"weights": dict(zip(names, w, strict=True)), "loss": loss(w)} for w in tried],
    }
    if len(names) != 3:  # one is as version 0.1 wrote it
        rows = {"code": 8, "maths": 8}
        told |= {"method": "slopes" if len(names) > 3 else "grid", "trunk": loss((0.4, 0.3, 0.3))}
        told |= {"chosen_on": rows, "reported_on": rows}
    return {"merge.json": told}


def evaluation() -> dict[str, Any]:
    """evaluation.json and the transcripts of a run whose models answered one suite."""
    files = earlier_evaluation()
    before = files.pop("evaluation.json")
    models, constant = before["models"], {}
    for model in models.values():
        constant = model.pop("constant_answer")
        share = model.pop("accuracy")
        model["sha256"] = "0" * 64
        model["suites"] = {
            "pocket": {
                "metric": "accuracy",
                "value": share,
                "standard_error": math.sqrt(share * (1 - share) / 299),
                "n": 300,
                "scores": {},
                "prompts": "0123456789abcdef",
                "answers_cut": model.pop("answers_cut"),
                "answers_empty": 0,
                "problems": model.pop("problems"),
            }
        }
    suite = {"kind": "generation", "metric": "accuracy", "max_new_tokens": 160}
    difference = {"metric": "accuracy", "difference": -0.01, "low": -0.03, "high": 0.01, "n": 300}
    difference["other_ids"] = 2
    return {
        "evaluation.json": {
            "suites": {"pocket": {**suite, "constant_answer": constant}},
            "models": models,
            "differences": [
                {
                    **{"suite": "pocket", "model": "gguf", "compared_to": "int4"},
                    **{**difference, "better": 4, "worse": 7, "p_value": 0.55},
                }
            ],
        },
        **{file.replace(".jsonl", ".pocket.jsonl"): rows for file, rows in files.items()},
    }


def earlier_evaluation() -> dict[str, Any]:
    """The same as versions up to 0.1 wrote it."""
    models, files = {}, {}
    for label, accuracy in ACCURACY.items():
        shipped = label in ("gguf", "pte")
        solved = round(60 * accuracy)
        total = {"found": 48 if label not in ("phase2",) else 3, "of": 50}
        models[label] = {
            "path": f"model.{label}" if shipped else label,
            "bytes": 812_000 if shipped else 4_700_000,
            "accuracy": solved / 60,
            "answers_cut": 12 if label == "phase2" else 0,
            "problems": {family: {"solved": solved, "total": 60} for family in FAMILIES},
            "constant_answer": dict.fromkeys(FAMILIES, 0.08),
            "bits_per_byte": {"code": 1.91, "knowledge": 2.04, "maths": 1.43},
            "needle": {"256": {"found": 50, "of": 50}, "1024": total},
            "tokens_per_second": 812.4,
        }
        rows = [
            {
                "id": f"{family}-{n}",
                "family": family,
                "prompt": f"Compute {n} + 40 - 2. {HOSTILE if n == 3 else ''}",
                "completion": f"{n} + 40 = {n + 40}\n{n + 40} - 2 = {n + 38}\n"
                f"#### {n + 38 + n % 2}",
                "answer": str(n + 38),
                "correct": n % 2 == 0,
                "cut": n == 3,
            }
            for family in FAMILIES
            for n in (2, 3, 4)
        ]
        files[f"transcripts/{label}.jsonl"] = rows
    return {
        "evaluation.json": {"suite": "pocket", "max_new_tokens": 160, "models": models},
        **files,
    }


def bench() -> dict[str, Any]:
    """Two models at two contexts; the first does not tell how large its cache is."""
    row = {
        "prefill_tokens_per_second": 9876.5,
        "decode_tokens_per_second": 432.1,
        "time_to_first_token_seconds": 0.0123,
        "kv_bytes": 65_536,
        "peak_memory_bytes": 512_000_000,
        "share_of_limit": 0.37,
    }
    model = {"bytes": 812_000, "load_seconds": 0.25, "contexts": {"128": row, "1024": row}}
    untold = row | {"kv_bytes": None, "share_of_limit": None}
    models = {"old": model | {"contexts": {"128": untold}}, "model.gguf": model}
    settings = {"threads": 2, "repeats": 3, "new_tokens": 32, "bandwidth_bytes_per_second": 1.25e10}
    return {"bench.json": {**settings, "models": models}}


def whole_run(run: Path) -> dict[str, Path]:
    """Stage folders of a recipe that has every stage, by name."""
    exported = {"model": "int4", "quantization": "int4_group32"}
    sizes = {"model.gguf": 812_000, "model.pte": 812_000, "hf": 3_300_000}
    folders = [
        write_stage(run, "curate", "corpus", 31.0, curation()),
        write_stage(run, "find_mix", "mix", 74.0, mix(), corpus="corpus"),
        write_stage(
            run, "pretrain", "teacher", 221.0, steps(600, 6.9, 2.1, 1), corpus="corpus", mix="mix"
        ),
        write_stage(
            run, "pretrain", "phase2", 120.5, steps(600, 3.1, 2.2, 2), corpus="corpus", mix="mix"
        ),
        write_stage(run, "select", "select1", 20.2, selection(3), corpus="corpus", model="phase2"),
        write_stage(
            run,
            "pretrain",
            "mid1",
            60.1,
            steps(300, 0.5, 0.2, 4),
            model="phase2",
            teacher="teacher",
        ),
        write_stage(run, "select", "select2", 20.9, selection(5), corpus="corpus", model="mid1"),
        write_stage(
            run, "extend_context", "long", 55.0, steps(100, 0.9, 0.4, 6), teacher="teacher"
        ),
        write_stage(run, "merge", "merge", 12.0, merged(("a", "b"), 10), corpus="corpus"),
        write_stage(
            run,
            "merge",
            "merge3",
            12.0,
            merged(("maths", "code", "knowledge"), 10),
            corpus="corpus",
        ),
        write_stage(run, "merge", "merge4", 12.0, merged(("a", "b", "c", "d"), 4), corpus="corpus"),
        write_stage(
            run, "finetune", "chat", 64.0, steps(250, 1.4, 0.6, 7), corpus="/a/place/corpus"
        ),
        write_stage(run, "quantize", "int4", 48.0, steps(120, 0.3, 0.05, 8), model="chat"),
        write_stage(
            run, "export", "files", 9.5, {"export.json": {**exported, "bytes": sizes}}, model="int4"
        ),
        write_stage(run, "evaluate", "evaluation", 82.0, evaluation(), corpus="corpus"),
        write_stage(run, "bench", "speed", 21.0, bench()),
    ]
    return {folder.name: folder for folder in folders}
