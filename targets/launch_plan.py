"""What launch plans of GPUs are made of: all is fixed when a model is compiled, but for a few sizes with names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Extent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A number that is fixed, or grows with a size: ``times * ceil(size / per)``.

    Attributes:
        times: The number, or the factor.
        of: Name of the size; empty if the number is fixed.
        per: How much of the size one of ``times`` is for.
    """

    times: Count
    of: str = ""
    per: Positive = 1

    def value(self, sizes: Mapping[str, int]) -> int:
        """The number when the sizes are known."""
        return self.times * -(-sizes[self.of] // self.per) if self.of else self.times


ONE = Extent(1)
