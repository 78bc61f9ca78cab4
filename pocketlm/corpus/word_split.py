"""The word tokenizer that datatrove's blocks are given: its own English one needs spaCy and is far
slower.
"""

import re

from datatrove.utils.text import TextNormConfig, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer

_WORD = re.compile(r"\w+|[^\w\s]+")


class RegexWords(WordTokenizer):
    """Words are runs of letters, digits and underscores, or runs of other signs; sentences are not
    split.
    """

    def word_tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


WORDS = RegexWords()


def simplified_words(text: str) -> list[str]:
    """Lower-case words without punctuation or accents; numbers stay as they are."""
    accents = not text.isascii()  # same words either way; the pass over accents is the slow one
    return simplify_text(
        text, TextNormConfig(norm_numbers=False, norm_unicode_diacritics=accents)
    ).split()
