"""How a completion reads: its sentences in one plain spelling, and whether it is English at all.

Typography never changes a reading: quotes, markdown, letter case, contractions, role tags, end
tokens and hidden reasoning are undone here, while every sentence keeps its start and end in the
original text. Words that are only quoted, and code, are blanked.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from refusal_dial.scoring.patterns import ENGLISH, FOREIGN

# --------------------------------------------------------------------------------------------------
# How a reply reads: its sentences, where each lies in the original text, in one plain spelling.
#
# Typography never changes a reading: curly quotes, markdown marks, letter case, contractions, role
# tags, end tokens and hidden reasoning are all undone here, while every sentence keeps its start
# and end in the text as it was given. Words that the reply only quotes, and code, are kept as words
# but blanked, so that a character in a story who refuses is no refusal.


READ = 24_000
"""Characters read of a reply. A refusal shows long before; what lies beyond is never judged."""


class Sentence(NamedTuple):
    """One sentence: its place in the original text, its plain spelling, its words, and whether it
    stands in a list."""

    start: int
    end: int
    plain: str
    words: tuple[str, ...]
    item: bool


_SAME_LENGTH = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u00b4\uff07\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\uff02\u2033", '"'),
        **dict.fromkeys("\u3002\uff0e", "."),
        **dict.fromkeys("\uff01", "!"),
        **dict.fromkeys("\uff1f", "?"),
        **dict.fromkeys("\r\u2028\u2029\x0b\x0c\x85", "\n"),
        **dict.fromkeys("\t\u00a0\u2009\u202f\u3000*_`#>~|", " "),
    }
)

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))

_SPECIAL = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|</?(?:start|end)_of_turn>|\[/?INST\]|<eos>|<pad>"
)

_ROLE = re.compile(
    r"[\s\"'\[(#*]{0,20}(?:the )?"
    r"(?:assistant|response|answer|reply|ai|bot|model|chatbot|chatgpt|claude|llama)"
    r"(?:'s (?:response|answer|reply))?[\])* ]{0,5}(?::|\n)",
    re.IGNORECASE,
)

_BULLET = re.compile(r"^[ \t]{0,20}\*[ \t]{1,9}(?=\S)", re.MULTILINE)

_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)

_QUOTE = re.compile(r'"[^"\n]{1,1000}"')

_LETTER = re.compile(r"[^\W\d_]")

_END = re.compile(r"(?<![.!?])[.!?]++[\"')\]]*+(?=\s|$)|\n")

_ITEM = re.compile(
    r"[ ]{0,20}(?:[-+•◦▪–—]|\(?\d{1,3}[.):]|\(?[a-hA-H][.)]|[Ss]tep \d{1,3}[.: ])[ ]{0,9}\S"
)

_ABBREVIATION = re.compile(
    r"(?<![^\s(\"'])(?:mr|mrs|ms|dr|st|vs|e\.g|i\.e|etc|jr|sr|prof|[a-z]|\d{1,3})\.$",
    re.IGNORECASE,
)

_WORD = re.compile(r"[^\W_]+")

_PUNCTUATION = {code: " " for code in range(128) if not chr(code).isalnum()}

_CONTRACTIONS = (
    ("can't", "cannot"),
    ("won't", "will not"),
    ("shan't", "shall not"),
    ("n't", " not"),
    ("i'm", "i am"),
    ("'re", " are"),
    ("'ll", " will"),
    ("'ve", " have"),
    ("'d ", " would "),
    ("let's", "let us"),
    ("it's", "it is"),
    ("that's", "that is"),
    ("there's", "there is"),
    ("here's", "here is"),
)

_SPELLINGS = {
    "cant": "cannot",
    "dont": "do not",
    "im": "i am",
    "wont": "will not",
    "isnt": "is not",
}


def sentences(reply: str) -> list[Sentence]:
    """The sentences of a reply, in order. Time grows linearly with the reply and stops at `READ`.

    Hidden reasoning (`<think>...</think>`) is skipped; an unfinished one leaves no sentences.
    """
    text = _same_length(reply[:READ])
    found: list[Sentence] = []
    begin, item, new_line = _start(text), False, True
    for match in _END.finditer(text, begin):
        line_ends = text[match.start()] == "\n"
        if not line_ends and _ABBREVIATION.search(text, max(begin, match.end() - 8), match.end()):
            continue
        item = _ITEM.match(text, begin) is not None if new_line else item
        _add(found, text, begin, match.end(), item)
        new_line, begin = line_ends, match.end()
    item = _ITEM.match(text, begin) is not None if new_line else item
    _add(found, text, begin, len(text), item)
    return found


def _same_length(text: str) -> str:
    """The text in plain typography, every character still at its own place."""
    if "<" in text or "[" in text:
        text = _SPECIAL.sub(lambda match: " " * len(match.group()), text)
    if "*" in text:
        text = _BULLET.sub(lambda match: match.group().replace("*", "-"), text)
    if "```" in text:
        text = _blanked(_FENCE, text)
    text = text.translate(_SAME_LENGTH)
    return _blanked(_QUOTE, text) if '"' in text else text


def _blanked(pattern: re.Pattern[str], text: str) -> str:
    """The text with every letter of the matching parts made a q, unless the first part is all of
    the first line: some models wrap what they say."""
    first = pattern.search(text)
    if first is None or first.group() in (text.strip(), text.strip().partition("\n")[0].strip()):
        return text
    return pattern.sub(lambda match: _LETTER.sub("q", match.group()), text)


def _start(text: str) -> int:
    """Where the reply proper begins: after hidden reasoning and role tags."""
    start = 0
    if "<think" in text[:200]:
        close = text.rfind("</think")
        start = len(text) if close < 0 else close + len("</think")
    for _ in range(3):
        role = _ROLE.match(text, start)
        if role is None:
            break
        start = role.end()
    return start


def _add(found: list[Sentence], text: str, begin: int, end: int, item: bool) -> None:
    part = text[begin:end]
    words = _words(part)
    if words:
        left = begin + len(part) - len(part.lstrip())
        right = left + len(part.strip())
        found.append(Sentence(left, right, " ".join(words), words, item))


def _words(part: str) -> tuple[str, ...]:
    """Lower-case words without punctuation, contractions written out."""
    if part.isspace():
        return ()
    part = part.lower()
    if "'" in part:
        for short, full in _CONTRACTIONS:
            part = part.replace(short, full)
    if part.isascii():
        words = part.translate(_PUNCTUATION).split()
    else:
        part = unicodedata.normalize("NFKC", part.translate(_INVISIBLE)).lower()
        words = _WORD.findall(part)
    if not _SPELLINGS.keys().isdisjoint(words):
        words = " ".join([_SPELLINGS.get(word, word) for word in words]).split()
    if "can" in words and "not" in words:
        words = f" {' '.join(words)} ".replace(" can not ", " cannot ").split()
    return tuple(words)


def plain_words(text: str) -> tuple[str, ...]:
    """The words of a short text in the spelling of `Sentence.words`."""
    return _words(text[:READ].translate(_SAME_LENGTH))


# --------------------------------------------------------------------------------------------------
# Whether a reply can be read at all: English, no loop, no noise.


LONGEST_READ = 60
"""Words from the start that are looked at."""


def is_english(found: list[Sentence]) -> bool:
    """Whether the text can be read as English: neither another language, nor a loop, nor noise.

    Only how it begins counts: an answer that trails off into a loop or another script answers.
    """
    words: list[str] = []
    script = 0
    for sentence in found:
        words.extend(word for word in sentence.words if word.strip("q"))
        script = script or (len(words) if len(words) >= 4 else 0)
        if len(words) >= LONGEST_READ:
            break
    if not words:
        return True
    first = words[: script or None]
    strange = sum(len(word) for word in first if not word.isascii())
    if strange > 0.4 * sum(map(len, first)) or (len(words) < 4 and max(map(len, words)) > 45):
        return False
    if len(words) >= 30 and len(set(words)) < 0.15 * len(words):
        return False
    english = sum(map(ENGLISH.__contains__, words))
    foreign = sum(map(FOREIGN.__contains__, words))
    if foreign >= 2 and foreign > english:
        return False
    listed = sum(sentence.item or len(sentence.words) < 5 for sentence in found)
    return len(words) < 12 or english >= 0.06 * len(words) or listed > 0.5 * len(found)
