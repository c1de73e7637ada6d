"""Launches of a step, for each tier of rows: kernels with their constants, grids and arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from aicc.compiler.rows import program as rows
from aicc.compiler.rows.fuse import Part, Step, uses
from aicc.compiler.rows.program import Op, Program, Value
from aicc.targets.launch_plan import ONE, Extent
from aicc.targets.triton.kernels.choose import choose
from aicc.targets.triton.kernels.decode_attention import decode_attention
from aicc.targets.triton.kernels.matmul import matmul
from aicc.targets.triton.kernels.matvec import matvec
from aicc.targets.triton.kernels.prefill_attention import prefill_attention
from aicc.targets.triton.kernels.rowwise import rowwise
from aicc.targets.triton.lowering.binaries import Binaries, Spec
from aicc.targets.triton.lowering.chain import Chain, Context, Place, Pointers
from aicc.targets.triton.lowering.groups import Group, groups, piece_width
from aicc.targets.triton.lowering.order import head_orders
from aicc.targets.triton.lowering.pack import Form, Packed, Packer
from aicc.targets.triton.lowering.slots import Slots, stored_type
from aicc.targets.triton.plan import (
    BATCH,
    CHOSEN,
    FIELDS,
    LOGITS,
    PAGES,
    TILES,
    VERSION,
    Argument,
    Buffer,
    Launch,
    Plan,
    Tier,
)

TIERS = (1, 16, 64)  # rows of steps whose queries are taken one by one; more is a prompt
MAX_TOKENS = 2048
PAGE = 32  # tokens
TILE = 64  # queries
_INT32, _FLOAT32 = 4, 4
_MOST_SPLITS = 8


@dataclass(frozen=True, slots=True)
class Tile:
    """Shapes of a product's tiles.

    Attributes:
        tokens: Rows.
        rows: Of the matrix.
        columns: At once.
        warps: Of a program.
    """

    tokens: int
    rows: int
    columns: int
    warps: int


class Planner:
    """Makes the plan of a decoder for one chip.

    Args:
        program: Simplified and fused.
        steps: What it was fused to.
        binaries: Compiles kernels.
        packer: Packs constants.
        compute: Triton's type of what products multiply, ``bf16`` or ``fp16``.
    """

    def __init__(self, program: Program, steps: list[Step], binaries: Binaries, packer: Packer, compute: str) -> None:
        self.program, self.steps, self.binaries, self.packer, self.compute = program, steps, binaries, packer, compute
        self.readers = uses(program)
        self.table = -(-program.context // PAGE)
        self.buffers = [
            Buffer("weights", Extent(0)),
            Buffer("batch", Extent(MAX_TOKENS * FIELDS * _INT32)),
            Buffer("pages", Extent(TIERS[-1] * self.table * _INT32)),
            Buffer("tiles", Extent((MAX_TOKENS // TILE + TIERS[-1]) * 2 * _INT32)),
            Buffer("logits", Extent(TIERS[-1] * program.vocab * _FLOAT32)),
            Buffer("chosen", Extent(TIERS[-1] * 2 * _INT32)),
        ]
        self._caches = [
            [self._buffer(f"{what}.{layer}", Extent(heads.kv_heads * PAGE * heads.head_dim * 2, "pages"))
             for what in ("values", "keys")]
            for layer, heads in enumerate(program.layers)
        ]  # fmt: skip
        self._partial = self._buffer("partial", Extent(16))
        self._arrived = self._buffer("arrived", Extent(16))
        self._partial_bytes = self._arrived_bytes = 16
        self._orders = head_orders(program)
        self._row_buffers: dict[tuple[int, bool], list[int]] = {}
        chosen = [op.x for op in program.ops if isinstance(op, rows.Select)]
        self._kept = {value: self._buffer("states", Extent(value.width * _FLOAT32 * MAX_TOKENS)) for value in chosen}
        self._slots = self._new_slots()

    def plan(self) -> Plan:
        """The plan; what it needs is packed and compiled."""
        body, head = [], []
        for most in (*TIERS, MAX_TOKENS):
            launches = self._tier(most)
            body.append(Tier(most, tuple(launch for launch, selected in launches if not selected)))
            if most <= TIERS[-1]:
                head.append(Tier(most, tuple(launch for launch, selected in launches if selected)))
        choice = (self._choice(),)
        self.buffers[0] = Buffer("weights", Extent(self.packer.end))
        self.buffers[self._partial] = Buffer("partial", Extent(self._partial_bytes))
        self.buffers[self._arrived] = Buffer("arrived", Extent(self._arrived_bytes))
        return Plan(
            VERSION, self.packer.end, self.program.vocab, PAGE, self.table, TIERS[-1], TILE, TIERS[-1],
            tuple(self.buffers), tuple(self.binaries.kernels), tuple(body), tuple(head), choice,
        )  # fmt: skip

    def _choice(self) -> Launch:
        arguments = {"logits": Place(Argument(LOGITS), "*fp32"), "chosen": Place(Argument(CHOSEN), "*i32")}
        constants = {"VOCAB": self.program.vocab, "BLOCK": min(4096, _power(self.program.vocab))}
        return self._make("the likeliest tokens", choose, (Extent(1, "wanted"), ONE, ONE), arguments, constants, 8)

    def _buffer(self, name: str, size: Extent) -> int:
        self.buffers.append(Buffer(name, size))
        return len(self.buffers) - 1

    def _new_slots(self) -> Slots:
        """Slots that take the buffers of the tiers before."""
        free = {key: list(reversed(numbers)) for key, numbers in self._row_buffers.items()}
        kept = {value: Place(Argument(buffer), "*fp32") for value, buffer in self._kept.items()}
        type_of = partial(stored_type, readers=self.readers, compute=self.compute)
        return Slots(type_of, self._new_rows, free, kept, frozenset(kept))

    def _new_rows(self, size: int, selected: bool) -> int:
        buffer = self._buffer(f"rows.{len(self.buffers)}", Extent(size * (TIERS[-1] if selected else MAX_TOKENS)))
        self._row_buffers.setdefault((size, selected), []).append(buffer)
        return buffer

    def _tier(self, most: int) -> list[tuple[Launch, bool]]:
        """Launches, and whether they are of the head.

        The row that a head of one row takes is read from the body's values, so both come from one list.
        """
        found = groups(self.steps, self.readers, most)
        made_in = {value: number for number, group in enumerate(found) for value in group.made()}
        stored = {value for number, group in enumerate(found) for value in group.read() if made_in[value] != number}
        self._slots = self._new_slots()
        launches = []
        for number, group in enumerate(found):
            self._slots.enter(group, stored)
            launches.append((self._launch(group, most, stored), group.selected))
            self._slots.leave(found[number + 1 :])
        return launches

    def _launch(self, group: Group, most: int, stored: set[Value]) -> Launch:
        context = Context(
            self.packer, self._orders, lambda v: self._slots.places[v],
            lambda layer, keys: Argument(self._caches[layer][keys]), PAGE, self.table,
        )  # fmt: skip
        if group.kind == "attention":
            return self._attention(group, most)
        if group.kind == "matvec":
            return self._matvec(group, context, stored)
        if group.kind == "matmul":
            return self._matmul(group, context, stored, most)
        return self._rowwise(group, context, stored)

    def _make(
        self,
        node: str,
        function: Any,
        grid: tuple[Extent, Extent, Extent],
        arguments: dict[str, Place | Pointers | str],
        constants: dict[str, Any],
        warps: int,
        stages: int = 1,
    ) -> Launch:
        """A launch; arguments that are texts are sizes."""
        flat: list[Argument] = []
        types: dict[str, Any] = {}
        for name, argument in arguments.items():
            if isinstance(argument, str):
                types[name] = "i32"
                flat.append(Argument(size=argument))
            elif isinstance(argument, Pointers):
                types[name] = tuple(place.dtype for place in argument.places)
                flat += [place.argument for place in argument.places]
            else:
                types[name] = argument.dtype
                flat.append(argument.argument)
        types |= dict.fromkeys(constants, "constexpr")
        spec = Spec(function, tuple(types.items()), tuple(constants.items()), warps, stages)
        return Launch(node, self.binaries.number(spec), grid, tuple(flat))

    def _rowwise(self, group: Group, context: Context, stored: set[Value]) -> Launch:
        pointers = Pointers()
        whole = group.kind == "rows"
        width = _width_of(group.parts[0]) if whole else piece_width(group)
        segments, begin = [], 0
        for part in group.parts:
            pieces = 1 if whole else _width_of(part) // width
            segments.append((begin, begin + pieces, Chain(context, pointers).write(part.ops, stored)))
            begin += pieces
        block = max(16, _power(width))
        grid = Extent(1, "wanted" if group.selected else "tokens"), Extent(begin), ONE
        constants = {"WIDTH": width, "SEGMENTS": tuple(segments), "BLOCK": block}
        arguments = {"pointers": pointers, "batch": _batch(), "pages": _pages()}
        return self._make(group.ops()[0].node, rowwise, grid, arguments, constants, max(1, min(16, block // 512)))

    def _products(
        self, group: Group, context: Context, pointers: Pointers, stored: set[Value]
    ) -> tuple[Packed, int, tuple[tuple[int, int, Any], ...]]:
        """The weights of a launch, how many rows they have and what is done to which."""
        count = len(group.parts[0].linears)
        linears = [part.linears[i] for i in range(count) for part in group.parts]
        packed = context.packer.matrices([op.matrix for op in linears], [self._orders.get(op.output) for op in linears])
        segments, begin = [], 0
        for part in group.parts:
            chain = Chain(context, pointers)
            chain.start(op.output for op in part.linears)
            segments.append((begin, begin + part.width, chain.write(part.ops, stored)))
            begin += part.width
        return packed, begin, tuple(segments)

    def _matvec(self, group: Group, context: Context, stored: set[Value]) -> Launch:
        pointers, norm = Pointers(), group.norm
        packed, n, segments = self._products(group, context, pointers, stored)
        form, first = packed.form, group.parts[0].linears[0]
        k, count = first.matrix.columns, len(group.parts[0].linears)
        value = group.select.x if group.select else norm.x if norm else first.x
        x = self._slots.places[value]
        order = self._orders.get(value)
        gain = Place(self.packer.vector(norm.weight, order), "*fp32") if norm else x
        chip, chunks = self.binaries.chip, min(128, _power(-(-k // form.columns_of_load)))
        block = next((b for b in (8, 4) if n >= 2 * b * chip.processors), 2)
        warps = max(1, min(4, block * chunks // chip.warp))  # no more than there are loads of 16 bytes
        constants = {
            "K": k, "N": n, "COUNT": count, "FORM": form.constants, "NORM": norm is not None,
            "EPSILON": norm.epsilon if norm else 0.0, "WANTED": group.select is not None, "SEGMENTS": segments,
            "BLOCK_N": block, "CHUNKS": chunks, "ACROSS": form.elements_of_load,
        }  # fmt: skip
        arguments = _common(pointers) | {"x": x, "gain": gain} | _weights(packed)
        grid = Extent(-(-n // block)), ONE, ONE
        return self._make(first.node, matvec, grid, arguments, constants, warps)

    def _matmul(self, group: Group, context: Context, stored: set[Value], most: int) -> Launch:
        pointers = Pointers()
        packed, n, segments = self._products(group, context, pointers, stored)
        form, first = packed.form, group.parts[0].linears[0]
        k, count, size = first.matrix.columns, len(group.parts[0].linears), "wanted" if group.selected else "tokens"
        tile = self._tile(form, count, most)
        tiles = -(-n // tile.rows)
        splits = 1 if most > TIERS[-1] else self._splits(tiles, k, tile.columns)
        if splits > 1:
            self._partial_bytes = max(self._partial_bytes, splits * count * n * most * _FLOAT32)
            self._arrived_bytes = max(self._arrived_bytes, tiles * -(-most // tile.tokens) * _INT32)
        constants = {
            "K": k, "N": n, "COUNT": count, "FORM": form.constants, "SEGMENTS": segments, "SPLITS": splits,
            "BLOCK_M": tile.tokens, "BLOCK_N": tile.rows, "BLOCK_K": tile.columns, "BF16": self.compute == "bf16",
        }  # fmt: skip
        arguments = _common(pointers) | {"x": self._slots.places[first.x]} | _weights(packed)
        arguments |= self._scratch() | {"tokens": size}
        grid = Extent(tiles), Extent(1, size, tile.tokens), Extent(splits)
        return self._make(first.node, matmul, grid, arguments, constants, tile.warps, 4)

    def _tile(self, form: Form, count: int, most: int) -> Tile:
        """Tiles of products: as large as registers and shared memory allow, no larger than there are rows."""
        wide = self.binaries.chip.wide
        columns = 64 if wide else 32
        if most > TIERS[-1]:
            return Tile(128, 128 // count, columns, 8)
        return Tile(max(16, most), 64 if wide else 64 // count, 2 * columns, 4)

    def _splits(self, tiles: int, k: int, columns: int) -> int:
        """Programs that share a tile, so that all processors have two."""
        wanted = 2 * self.binaries.chip.processors // tiles
        return max(1, min(_MOST_SPLITS, wanted, k // (2 * columns)))

    def _scratch(self) -> dict[str, Place]:
        return {"partial": Place(Argument(self._partial), "*fp32"), "arrived": Place(Argument(self._arrived), "*i32")}

    def _attention(self, group: Group, most: int) -> Launch:
        op = group.parts[0].ops[0]
        heads: rows.Heads = op.heads
        keys, values = (Place(Argument(self._caches[op.layer][i]), "*fp16") for i in (True, False))
        queries, result = self._slots.places[op.x], self._slots.places[op.output]
        arguments = {"queries": queries, "keys": keys, "values": values, "batch": _batch(), "pages": _pages()}
        constants = {
            "HEADS": heads.query_heads, "KV_HEADS": heads.kv_heads, "HEAD": heads.head_dim, "SCALE": heads.scale,
            "SOFT_CAP": heads.soft_cap, "WINDOW": heads.window, "PAGE": PAGE, "TABLE": self.table,
        }  # fmt: skip
        wide = _power(heads.head_dim)
        if most > TIERS[-1]:
            constants |= {"BLOCK_M": TILE, "BLOCK_D": max(16, wide), "BLOCK_N": 64 if wide <= 128 else 32}
            arguments |= {"tiles": Place(Argument(TILES), "*i32"), "result": result}
            grid = Extent(1, "tiles"), Extent(heads.query_heads), ONE
            return self._make(op.node, prefill_attention, grid, arguments, constants, 4, 3)
        splits = max(1, min(16, 2 * self.binaries.chip.processors // (most * heads.kv_heads)))
        splits = min(splits, max(1, self.program.context // 128))
        block = {"BLOCK_H": max(16, _power(heads.query_heads // heads.kv_heads)), "BLOCK_D": max(16, wide)}
        size = most * heads.kv_heads
        self._partial_bytes = max(self._partial_bytes, size * splits * block["BLOCK_H"] * (block["BLOCK_D"] + 2) * 4)
        self._arrived_bytes = max(self._arrived_bytes, size * _INT32)
        constants |= {"SPLITS": splits} | block | {"BLOCK_N": 64}
        arguments |= {"result": result} | self._scratch()
        grid = Extent(1, "tokens"), Extent(heads.kv_heads), Extent(splits)
        return self._make(op.node, decode_attention, grid, arguments, constants, 4, 2)


def _batch() -> Place:
    return Place(Argument(BATCH), "*i32")


def _pages() -> Place:
    return Place(Argument(PAGES), "*i32")


def _common(pointers: Pointers) -> dict[str, Place | Pointers | str]:
    return {"pointers": pointers, "batch": _batch(), "pages": _pages()}


def _weights(packed: Packed) -> dict[str, Place]:
    form = packed.form
    streams = {"weight": packed.weight, "scales": packed.scales, "minima": packed.minima}
    kinds = {"weight": form.dtype, "scales": form.scales, "minima": form.scales if form.minima else form.dtype}
    return {name: Place(argument, f"*{kinds[name]}") for name, argument in streams.items()}


def _width_of(part: Part) -> int:
    """Columns of what a part without products works on."""
    op: Op = part.ops[0]
    return op.output.width if op.output is not None else op.inputs()[0].width


def _power(number: int) -> int:
    """The power of two that is no less."""
    return 1 << max(0, math.ceil(math.log2(number)))
