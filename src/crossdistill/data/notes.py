"""What was read, in words: splits, classes, sizes, modes, what was left out, and what looks wrong."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from crossdistill.config.data import SMALL_IMAGE
from crossdistill.data.class_names import canonical_name
from crossdistill.data.datasets import Images, Source
from crossdistill.data.folder import Files
from crossdistill.data.look import copies, place
from crossdistill.data.picture import Header, mostly_long

_TINY = 5
"""Training images below which a class is named."""
_SHOWN = 3
_SAMPLED = 16
"""Images whose pixels are looked at."""
_DARK = 64
"""Value of 255 below which the brightest pixel of 16-bit images is too dark."""


def describe(
    source: Source,
    parts: Mapping[str, Images],
    headers: Sequence[Header],
    channels: int,
    *,
    most_bytes: int,
    labelled: bool = True,
) -> list[str]:
    """Return lines about a data set: the first says what is read, the others what is left out or looks wrong.

    Copies are looked for where at most `most_bytes` have to be read.
    """
    counts = np.bincount(parts["train"].labels, minlength=len(source.class_names))
    classes = "no labels"
    if labelled:
        fewest = int(counts.argmin())
        classes = (
            f"{len(source.class_names)} classes (fewest training images: {source.class_names[fewest]!r}, "
            f"{counts[fewest]:,})"
        )
    else:
        source, counts = replace(source, class_names=()), counts[:0]
    kinds = ", ".join(f"{mode} {count:,}" for mode, count in Counter(h.mode for h in headers).most_common())
    read = (
        f"data {source.name}: {classes}, {len(parts['train']):,} training, {len(parts['val']):,} validation and "
        f"{len(parts['test']):,} test images of {_sizes(headers)} px, mode {kinds}{_file_types(source)}"
    )
    odd = _oddities(source, parts, headers, counts.tolist(), channels) + _copies(parts, most_bytes)
    return [read, *(f"left out: {phrase}" for phrase in source.left_out), *(f"note: {text}" for text in odd)]


def _sizes(headers: Sequence[Header]) -> str:
    sizes = {(h.width, h.height) for h in headers}
    low, high = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
    return f"{low[0]}x{low[1]}" + (f" to {high[0]}x{high[1]}" if len(sizes) > 1 else "")


def _file_types(source: Source) -> str:
    keys = [key for images in source.splits.values() if isinstance(images, Files) for key in images.keys]
    types = Counter(os.path.splitext(key)[1].lower() for key in keys)
    return "; files " + ", ".join(f"{kind} {count:,}" for kind, count in types.most_common()) if types else ""


def _oddities(
    source: Source, parts: Mapping[str, Images], headers: Sequence[Header], counts: Sequence[int], channels: int
) -> list[str]:
    found = []
    grey = sum(header.grey for header in headers)
    if 0 < grey < len(headers):
        kind = "colour" if channels == 3 else "grey"
        found.append(f"{grey:,} of {len(headers):,} images are grey, the others colour; all are read as {kind}")
    large = sum(max(header.width, header.height) > SMALL_IMAGE for header in headers)
    if 0 < large <= len(headers) / 10:
        found.append(
            f"{large:,} of {len(headers):,} images are larger than {SMALL_IMAGE} px, so the data is not taken for "
            "small images; --img-size decides"
        )
    found += _dark(parts["train"], headers)
    found += _long(headers)
    tiny = [f"{source.class_names[k]!r} ({count})" for k, count in enumerate(counts) if count < _TINY]
    alike = Counter(map(canonical_name, source.class_names))
    if twins := [repr(name) for name, count in alike.items() if count > 1]:
        found.append(f"several classes have one name in different forms of Unicode: {_few(twins)}")
    if tiny:
        found.append(f"fewer than {_TINY} training images: {_few(tiny)}")
    for role in ("val", "test"):
        absent = sorted(set(range(len(source.class_names))) - set(parts[role].labels))
        if absent:
            found.append(f"no {role} images of {_few([repr(source.class_names[k]) for k in absent])}")
    return found


def _dark(train: Images, headers: Sequence[Header]) -> list[str]:
    """Say where images of 16 bits use only the lowest values, as those of 10 or 12 bits do."""
    if not any(header.wide for header in headers):
        return []
    some = range(0, len(train), max(1, len(train) // _SAMPLED))
    brightest = max(int(np.asarray(train.read(number)).max()) for number in some)
    if brightest >= _DARK:
        return []
    return [
        f"images of 16 bits are scaled from 65,535 to 255, and the brightest value of {len(some)} of them is then "
        f"{brightest}: scale them to the whole range first"
    ]


def _long(headers: Sequence[Header]) -> list[str]:
    count = sum(header.long for header in headers)
    if count in (0, len(headers)):
        return []
    effect = "squashed, as all are" if mostly_long(headers) else "cut off at their ends in evaluation"
    return [
        f"{count:,} of {len(headers):,} images are more than twice as long as they are short; above 64 px square "
        f"inputs show them {effect} (--augment.crop-mode decides)"
    ]


def _copies(parts: Mapping[str, Images], most_bytes: int) -> list[str]:
    groups = copies(parts, most_bytes)
    if groups is None:
        return ["copies of images were not looked for, since too many bytes would be read; `crossdistill check` looks"]
    leaks, conflicts = [], []
    for members in groups:
        trained = [number for role, number in members if role == "train"]
        held = [(role, number) for role, number in members if role != "train"]
        if trained and held:
            role, number = held[0]
            leaks.append(f"{place(parts[role], number)} = {place(parts['train'], trained[0])}")
        by_class = {parts[role].labels[number]: place(parts[role], number) for role, number in members}
        if len(by_class) > 1:
            conflicts.append(" = ".join(list(by_class.values())[:2]))
    found = []
    if leaks:
        found.append(f"held-out images that are copies of training images, byte for byte: {_few(leaks)}")
    if conflicts:
        found.append(f"copies of one image in several classes: {_few(conflicts)}")
    return found


def _few(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else "")
