"""llama.cpp's numbers and names for kinds of tokens and of tokenizers, as a .gguf spells them."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
SPACE = "▁"  # what SentencePiece writes for a space
BYTES = [f"<0x{value:02X}>" for value in range(256)]
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # llama.cpp's names of the kinds
