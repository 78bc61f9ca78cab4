"""A quality score by a sequence-classification model of Hugging Face, such as FineWeb-Edu's: one
regression output, of the beginning of a text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketlm.data.probe_building.scores import Scorer, Scores
from pocketlm.inference.transformers_runtime import quiet
from pocketlm.model.hub import HUB_ID, download_files
from pocketlm.model.json_shape import read_object
from pocketlm.model.weights import INDEX, WEIGHTS, index_names, weight_files

FINEWEB_EDU = "HuggingFaceFW/fineweb-edu-classifier"  # R1, section 5.1: labels 0 to 5
MAX_TOKENS = 512  # of a text; what it was trained on
FILES = ["*.json", "vocab.txt", "merges.txt", "*.model", "LICENSE*"]  # no pickle, no code


def open_classifier(name: str, device: torch.device) -> Scorer:
    """The scorer of a folder or a hub id, on `device`.

    ValueError: neither there nor on the hub, no safetensors, more than one output, a model without
    a classification head.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not HUB_ID.fullmatch(name):
            raise ValueError(f"scorer {name}: no such folder, and no id of the hub (owner/name)")
        folder = _downloaded(name)
    _check_head(folder, name)
    network, tokenizer = _load(folder, name)
    network = network.to(device).eval()
    longest = min(
        MAX_TOKENS,
        int(tokenizer.model_max_length),
        int(getattr(network.config, "max_position_embeddings", None) or MAX_TOKENS),
    )

    @torch.inference_mode()
    def score(texts: Sequence[str]) -> Scores:
        with quiet():  # which would say that texts are too long
            whole = tokenizer(list(texts), add_special_tokens=True)["input_ids"]
            batch = tokenizer(
                list(texts), truncation=True, max_length=longest, padding=True, return_tensors="pt"
            )
        logits = network(**{key: value.to(device) for key, value in batch.items()}).logits
        cut = np.asarray([len(ids) > longest for ids in whole])
        return logits[:, 0].double().cpu().numpy(), cut

    return score


def _downloaded(name: str) -> Path:
    """The folder in the hub's cache: small files first, weights when those promise a score."""
    folder = download_files(name, FILES)
    _check_head(folder, name)
    weights = [WEIGHTS, *(index_names(folder / INDEX) if (folder / INDEX).is_file() else [])]
    return download_files(name, [*FILES, *weights])


def _check_head(folder: Path, name: str) -> None:
    """ValueError unless config.json is of a sequence classifier with one output."""
    config = read_object(folder / "config.json")
    kinds = [str(kind) for kind in config.get("architectures") or ()]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(
            f"scorer {name}: {', '.join(kinds) or 'a model without a named head'} gives no score; "
            "a model ...ForSequenceClassification with one output is needed"
        )
    outputs = len(config.object("id2label", None)) or config.get("num_labels", 2)
    if outputs != 1:
        raise ValueError(
            f"scorer {name}: {outputs} outputs, of which none is the score; a regression model "
            f"with one is needed, such as {FINEWEB_EDU}"
        )


def _load(folder: Path, name: str) -> tuple[Any, Any]:
    """(network in float32, tokenizer), from safetensors and by the library's own code alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    weight_files(folder)
    where = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), **where)
            network, report = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **where,
            )
    except MemoryError:
        raise
    except Exception as error:  # the library raises whatever its parsers meet
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"scorer {name}: transformers cannot open it: {reason}") from None
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, report.get(kind) or ())):
            raise ValueError(
                f"scorer {name}: {len(names)} tensors are {kind.removesuffix('_keys')}, the first "
                f"{names[0]}; they would be random numbers: save or fetch the weights again"
            )
    return network, tokenizer
