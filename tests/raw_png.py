"""PNG files as no library writes them."""

import struct
import zlib


def png(size: tuple[int, int], data: bytes, bits: int = 8, colour: int = 0, **chunks: bytes):
    """Return a PNG that claims a width, height, depth and colour type, whatever its data say."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    chunks = {"IHDR": header, **chunks, "IDAT": zlib.compress(data, 1), "IEND": b""}
    for kind, body in chunks.items():
        named = kind.encode() + body
        file += struct.pack(">I", len(body)) + named + struct.pack(">I", zlib.crc32(named))
    return file
