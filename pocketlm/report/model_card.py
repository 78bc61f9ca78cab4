"""The model card: the README.md of a folder that goes to the hub, from what the stages of its run
wrote.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pocketlm.model.hub import HUB_ID
from pocketlm.model.json_shape import JsonObject, read_object
from pocketlm.report.evaluation import error_text, value_text
from pocketlm.report.lineage import evaluations_of, input_paths, lineage
from pocketlm.report.number_format import count, duration, percent, size

WRITTEN_BY = "<!-- Written by pocketlm. Delete this line, and the text below is yours to edit. -->"
PAPERS = (
    "The methods are those of MobileLLM-R1 ([arXiv 2509.24945](https://arxiv.org/abs/2509.24945)) "
    "and MobileLLM-Pro ([arXiv 2511.06719](https://arxiv.org/abs/2511.06719))."
)
FAIR = "fair-noncommercial-research-license"


def model_card(
    folder: Path, name: str, *, model: Path | None = None, licence: str | None = None
) -> str:
    """README.md of `folder`, with the hub's metadata before the text.

    `folder` is a checkpoint, or what an export wrote. model: what was exported, where the folder's
    own record does not lead there. licence: the hub's name of it. What nobody wrote down is not
    guessed: a part without facts is left out. ValueError: a damaged record, or a licence that
    Meta's does not allow.
    """
    stages = lineage(folder) or (lineage(model) if model else {})
    imported = [
        read_object(stage / "import.json") for stage in stages if (stage / "import.json").is_file()
    ]
    if not imported and model and (model / "import.json").is_file():
        imported = [read_object(model / "import.json")]
    if licence and any("licence" in origin for origin in imported):
        raise ValueError(
            f"{folder} was made from Meta's weights, whose FAIR Noncommercial Research License "
            f"holds for it too: it cannot be {licence}"
        )
    evaluations = list(evaluations_of(folder))
    exported = _object(folder / "export.json")
    parts = [
        f"# {name}",
        WRITTEN_BY,
        _opening(exported, stages),
        _files(folder, exported),
        _use(folder, name),
        _figures(evaluations),
        _road(stages),
        _data(stages),
        _licence(imported, licence),
        PAPERS,
    ]
    metadata = _metadata(folder, name, imported, evaluations, licence)
    return f"---\n{metadata}\n---\n" + "\n\n".join(part for part in parts if part) + "\n"


def may_be_replaced(card: Path) -> bool:
    """Whether there is no README.md yet, or one of ours that nobody has taken over."""
    return not card.is_file() or WRITTEN_BY in card.read_text(encoding="utf-8")


def _object(path: Path) -> JsonObject:
    return read_object(path) if path.is_file() else JsonObject({}, path)


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _opening(exported: JsonObject, stages: dict[Path, JsonObject]) -> str:
    sentences = []
    if exported.get("quantization"):
        sentences.append(
            f"Trained for four bits (`{exported['quantization']}`): every file holds the values "
            "of that grid."
        )
    if stages:
        last = list(stages.values())[-1]
        sentences.append(f"Made with pocketlm {last.get('pocketlm', '')}".rstrip() + ".")
    return " ".join(sentences)


def _files(folder: Path, exported: JsonObject) -> str:
    sizes: dict[str, int] = exported.get("bytes", {})
    if not sizes:
        return ""
    agreements = exported.get("agreement", {})
    rows = []
    for file, num_bytes in sizes.items():
        agreed = agreements.get(file)
        equal = (
            f"{percent(agreed['top_token'])} of {agreed['tokens']:,} tokens, "
            f"KL {agreed['kl']:.2g} nats"
            if agreed
            else "not run here"
        )
        rows.append([f"`{file}`", size(num_bytes), equal])
    text = (
        "Each file was opened in its own runtime and compared with the model: the share of real "
        "tokens at which the likeliest next token is the same, and the distance of the "
        "distributions."
    )
    return f"## Files\n\n{_table(['file', 'size', 'agrees with the model'], rows)}\n\n{text}"


def _use(folder: Path, name: str) -> str:
    ways = []
    if (folder / "model.gguf").is_file():
        ways.append("llama-server -m model.gguf          # stock llama.cpp, no patch")
    if (folder / "model.pte").is_file():
        ways.append(
            "pocketlm chat model.pte             # ExecuTorch; model.tokenizer goes with it"
        )
    checkpoint = folder if (folder / "config.json").is_file() else folder / "hf"
    if (checkpoint / "config.json").is_file():
        where = "" if checkpoint == folder else ", subfolder='hf'"
        ways.append(
            'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{name}'{where})\""
        )
    return "## Use\n\n```\n" + "\n".join(ways) + "\n```" if ways else ""


def _figures(evaluations: list[tuple[JsonObject, dict[str, JsonObject]]]) -> str:
    rows = []
    for evaluation, measured in evaluations:
        for file, figures in measured.items():
            for suite, value in figures["suites"].items():
                rows.append(
                    [
                        f"`{file}`",
                        suite,
                        value["metric"],
                        f"{value_text(value)} ± {error_text(value)}",
                        f"{value['n']:,}",
                        _protocol(evaluation.object("suites").object(suite)),
                    ]
                )
    if not rows:
        return ""
    headings = ["file", "suite", "metric", "value ± standard error", "documents", "asked how"]
    return f"## Figures\n\n{_table(headings, rows)}"


def _protocol(suite: dict[str, Any]) -> str:
    facts = [str(suite["kind"])]
    facts += [f"{suite['shots']} shots"] if "shots" in suite else []
    if "temperature" in suite:
        temperature = suite["temperature"]
        facts.append(f"temperature {temperature:g}" if temperature else "greedy")
    facts += [f"at most {suite['max_new_tokens']} tokens"] if "max_new_tokens" in suite else []
    return ", ".join(facts)


def _road(stages: dict[Path, JsonObject]) -> str:
    """One row a stage: what it was, from what, how long, and the training's own numbers."""
    rows = []
    for folder, record in stages.items():
        config, optim = record["config"], record["config"].get("optim") or {}
        training = ""
        if isinstance(optim, dict) and "num_steps" in optim and "rows_per_step" in config:
            tokens = optim["num_steps"] * config["rows_per_step"] * config["seq_len"]
            training = (
                f"{optim['num_steps']:,} steps, {count(tokens)} tokens at most, "
                f"learning rate {optim['lr']:g} ({optim.get('optimizer', 'adamw')})"
            )
        origins = ", ".join(Path(path).name for path in input_paths(record))
        seconds = duration(record["seconds"]) if record.get("status") == "finished" else ""
        rows.append([folder.name, f"`{record['stage']}`", origins, training, seconds])
    if not rows:
        return ""
    return f"## Made\n\n{_table(['stage', 'function', 'from', 'training', 'took'], rows)}"


