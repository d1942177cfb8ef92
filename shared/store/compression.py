"""Requests and results as Redis keeps them: compressed if they are large, else as they are. The scripts never look inside.

A compressed one begins with the magic number of a zstd frame (RFC 8878), which no JSON begins with. So both forms are read,
whatever ``TOKENSPOOL_COMPRESS_ABOVE_BYTES`` was when one was written.
"""

import asyncio
from typing import Final

from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_LEVEL: Final = 3
_INLINE_BYTES: Final = 256 << 10
"""Larger ones are compressed and restored in a thread: 1 MB takes 3 ms (measured)."""
_MOST_FOLD: Final = 8
"""What shrinks further is kept as it is, so that a page of stored contents is at most so many times as large in memory. Text
shrinks to a half or a third; a text of one repeated word to a thousandth."""

_compressor: Final = ZstdCompressor(_LEVEL)
_decompressor: Final = ZstdDecompressor()


async def stored(content: bytes, above_bytes: int) -> bytes:
    """The content as Redis is to keep it. ``above_bytes``: the largest size that is not compressed; 0 compresses nothing."""
    if not above_bytes or len(content) <= above_bytes:
        return content
    if len(content) <= _INLINE_BYTES:
        frame = _compressor.compress(content)
    else:
        frame = await asyncio.to_thread(ZstdCompressor(_LEVEL).compress, content)
    return frame if len(content) / _MOST_FOLD <= len(frame) < len(content) else content


async def restored(kept: bytes) -> bytes:
    """The content of what Redis kept. Raises ValueError if it is damaged."""
    if not kept.startswith(_MAGIC):
        return kept
    try:
        if len(kept) <= _INLINE_BYTES:
            return _decompressor.decompress(kept)
        return await asyncio.to_thread(ZstdDecompressor().decompress, kept)
    except ZstdError as error:
        raise ValueError("the compressed content is damaged") from error
