"""A published network with random weights through the whole chain: Meta's layout in, a .gguf and a
.pte out, each compared.

    python benchmarks/published_shapes.py r1-140m
    python benchmarks/published_shapes.py pro --gguf-dtypes q4_0

R1 comes in as `llama4_text` and Pro in a layout of its own, as Meta publishes them; other shapes in
ours. One JSON line for each file.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pocketlm.corpus.python_docs import read_language_reference
from pocketlm.model.checkpoint import save_checkpoint
from pocketlm.model.presets import PRESETS
from pocketlm.model.tokenizer import train_tokenizer
from pocketlm.model.transformer import Transformer
from pocketlm.stages.export import ExportConfig, export
from pocketlm.stages.importing import ImportConfig, import_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--formats", default="gguf,pte")
    parser.add_argument(
        "--gguf-dtypes", default="f32,q4_0", help="a float32 .gguf of MobileLLM-Pro takes 4 GB"
    )
    arguments = parser.parse_args()
    tokenizer = train_tokenizer([page.text for page in read_language_reference()], 2048)
    # so that logits are not flat
    config = replace(PRESETS[arguments.preset], initializer_range=0.05)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("meta", "model"):
            (folder / name).mkdir()
        layout = {"r1": "llama4_text", "pro": "mobilellm-pro"}.get(arguments.preset.split("-")[0])
        save_checkpoint(folder / "meta", Transformer(config, seed=1), tokenizer, layout=layout)
        model = import_model(
            ImportConfig(name="import", source=str(folder / "meta")), folder / "model"
        )
        show(json.loads((model / "import.json").read_text()) | {"from": arguments.preset})
        for name in arguments.formats.split(","):
            for dtype in arguments.gguf_dtypes.split(",") if name == "gguf" else (None,):
                out = folder / f"{name}-{dtype}"
                out.mkdir()
                started = time.perf_counter()
                options = {"gguf_dtype": dtype, "context_length": 1024, "min_agreement": 0.0}
                export(ExportConfig(name="export", formats=(name,), **options), out, model=model)
                found = json.loads((out / "export.json").read_text())
                size = found["bytes"][f"model.{name}"]
                show(
                    {
                        "file": f"{name} {dtype or 'f32'}",
                        **found["agreement"][f"model.{name}"],
                        "bytes": size,
                    }
                )
                (out / f"model.{name}").unlink()
                show(
                    {
                        "file": f"{name} {dtype or 'f32'}",
                        "seconds": round(time.perf_counter() - started),
                    }
                )


def show(figures: dict) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
