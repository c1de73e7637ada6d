"""Pages of KV memory: each has one owner, and none gets lost."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aicc.runtime.errors import ResourceError
from aicc.runtime.kv import PageAllocator, PageTable


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


class Pages(RuleBasedStateMachine):
    """Any order of growing and releasing keeps every page with exactly one owner."""

    @initialize(pages=st.integers(1, 20), size=st.integers(1, 5))
    def make(self, pages, size):
        self.allocator = PageAllocator(pages, size)
        self.tables = [PageTable(pages) for _ in range(4)]

    @rule(which=st.integers(0, 3), tokens=st.integers(0, 60))
    def grow(self, which, tokens):
        table = self.tables[which]
        fits = self.allocator.missing(table, tokens) <= self.allocator.free
        if fits:
            self.allocator.grow(table, tokens)
            assert len(table) >= self.allocator.pages_for(tokens)
        else:
            with pytest.raises(ResourceError):
                self.allocator.grow(table, tokens)

    @rule(which=st.integers(0, 3))
    def release(self, which):
        self.allocator.release(self.tables[which])
        assert len(self.tables[which]) == 0

    @invariant()
    def each_page_has_one_owner(self):
        owned = [page for table in self.tables for page in table.pages.tolist()]
        assert len(set(owned)) == len(owned) == self.allocator.page_count - self.allocator.free


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=50, deadline=None)
