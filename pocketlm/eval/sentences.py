"""Sentences and words as IFEval's reference counts them, without nltk and its trained data.

The reference takes nltk's punkt model for sentences and its Treebank rules for words. Ours has
punkt's rules, but a short list of abbreviations in place of those it learned from text, and no
table of words that often begin a sentence: the two differ where a sentence ends in an abbreviation
("... at 5 p.m. The train ..."), which is no end here.
"""

from __future__ import annotations

import re

ABBREVIATED = (
    "adm al apr aug ave bros ca capt cf co col corp dec dept dr ed eg esq est etc feb fig ft gen "
    "gov hon ie inc jan jr jul jun lt ltd maj mar messrs mr mrs ms mt nos nov oct op pp prof "
    "rep rev sec sen sep sept sgt sr st ste tel tues univ vol vs wed a.m p.m e.g i.e u.s u.k u.n "
    "d.c ph.d b.c"
)
ABBREVIATIONS = frozenset(ABBREVIATED.split())
# a mark that may end a sentence: what stands before it, the marks, quotes and brackets that close,
# and a space
ENDS = re.compile(r"(?P<before>\S*?)(?P<marks>[.?!]+)(?P<closing>[\"'”’)\]}]*)(?=\s|$)")
INITIAL = re.compile(r"[^\W\d_]")
NUMBER = re.compile(r"[-+]?[\d.,]*\d")
# Treebank's: marks that stand alone, contractions, and the full stop at the very end of a sentence
ALONE = re.compile(r"\.\.\.|--|[^\w\s.'’\-/]|(?<=\s)'|'(?=\s|$)")
CONTRACTION = re.compile(r"(?i)(?<=\w)(n't|'(?:s|m|d|ll|re|ve))\b")


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the space between them; none of them is empty."""
    parts, begin = [], 0
    for match in ENDS.finditer(text):
        if _ends_sentence(match, text[match.end() :].lstrip()):
            parts.append(text[begin : match.end()])
            begin = match.end()
    parts.append(text[begin:])
    return [part.strip() for part in parts if part.strip()]


def _ends_sentence(match: re.Match[str], rest: str) -> bool:
    """punkt's decisions for one mark, by the word before it and the text behind."""
    before, marks = match["before"].lstrip("\"'“‘([{").lower(), match["marks"]
    if "?" in marks or "!" in marks:
        return True
    goes_on = rest[:1].islower()
    if len(marks) > 1:  # an ellipsis
        return not goes_on
    if before in ABBREVIATIONS or before.rpartition("-")[2] in ABBREVIATIONS:
        return False
    if INITIAL.fullmatch(before):
        return False
    return not (NUMBER.fullmatch(before) and goes_on)


def count_words(text: str) -> int:
    r"""Runs of letters, digits and underscores (nltk's RegexpTokenizer of \w+)."""
    return len(re.findall(r"\w+", text))


def treebank_words(text: str) -> list[str]:
    """Words and marks as nltk's word_tokenize splits them: a hyphenated word is one, "DON'T" is
    two.
    """
    words = []
    for sentence in sentences(text):
        spaced = CONTRACTION.sub(r" \1", ALONE.sub(lambda match: f" {match[0]} ", sentence))
        spaced = re.sub(r"\.(?=\s*[\"”')\]}]*\s*$)", " . ", spaced)
        words += spaced.split()
    return words
