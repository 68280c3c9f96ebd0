"""Mutated inputs raise documented errors only. The default run tries thousands, ``pytest -m slow`` millions."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.corpus import seeds
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator

every_target = pytest.mark.parametrize("target", TARGETS)


def mutated(target: str, count: int) -> Iterator[bytes]:
    """Yield seeds with a few bytes changed, removed, repeated or exchanged with another seed's."""
    source = random.Random(target)
    known = list(seeds(target))
    for _ in range(count):
        data = bytearray(source.choice(known))
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(data) + 1)
            end = min(len(data), at + source.randint(1, 9))
            match source.randrange(4):
                case 0:
                    data[at:end] = source.randbytes(end - at)
                case 1:
                    del data[at:end]
                case 2:
                    data[at:at] = data[at:end]
                case 3:
                    data[at:end] = source.choice(known)[at:end]
        yield bytes(data)


@every_target
def test_seeds_are_many_and_small(target: str) -> None:
    sizes = [len(seed) for seed in seeds(target)]
    assert len(sizes) >= 2
    assert sum(sizes) < 64_000


@every_target
def test_mutated_inputs_raise_documented_errors_only(target: str) -> None:
    # A URI of an unknown scheme is looked up among all installed distributions.
    count = 100 if target == "uris" else 1_000
    for data in [b"", *seeds(target), *mutated(target, count)]:
        TARGETS[target](data)


@pytest.mark.slow
@every_target
def test_a_million_inputs_raise_documented_errors_only(target: str) -> None:
    for data in mutated(target, 1_000_000):
        TARGETS[target](data)
