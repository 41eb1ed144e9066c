"""Ever smaller blocks of features, whose signs a search flips."""

from __future__ import annotations


def block(t: int, features: int, *, again: bool) -> tuple[int, int]:
    """The features, from the first to before the last, that step t flips.

    Level by level, blocks of half the size, rounded up; after single features all of them `again`,
    or single features for good.
    """
    lengths = [-(-features // 2**level) for level in range((features - 1).bit_length() + 1)]
    counts = [-(-features // length) for length in lengths]
    if again:
        t %= sum(counts)
    for length, count in zip(lengths, counts, strict=True):
        if t < count:
            return t * length, min((t + 1) * length, features)
        t -= count
    return t % features, t % features + 1