def _data(stages: dict[Path, JsonObject]) -> str:
    parts = []
    for stage in stages:
        curation, mix = _object(stage / "curation.json"), _object(stage / "mix.json")
        if "sources" in curation:
            sources = curation.object("sources")
            rows = [
                [name, str(source["domain"]), count(source["kept"]["train"]["tokens"])]
                for name, source in ((name, sources.object(name)) for name in sources)
                if "tokens" in source.get("kept", {}).get("train", {})
            ]
            parts.append(_table(["source", "domain", "training tokens"], rows) if rows else "")
        if "shares" in mix:
            shares = ", ".join(f"{name} {percent(share)}" for name, share in mix["shares"].items())
            parts.append(f"Mix `{mix.get('selected', stage.name)}`: {shares}.")
    return "## Data\n\n" + "\n\n".join(part for part in parts if part) if any(parts) else ""


def _licence(imported: list[JsonObject], licence: str | None) -> str:
    if any("licence" in origin for origin in imported):
        return (
            "## Licence\n\nMade from weights that Meta publishes under the FAIR Noncommercial "
            "Research License, which holds for this model too. The Llama tokenizers have a licence "
            "of their own."
        )
    chosen = (
        f"{licence}." if licence else "Not chosen yet. Name one, and check those of the sources."
    )
    bases = ", ".join(f"`{_origin(origin)}`" for origin in imported)
    return f"## Licence\n\n{chosen}" + (f" Made from {bases}: mind its licence." if bases else "")


def _origin(imported: JsonObject) -> str:
    origin = str(imported["from"])
    return origin if HUB_ID.fullmatch(origin) else Path(origin).name


def _metadata(
    folder: Path,
    name: str,
    imported: list[JsonObject],
    evaluations: list[tuple[JsonObject, dict[str, JsonObject]]],
    licence: str | None,
) -> str:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=suite,
            dataset_name=suite,
            metric_type=value["metric"],
            metric_name=f"{value['metric']} of {file}",
            metric_value=value["value"],
        )
        for _, measured in evaluations
        for file, figures in measured.items()
        for suite, value in figures["suites"].items()
    ]
    bases = [_origin(origin) for origin in imported if HUB_ID.fullmatch(_origin(origin))]
    fair = any("licence" in origin for origin in imported)
    kinds = [kind for kind in ("gguf", "pte") if (folder / f"model.{kind}").is_file()]
    data = ModelCardData(
        license="other" if fair else licence,
        license_name=FAIR if fair else None,
        base_model=bases or None,
        pipeline_tag="text-generation",
        library_name="transformers" if (folder / "config.json").is_file() else None,
        tags=["pocketlm", *({"gguf": "gguf", "pte": "executorch"}[kind] for kind in kinds)],
        model_name=name.rsplit("/", 1)[-1] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()
