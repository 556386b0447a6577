"""Digests: different values have different checksums, and arrays computed from a digested array have no digest."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore._utils.digests import DigestedArray, checksum_of, digest_of, digested_by, with_digests


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40_000), st.data())
def test_checksum_changes_with_each_bit_and_with_the_order(n_bytes, data):
    content = np.random.default_rng(n_bytes).integers(0, 256, n_bytes, np.uint8)
    expected = checksum_of(content)
    assert checksum_of(content.copy()) == expected
    changed = content.copy()
    changed[data.draw(st.integers(0, n_bytes - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum_of(changed) != expected
    turned = content[::-1]
    assert (checksum_of(turned) == expected) == np.array_equal(turned, content)
    assert checksum_of(np.append(content, np.uint8(0))) != expected


def test_checksum_distinguishes_permuted_rows_of_a_matrix():
    rows = np.random.default_rng(0).random((700, 24), np.float32)
    assert len({checksum_of(rows), checksum_of(rows[::-1]), checksum_of(np.roll(rows, 1, axis=0))}) == 3


def test_checksum_of_an_empty_array_is_defined():
    assert checksum_of(np.empty(0)) == checksum_of(np.empty((0, 3), np.float32))


def test_digest_distinguishes_types_order_and_boundaries():
    given = [["a", "b"], ["b", "a"], ["ab"], ["a", "b", None], [b"a", b"b"], [1], [1.0], ["1"], [None], []]
    assert len({digest_of(parts) for parts in given}) == len(given)


def test_only_the_array_itself_has_a_digest():
    array = DigestedArray.of(np.arange(6.0).reshape(2, 3), b"digest", 5.0)
    assert (array.digest, array.peak) == (b"digest", 5.0)
    for other in (array[:1], array + 1, array.copy(), array.reshape(-1), pickle.loads(pickle.dumps(array))):
        assert other.digest is None
        assert other.peak == np.inf


def test_array_with_a_digest_cannot_be_changed():
    array = DigestedArray.of(np.ones((2, 3)), b"digest", 1.0)
    with pytest.raises(ValueError, match="read-only"):
        array *= 2
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        np.add(array, 1, out=array)
    assert (array == 1).all()


def test_only_the_marked_method_itself_has_a_source_of_arrays_with_digests():
    class Marked:
        def source(self):
            return "digests", self

        @digested_by(source)
        def method(self):
            return "none", self

    class Overridden(Marked):
        def method(self):
            return super().method()

    class Wrapped(Marked):
        @functools.wraps(Marked.method)
        def method(self):
            return Marked.method(self)

    class Delegating:
        def __init__(self, one):
            self.one = one

        def __getattr__(self, name):
            return getattr(self.one, name)

    class Containing(Delegating):
        def method(self):
            return self.one.method()

    one, inherited = Marked(), type("Inherited", (Marked,), {})()
    assert with_digests(one.method)() == ("digests", one)
    assert with_digests(inherited.method)() == ("digests", inherited)
    assert with_digests(Delegating(one).method)() == ("digests", one)
    for other in (Overridden(), Wrapped(), Containing(one)):
        assert with_digests(other.method)()[0] == "none"
    assert with_digests(len)([1]) == 1
