"""Evaluation problems kept out of the training text.

A document is contaminated when it holds an n-gram (13 words by default, GPT-3's choice, arXiv
2005.14165 appendix C) of an evaluation prompt. An n-gram that reads the same in several evaluation
prompts once numbers are masked ("Tom has 0 apples and ...") belongs to a template, not to a
problem, and does not count. Prompts left without an n-gram of their own, too short or all template,
are matched whole and with their signs ("3 + 5" is not "3 - 5").
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from datatrove.utils.text import ngrams

from pocketlm.corpus.word_split import simplified_words

_NUMBER = re.compile(r"\d+")
_SIGNED_WORD = re.compile(r"\w+|[^\w\s]")
# inside running text a shorter prompt ("Hello there") says nothing about a leak
MIN_CONTAINED_WORDS = 4


class EvaluationIndex:
    """The n-grams and whole prompts of every suite; `match` says what of them a document holds."""

    def __init__(self, suites: Mapping[str, Iterable[str]], *, ngram: int) -> None:
        if ngram < 1:
            raise ValueError(f"ngram is {ngram}; it must be at least 1 word")
        self.ngram = ngram
        prompts = {
            tuple(_signed(p)): (suite, p)
            for suite, texts in suites.items()
            for p in texts
            if p.strip()
        }
        template = self._template_ngrams(prompt for _, prompt in prompts.values())
        self._suite_of_ngram: dict[str, str] = {}
        self._suite_of_prompt: dict[tuple[str, ...], str] = {}
        # (first, last) word of every n-gram: few texts get past this test
        self._ends: set[tuple[str, str]] = set()
        # first word of a prompt matched whole -> lengths to try there
        self._lengths: dict[str, set[int]] = {}
        for signed, (suite, prompt) in prompts.items():
            specific = [gram for gram in self._ngrams(prompt) if _masked(gram) not in template]
            self._suite_of_ngram.update(dict.fromkeys(specific, suite))
            self._ends.update((words[0], words[-1]) for words in map(str.split, specific))
            self._suite_of_prompt[signed] = suite
            if not specific and sum(word.isalnum() for word in signed) >= MIN_CONTAINED_WORDS:
                self._lengths.setdefault(signed[0], set()).add(len(signed))

    def match(self, text: str, prompts: Sequence[str] = ()) -> str | None:
        """The overlap found, as "suite: words", or None. A conversation's prompts are compared
        whole too.
        """
        for prompt in prompts:
            signed = tuple(_signed(prompt))
            if signed in self._suite_of_prompt:
                return f"{self._suite_of_prompt[signed]}: {prompt}"
        words = simplified_words(text) if self._ends else []
        for start, ends in enumerate(zip(words, words[self.ngram - 1 :], strict=False)):
            if ends in self._ends:
                gram = " ".join(words[start : start + self.ngram])
                if gram in self._suite_of_ngram:
                    return f"{self._suite_of_ngram[gram]}: {gram}"
        # a short prompt may be the start of a longer problem, so conversations compare whole turns
        # only
        return None if prompts or not self._lengths else self._whole_prompt_in(text)

    def _whole_prompt_in(self, text: str) -> str | None:
        words = _signed(text)
        for start, word in enumerate(words):
            for length in sorted(self._lengths.get(word, ())):
                suite = self._suite_of_prompt.get(tuple(words[start : start + length]))
                if suite is not None:
                    return f"{suite}: {' '.join(words[start : start + length])}"
        return None

    def _template_ngrams(self, prompts: Iterable[str]) -> set[str]:
        counts: Counter[str] = Counter()
        for prompt in prompts:
            counts.update({_masked(gram) for gram in self._ngrams(prompt)})
        return {gram for gram, count in counts.items() if count > 1}

    def _ngrams(self, text: str) -> list[str]:
        return [" ".join(gram) for gram in ngrams(simplified_words(text), self.ngram)]


def _masked(gram: str) -> str:
    return _NUMBER.sub("0", gram)


def _signed(text: str) -> list[str]:
    """Lower-case words, each sign a word of its own, so that 3 + 5 and 3 - 5 differ."""
    return _SIGNED_WORD.findall(text.lower())
