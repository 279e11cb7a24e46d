"""From text to sparse counts: hashed words, their stems and letter groups."""

import re
import zlib
from collections import Counter

import numpy as np

BUCKETS = 4096
_STOP_WORDS = """
a about after all an and are as at be been before but by can come comes coming do does for from get give given go had
has have he her his how i if in into is it its just keep make makes making me more most my need needs new no not of
off on one or our out over put she so some take takes than that the their them then there they this to under until up
very was we were what when where which while who will with you your
"""
_STOP = frozenset(_STOP_WORDS.split())
_SUFFIXES = ("ations", "ation", "ings", "ing", "ers", "ies", "ed", "er", "es", "ly", "s", "e", "y")


def stem(word: str) -> str:
    """The word without its commonest English endings, at least three letters of it."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word


def features(text: str) -> Counter[str]:
    """Weights of the features of a text: stems count 1 each, their groups of four letters a little."""
    found: Counter[str] = Counter()
    for word in re.findall(r"[^\W\d_]+|\d+", text.casefold()):
        if word in _STOP:
            continue
        base = stem(word)
        found[base] += 1.0
        padded = f"<{base}>"
        groups = [padded[i : i + 4] for i in range(max(1, len(padded) - 3))]
        for group in groups:
            found["#" + group] += 0.5 / len(groups)
    return found


def vector(text: str) -> np.ndarray:
    """Signed feature hashing (Weinberger et al., 2009): shape (BUCKETS,), not normalised."""
    hashed = np.zeros(BUCKETS, np.float32)
    for feature, weight in features(text).items():
        number = zlib.crc32(feature.encode())
        hashed[number % BUCKETS] += weight if number >> 31 else -weight
    return hashed
