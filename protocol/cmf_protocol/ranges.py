"""Sets of sequences as ascending, disjoint `(first, last)` ranges, none of which touches the next. Pure.

Rules
- Every function takes ranges in that form and returns them so; `is_ranges` tells if what another party sent has it.
- The cost follows the number of ranges, never the number of sequences.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from cmf_protocol.encoding import INTEGER_MAX, Value

Ranges = tuple[tuple[int, int], ...]


def is_ranges(value: Value) -> bool:
    """Tell if a decoded value is a set of sequences ≥ 1 in the one form that is allowed."""
    if type(value) is not tuple:
        return False
    for item in value:
        if type(item) is not tuple or len(item) != 2 or type(item[0]) is not int or type(item[1]) is not int:
            return False
        if not 1 <= item[0] <= item[1] <= INTEGER_MAX:
            return False
    return all(before[1] + 1 < after[0] for before, after in pairwise(value))


def of_sequences(sequences: Iterable[int]) -> Ranges:
    """Return the ranges of sequences in any order, repetitions allowed."""
    return merged((sequence, sequence) for sequence in sequences)


def merged(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Return the ranges of (first, last) pairs in any order, overlapping or not."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(pairs):
        if found and first <= found[-1][1] + 1:
            if last > found[-1][1]:
                found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return tuple(found)


def union(one: Ranges, other: Ranges) -> Ranges:
    """Return what is in either."""
    return merged((*one, *other))


def subtract(ranges: Ranges, taken: Ranges) -> Ranges:
    """Return what is in `ranges` and not in `taken`."""
    found: list[tuple[int, int]] = []
    at = 0
    for first, last in ranges:
        while at < len(taken) and taken[at][1] < first:
            at += 1
        start, look = first, at
        while look < len(taken) and taken[look][0] <= last:
            if taken[look][0] > start:
                found.append((start, taken[look][0] - 1))
            start = taken[look][1] + 1
            look += 1
        if start <= last:
            found.append((start, last))
    return tuple(found)


def intersect(one: Ranges, other: Ranges) -> Ranges:
    """Return what is in both."""
    return subtract(one, subtract(one, other))


def clip(ranges: Ranges, first: int, last: int) -> Ranges:
    """Return what lies between two sequences, both included; nothing where `first` > `last`."""
    return tuple((max(a, first), min(b, last)) for a, b in ranges if a <= last and b >= first and first <= last)


def count(ranges: Ranges) -> int:
    """Return how many sequences these are."""
    return sum(last - first + 1 for first, last in ranges)


def split(ranges: Ranges, wanted: int) -> tuple[Ranges, Ranges]:
    """Return the first `wanted` sequences, and the rest."""
    for at, (first, last) in enumerate(ranges):
        size = last - first + 1
        if wanted < size:
            head = ((first, first + wanted - 1),) if wanted else ()
            return (*ranges[:at], *head), ((first + wanted, last), *ranges[at + 1 :])
        wanted -= size
    return ranges, ()


def last_of(ranges: Ranges) -> int:
    """Return the highest sequence; 0 of nothing."""
    return ranges[-1][1] if ranges else 0


def contains(ranges: Sequence[tuple[int, int]], sequence: int) -> bool:
    """Tell if a sequence is in `ranges`."""
    low, high = 0, len(ranges)
    while low < high:
        middle = (low + high) // 2
        if ranges[middle][1] < sequence:
            low = middle + 1
        else:
            high = middle
    return low < len(ranges) and ranges[low][0] <= sequence
