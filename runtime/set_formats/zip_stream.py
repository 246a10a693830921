"""Zip archives without compression, written front to back, whose bytes depend on their members only.

`zipfile` can stream too, but neither continue an archive that an interruption cut short nor promise its bytes across
Python versions. Checksums follow the data (data descriptors), as `zipfile` writes them for a pipe.
"""

import struct
from dataclasses import dataclass, field

_LIMIT = 2**31 - 1
_FULL = 0xFFFFFFFF
_CHECKSUM_FOLLOWS = 0x08
_TIME, _DATE = 0, 33  # 1980-01-01 00:00, the earliest that a zip archive can name


@dataclass
class ZipIndex:
    """Collects the members of an archive while the caller writes what the methods return, in order."""

    _members: list[tuple[bytes, int, int, int]] = field(default_factory=list)

    @staticmethod
    def header(name: str, size: int) -> bytes:
        """Return what stands before a member's data; `size` in bytes is known, its checksum not yet."""
        large = size > _LIMIT
        extra = struct.pack("<HHQQ", 1, 16, 0, 0) if large else b""
        sizes = (_FULL, _FULL) if large else (0, 0)
        encoded = name.encode("ascii")
        fixed = struct.pack(
            "<4s5H3L2H",
            b"PK\x03\x04",
            45 if large else 20,
            _CHECKSUM_FOLLOWS,
            0,
            _TIME,
            _DATE,
            0,
            *sizes,
            len(encoded),
            len(extra),
        )
        return fixed + encoded + extra

    def descriptor(self, name: str, size: int, crc: int, offset: int) -> bytes:
        """Note a finished member, whose header stands at `offset`, and return what stands after its data."""
        self._members.append((name.encode("ascii"), size, crc, offset))
        return struct.pack("<4sLQQ" if size > _LIMIT else "<4s3L", b"PK\x07\x08", crc, size, size)

    def directory(self, offset: int) -> bytes:
        """Return the end of the archive, which stands at `offset`."""
        entries = b""
        for name, size, crc, start in self._members:
            wide = [value for value in (size, size, start) if value > _LIMIT]
            extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
            version = 45 if wide else 20
            size_32, start_32 = (_FULL if value > _LIMIT else value for value in (size, start))
            entries += struct.pack(
                "<4s6H3L5H2L",
                b"PK\x01\x02",
                version,
                version,
                _CHECKSUM_FOLLOWS,
                0,
                _TIME,
                _DATE,
                crc,
                size_32,
                size_32,
                len(name),
                len(extra),
                0,
                0,
                0,
                0,
                start_32,
            )
            entries += name + extra
        count, end = len(self._members), b""
        if offset > _LIMIT:
            end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(entries), offset)
            end += struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + len(entries), 1)
        offset_32 = _FULL if offset > _LIMIT else offset
        return entries + end + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entries), offset_32, 0)
