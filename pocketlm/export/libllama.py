"""Where `LoadedModel` was in 0.1: scripts that read a .gguf's vocabulary import it from here."""

from pocketlm.inference.libllama import LoadedModel

__all__ = ["LoadedModel"]
