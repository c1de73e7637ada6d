"""What a compiled kernel takes of the chip, read from its binary."""

from __future__ import annotations

import re
import struct

_ELF = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
# Attributes in a cubin's section `.nv.info`, as cuobjdump and nvdisasm print them: 4 bytes of kind and size, then
# the function's symbol and a number. EIATTR_REGCOUNT and EIATTR_FRAME_SIZE.
_REGISTERS, _FRAME, _SIZED = 0x2F, 0x11, 4


def cubin_resources(binary: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, which is where spilled registers go."""
    found = {}
    data = _section(binary, ".nv.info")
    at = 0
    while at < len(data):
        kind, attribute, size = struct.unpack_from("<BBH", data, at)
        if kind == _SIZED and size == 8 and attribute in (_REGISTERS, _FRAME):
            found[attribute] = struct.unpack_from("<I", data, at + 8)[0]
        at += 4 + (size if kind == _SIZED else 0)
    return found[_REGISTERS], found[_FRAME]


def amdgcn_resources(assembly: str) -> tuple[int, int]:
    """Vector registers of a thread, and bytes of scratch, which is where spilled registers go."""
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    scratch = re.search(r"\.private_segment_fixed_size:\s+(\d+)", assembly)
    return int(registers[1]), int(scratch[1])


def _section(binary: bytes, name: str) -> bytes:
    header = _ELF.unpack_from(binary)
    offset, size, count, names = header[6], header[11], header[12], header[13]
    sections = [_SECTION.unpack_from(binary, offset + i * size) for i in range(count)]
    strings = sections[names][4]
    for section in sections:
        begin = strings + section[0]
        if binary[begin : binary.index(b"\0", begin)].decode() == name:
            return binary[section[4] : section[4] + section[5]]
    return b""
