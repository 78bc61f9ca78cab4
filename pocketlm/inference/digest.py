"""Which model a path holds: a hash of all that its answers depend on."""

import hashlib
from pathlib import Path

from pocketlm.inference.gguf_file import part_files

CHECKPOINT_FILES = ("*.safetensors", "config.json", "tokenizer.json", "chat_template.jinja")


def sha256_of(path: Path) -> str:
    """Of an exported file (all its parts), or of a checkpoint's weights, config and tokenizer."""
    if path.is_file():
        files = part_files(path)
    else:
        files = [file for name in CHECKPOINT_FILES for file in sorted(path.glob(name))]
    whole = hashlib.sha256()
    for file in files:
        with open(file, "rb") as content:
            while chunk := content.read(2**20):
                whole.update(chunk)
    return whole.hexdigest()
