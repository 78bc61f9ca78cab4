"""`from pocketlm import load`: see `pocketlm.inference.loaded`. Imported when it is asked for, for
`pocketlm --help` needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketlm.inference.loaded import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from pocketlm.inference.loaded import load

        return load
    raise AttributeError(f"module 'pocketlm' has no attribute {name!r}")
