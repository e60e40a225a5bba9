"""Tar headers: USTAR as POSIX.1-1988 wrote it down, and as much of what others write as is needed to read them.

A header is a block of 512 bytes with numbers in octal text. Names over 100 bytes are split at a slash into a prefix of
up to 155 bytes and the rest; what does not fit that way gets a PAX extended header in front, and nothing else does:
extended headers cost a kilobyte a member.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
"""Two zero blocks end an archive."""

_MAX_OCTAL_SIZE = 8**11
_MAX_SIZE_DIGITS = 18
_REGULAR = (b"0", b"\0", b"7")
_CHECKSUM = slice(148, 156)
_PAX_PATH, _PAX_SIZE = "path", "size"
_SPARSE = "sparse members are not read; make the archive without --sparse"
# mode 0644, uid, gid and times 0, device numbers 0: a header depends on name and size alone.
_AFTER_NAME = b"0000644\0" + b"0000000\0" * 2
_AFTER_SIZE = b"00000000000\0" + b" " * 8
_AFTER_TYPE = bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2


class TarError(ValueError):
    """A header that is none; the message says why and is put behind the file's name."""


@dataclass(frozen=True, slots=True)
class Header:
    """What one header block says."""

    name: str
    size: int
    """Bytes of data that follow, without padding."""
    kind: bytes

    @property
    def is_regular(self) -> bool:
        """Whether this is an ordinary file, not a folder, link or device."""
        return self.kind in _REGULAR and not self.name.endswith("/")

    @property
    def is_extension(self) -> bool:
        """Whether this speaks about the next member: a PAX header, or a long name as GNU tar writes it."""
        return self.kind in (b"x", b"L", b"K")

    @property
    def is_global(self) -> bool:
        """Whether this is a PAX header that speaks about all members behind it."""
        return self.kind == b"g"

    @property
    def data_bytes(self) -> int:
        """Bytes of data that follow, with padding. Links and folders have none, whatever their size field says."""
        return 0 if self.kind in b"123456" else padded(self.size)


def padded(size: int) -> int:
    """A size rounded up to whole blocks."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def make_header(name: str, size: int) -> bytes:
    """The header of a regular file, with a PAX header in front if the name or the size does not fit USTAR."""
    raw = name.encode()
    parts = _split_name(raw)
    extended = {} if parts else {_PAX_PATH: raw}
    if size >= _MAX_OCTAL_SIZE:
        extended[_PAX_SIZE] = str(size).encode()
    prefix, rest = parts or (b"", _cut_utf8(raw, 100))
    block = _block(prefix, rest, min(size, _MAX_OCTAL_SIZE - 1), b"0")
    return _pax_header(extended) + block if extended else block


def parse_header(block: bytes | memoryview) -> Header:
    """What a header block says. Raises TarError if its checksum or its numbers are wrong."""
    block = bytes(block)
    stated = _number(block[_CHECKSUM])
    if stated != sum(block) - sum(block[_CHECKSUM]) + 8 * 32 and stated != _signed_checksum(block):
        raise TarError("the header's checksum is wrong")
    if block[156:157] == b"S":
        raise TarError(_SPARSE)
    name = _text(block[0:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = _text(block[345:500]) + "/" + name
    return Header(name, _number(block[124:136]), block[156:157])


def parse_extension(header: Header, data: bytes) -> dict[str, str]:
    """What an extended header says of the next member: `path` and `size` if they are there, as text."""
    if header.kind == b"x":
        return _parse_pax(data[: header.size])
    return {_PAX_PATH: _text(data[: header.size])} if header.kind == b"L" else {}


def check_global(data: bytes) -> None:
    """Raises TarError if a global header says what would change how the members behind it are read."""
    if _parse_pax(data):
        raise TarError("a global header that names members or gives sizes is not read; make the archive again")


def extend(header: Header, extension: dict[str, str]) -> Header:
    """The header with what the extended headers before it say."""
    size = extension.get(_PAX_SIZE, str(header.size))
    if not (size.isascii() and size.isdigit() and len(size) <= _MAX_SIZE_DIGITS):
        raise TarError(f"an extended header gives the size {size[: _MAX_SIZE_DIGITS + 1]!r}")
    return Header(extension.get(_PAX_PATH, header.name), int(size), header.kind)


def _block(prefix: bytes, name: bytes, size: int, kind: bytes) -> bytes:
    head = name.ljust(100, b"\0") + _AFTER_NAME + b"%011o\0" % size + _AFTER_SIZE + kind + _AFTER_TYPE
    block = head + prefix.ljust(BLOCK_BYTES - len(head), b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _signed_checksum(block: bytes) -> int:
    # Some old writers summed the bytes as signed numbers.
    others = block[:148] + block[156:]
    return sum(others) + 8 * 32 - 256 * sum(byte > 127 for byte in others)


def _split_name(raw: bytes) -> tuple[bytes, bytes] | None:
    if len(raw) <= 100:
        return b"", raw
    slash = raw.find(b"/", len(raw) - 101, 156)
    return (raw[:slash], raw[slash + 1 :]) if slash > 0 else None


def _cut_utf8(raw: bytes, length: int) -> bytes:
    return raw[:length].decode("utf-8", "ignore").encode()


def _pax_header(values: dict[str, bytes]) -> bytes:
    data = b"".join(_pax_record(name.encode(), value) for name, value in values.items())
    return _block(b"", b"././@PaxHeader", len(data), b"x") + data.ljust(padded(len(data)), b"\0")


def _pax_record(name: bytes, value: bytes) -> bytes:
    # "LENGTH name=value\n", where LENGTH counts its own digits too.
    rest = b" " + name + b"=" + value + b"\n"
    length = len(rest)
    while length != len(str(length)) + len(rest):
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def _parse_pax(data: bytes) -> dict[str, str]:
    values: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at]:
        digits, space, _ = data[at : at + 20].partition(b" ")
        if not space or not digits.isdigit():
            raise TarError("an extended header is malformed")
        record = data[at + len(digits) + 1 : at + int(digits)]
        name, equals, value = record[:-1].partition(b"=")
        if not equals or int(digits) > len(data) - at or record[-1:] != b"\n":
            raise TarError("an extended header is malformed")
        if name.startswith(b"GNU.sparse"):
            raise TarError(_SPARSE)
        if name in (b"path", b"size") and value:  # an empty value takes back an earlier one
            values[name.decode()] = _decoded(value.rstrip(b"/"))
        at += int(digits)
    return values


def _number(digits: bytes) -> int:
    if digits[0] & 0x80:  # as GNU tar writes what octal cannot hold: base 256, negative where the next bit is set
        if digits[0] & 0x40:
            raise TarError("a number in the header is negative")
        number = int.from_bytes(bytes([digits[0] & 0x7F]) + digits[1:], "big")
        if number >= 10**_MAX_SIZE_DIGITS:
            raise TarError(f"a number in the header is over 10^{_MAX_SIZE_DIGITS}")
        return number
    text = digits.split(b"\0", 1)[0].strip()
    if text.strip(b"01234567"):
        raise TarError(f"a number in the header is {text!r}")
    return int(text, 8) if text else 0


def _text(raw: bytes) -> str:
    return _decoded(raw.split(b"\0", 1)[0])


def _decoded(raw: bytes) -> str:
    if b"\0" in raw:
        raise TarError(f"the member name {raw!r} has a zero byte in it")
    try:
        return raw.decode()
    except UnicodeDecodeError as err:
        raise TarError(f"the member name {raw!r} is not UTF-8; rename it") from err
