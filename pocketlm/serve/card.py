"""What a model's file says of itself, for people and for the page."""

import collections
import math
import re
from pathlib import Path
from typing import Any

from pocketlm.inference.gguf_header import read_header
from pocketlm.inference.open import size_of
from pocketlm.model.checkpoint import quantization_of
from pocketlm.model.json_shape import read_object
from pocketlm.model.weights import open_safetensors, weight_files
from pocketlm.serve.backend import Backend

FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)  # of a model card
LICENCE = re.compile(r"^(license(?:_name)?):\s*[\"']?([^\"'\n]+)", re.MULTILINE)


def card_of(path: Path, model: str, backend: Backend) -> dict[str, Any]:
    """The card of a served model; None where nothing says it.

    bits: of a weight, on the average of the whole file. weights: how many of each type of number.
    trained_for: the four-bit grid the model was trained for. agreement: what `pocketlm export`
    measured between the file and the model it was written from.
    """
    facts = _gguf_facts(path) if path.suffix == ".gguf" else _beside(path)
    bytes_, parameters = size_of(path), facts.get("parameters")
    return {
        "id": model,
        "file": path.name,
        "kind": backend.kind,
        "bytes": bytes_,
        "parameters": parameters,
        "bits": round(8 * bytes_ / parameters, 2) if parameters else None,
        "weights": facts.get("weights"),
        "trained_for": facts.get("trained_for"),
        "agreement": facts.get("agreement"),
        "context": backend.max_length,
        "slots": backend.slots,
        "chat": backend.tokenizer.chat_template is not None,
        "thinking": "<think>" in (backend.tokenizer.chat_template or ""),
        "json_schema": backend.constrains,
        "licence": facts.get("licence"),
    }


def _gguf_facts(path: Path) -> dict[str, Any]:
    import gguf

    header = read_header(path)
    numbers: collections.Counter[str] = collections.Counter()
    for name, shape in header.tensors.items():
        numbers[gguf.GGMLQuantizationType(header.places[name][0]).name] += math.prod(shape)
    return {
        **_exported(path),
        "parameters": numbers.total(),
        "weights": dict(numbers.most_common()),
        "licence": header.text("general.license", "") or licence_of(path.parent),
    }


def _beside(path: Path) -> dict[str, Any]:
    """Of a checkpoint folder, or of a .pte by the record of its export."""
    if path.is_file():
        return {**_exported(path), "licence": licence_of(path.parent)}
    numbers: collections.Counter[str] = collections.Counter()
    for file in weight_files(path):
        with open_safetensors(file) as content:
            for name in content.keys():  # noqa: SIM118
                part = content.get_slice(name)
                numbers[part.get_dtype()] += math.prod(part.get_shape())
    return {
        "parameters": numbers.total(),
        "weights": dict(numbers.most_common()),
        "trained_for": quantization_of(path),
        "licence": licence_of(path),
    }


def licence_of(folder: Path) -> str | None:
    """The one that a model card's front matter names, and not only as "other"."""
    readme = folder / "README.md"
    front = FRONT_MATTER.match(readme.read_text(errors="replace")) if readme.is_file() else None
    named = dict(LICENCE.findall(front[1])) if front else {}
    licence = named.get("license_name") or named.get("license")
    return licence.strip() if licence else None


def _exported(path: Path) -> dict[str, Any]:
    """What export.json beside a file says; {} where there is none."""
    record = path.with_name("export.json")
    if not record.is_file():
        return {}
    said = read_object(record)
    agreement = said.object("agreement", None).get(path.name)
    return {"trained_for": said.get("quantization"), "agreement": agreement}
