"""Choose the four outputs of a network that are its stages, by their strides alone."""

from collections.abc import Sequence

STAGES = 4
_DEPTH_FRACTIONS = (2 / 12, 4 / 12, 10 / 12, 1.0)
"""Plain 12-block models are cut after blocks 2, 4, 10, 12 in the field's published code (depths 2-2-6-2)."""


def proportional_cuts(depth: int) -> tuple[int, ...]:
    """Cut `depth` equal blocks in the proportion 2-2-6-2 and return the four block indices, from 0.

    12 blocks are cut at 1, 3, 9, 11. Fewer than four blocks repeat the first. Raises ValueError for no block.
    """
    if depth < 1:
        raise ValueError("a model without blocks has no stages")
    if depth < STAGES:
        return tuple([0] * (STAGES - depth) + list(range(depth)))
    cuts: list[int] = []
    for i, fraction in enumerate(_DEPTH_FRACTIONS):
        earliest = cuts[-1] + 1 if cuts else 0
        latest = depth - (STAGES - i)
        cuts.append(min(max(round(depth * fraction) - 1, earliest), latest))
    return tuple(cuts)


def choose_stages(strides: Sequence[int]) -> tuple[int, ...]:
    """Choose four of the feature maps that a model offers, given the stride of each, shallow to deep.

    With four strides or more: the last map of each of the four largest strides. With one stride: cuts in proportion to
    depth. With two or three: the last map of each stride, and further ones from the stride with the most maps; with
    fewer than four maps the first is repeated.
    """
    last = {stride: i for i, stride in enumerate(strides)}
    ends = sorted(last.values())
    if len(ends) >= STAGES:
        return tuple(ends[-STAGES:])
    if len(ends) == 1 or len(strides) < STAGES:
        return proportional_cuts(len(strides))
    spare = [i for i in range(len(strides)) if i not in ends]
    busiest = max(last, key=lambda stride: sum(s == stride for s in strides))
    preferred = [i for i in spare if strides[i] == busiest] or spare
    while len(ends) < STAGES:
        pick = preferred[len(preferred) // 2] if preferred else next(i for i in spare if i not in ends)
        ends.append(pick)
        preferred = [i for i in preferred if i != pick]
    return tuple(sorted(ends))
