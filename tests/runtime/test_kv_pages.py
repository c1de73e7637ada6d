"""Pages of KV memory: none gets lost, and only those are shared whose contents are equal."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aicc.runtime.errors import ResourceError
from aicc.runtime.kv import PageAllocator, PageTable, page_key


def test_a_sequence_gets_pages_only_for_the_tokens_it_has():
    allocator = PageAllocator(page_count=10, page_size=4)
    table = PageTable(10)
    for tokens, pages in ((1, 1), (4, 1), (5, 2), (8, 2), (17, 5)):
        allocator.grow(table, tokens)
        assert len(table) == pages
    assert allocator.free == 5


def test_pages_are_used_from_the_first_so_that_unused_memory_stays_untouched():
    allocator = PageAllocator(page_count=100, page_size=4)
    table = PageTable(3)
    allocator.grow(table, 12)
    assert table.pages.tolist() == [0, 1, 2]


def test_when_too_few_are_free_nothing_changes_and_the_error_says_so():
    allocator = PageAllocator(page_count=3, page_size=4)
    first, second = PageTable(3), PageTable(3)
    allocator.grow(first, 8)
    allocator.grow(second, 4)
    with pytest.raises(ResourceError, match="0 free pages of 4 tokens and 1 are needed"):
        allocator.grow(second, 5)
    assert (len(first), len(second), allocator.free) == (2, 1, 0)
    allocator.release(first)
    allocator.grow(second, 12)
    assert sorted(second.pages.tolist()) == [0, 1, 2]


def keys_of(tokens: list[int], size: int) -> list[bytes]:
    keys = [b""]
    for start in range(0, len(tokens) - size + 1, size):
        keys.append(page_key(keys[-1], np.array(tokens[start : start + size], np.int64), size))
    return keys[1:]


@given(st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), max_size=9), st.integers(1, 4))
def test_equal_keys_mean_equal_tokens_from_the_start(first, second, size):
    for i, (a, b) in enumerate(zip(keys_of(first, size), keys_of(second, size), strict=False), 1):
        assert (a == b) == (first[: i * size] == second[: i * size])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
def test_keys_tell_how_tokens_were_computed_where_that_matters(tokens, size, prompt, other):
    def keys(apart: bool, length: int) -> list[bytes]:
        return PageAllocator(9, size, apart).keys([], np.array(tokens, np.int64), len(tokens), length)

    assert keys(False, prompt) == keys(False, other)
    for i, (a, b) in enumerate(zip(keys(True, prompt), keys(True, other), strict=True), 1):
        assert (a == b) == (min(prompt, i * size) == min(other, i * size))


def known(allocator: PageAllocator, tokens: list[int]) -> int:
    """How many pages of a text are known."""
    table = PageTable(allocator.page_count)
    allocator.share(table, keys_of(tokens, allocator.page_size))
    count = len(table)
    allocator.release(table)
    return count


@pytest.mark.parametrize(("taken", "left"), [(1, [2, 1, 2]), (2, [2, 0, 2]), (3, [1, 0, 2]), (4, [0, 0, 2])])
def test_the_longest_unused_pages_are_forgotten_first_and_ends_before_beginnings(taken, left):
    allocator = PageAllocator(page_count=6, page_size=2)
    texts = [1, 1, 2, 2], [3, 3, 4, 4], [5, 5, 6, 6]
    tables = [PageTable(6) for _ in texts]
    for table, tokens in zip(tables, texts, strict=True):
        allocator.grow(table, 4)
        allocator.publish(table, keys_of(tokens, 2))
    for i in (1, 0, 2):
        allocator.release(tables[i])
    assert allocator.free == 6
    allocator.grow(tables[0], 2 * taken)
    assert [known(allocator, tokens) for tokens in texts] == left


class Pages(RuleBasedStateMachine):
    """Any order of sharing, writing, growing, releasing and forgetting.

    Memory is played by a dictionary: what each page was last written with.
    """

    @initialize(pages=st.integers(1, 12), size=st.integers(1, 3))
    def make(self, pages, size):
        self.allocator = PageAllocator(pages, size)
        self.tables = [PageTable(pages) for _ in range(4)]
        self.texts: list[list[int]] = [[] for _ in self.tables]
        self.memory: dict[int, list[int]] = {}  # page -> all tokens up to its end

    @rule(which=st.integers(0, 3), tokens=st.lists(st.integers(0, 1), max_size=24))
    def begin(self, which, tokens):
        if not len(self.tables[which]):
            self.texts[which] = tokens
            self.allocator.share(self.tables[which], keys_of(tokens, self.allocator.page_size))

    @rule(which=st.integers(0, 3), tokens=st.integers(0, 24))
    def grow(self, which, tokens):
        table, text, size = self.tables[which], self.texts[which], self.allocator.page_size
        tokens = min(tokens, len(text))
        if self.allocator.missing(table, tokens) > self.allocator.free:
            with pytest.raises(ResourceError):
                self.allocator.grow(table, tokens)
            return
        self.allocator.grow(table, tokens)
        for i in range(table.published, tokens // size):
            self.memory[int(table.pages[i])] = text[: (i + 1) * size]
        self.allocator.publish(table, keys_of(text[:tokens], size)[table.published :])

    @rule(which=st.integers(0, 3), tokens=st.integers(1, 3))
    def grow_without_writing(self, which, tokens):
        table = self.tables[which]
        tokens += len(table) * self.allocator.page_size
        if self.allocator.missing(table, tokens) <= self.allocator.free:
            self.allocator.grow(table, tokens)
            for page in table.pages[table.published :].tolist():
                self.memory[page] = []
            self.texts[which] = []  # nothing more is published of it

    @rule(which=st.integers(0, 3))
    def release(self, which):
        self.allocator.release(self.tables[which])
        assert len(self.tables[which]) == 0

    @rule()
    def forget(self):
        self.allocator.forget()
        assert all(known(self.allocator, text) == 0 for text in self.texts)

    @invariant()
    def none_is_lost_or_owned_twice_for_different_contents(self):
        tables = [table.pages.tolist() for table in self.tables]
        owned = {page for table in tables for page in table}
        assert len(owned) == self.allocator.page_count - self.allocator.free
        assert all(len(set(table)) == len(table) for table in tables)
        for table, other in itertools.combinations(self.tables, 2):
            shared = set(table.pages.tolist()) & set(other.pages.tolist())
            assert shared <= set(table.pages[: table.published].tolist())
            assert shared <= set(other.pages[: other.published].tolist())

    @invariant()
    def contents_are_what_their_keys_say(self):
        size = self.allocator.page_size
        for table, text in zip(self.tables, self.texts, strict=True):
            for i, page in enumerate(table.pages[: table.published].tolist()):
                assert not text or self.memory[page] == text[: (i + 1) * size]


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=100)
