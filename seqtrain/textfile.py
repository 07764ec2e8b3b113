"""Lines of text files, the same way for every format. Imports nothing of ours."""

from __future__ import annotations

import codecs
import os
import pathlib

_GZIP = b'\x1f\x8b'


def read_lines(path: str | os.PathLike, error: type[ValueError] = ValueError) -> list[str]:
    """Lines of a UTF-8 file without their ends; a byte-order mark is left out.

    As in Kaldi a line ends at a line feed alone: U+2028, form feeds and the like, at which
    `str.splitlines` would cut, are white space within a line. So is the return before a line feed.

    Args:
      path: the file.
      error: what to raise.

    Raises:
      error: names file and line of what is not UTF-8, or a file that is packed.
    """
    content = pathlib.Path(path).read_bytes()
    if content.startswith(_GZIP):
        raise error(f'{path}: not text; unpack it first (gunzip).')
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        lines = content.decode('utf-8').split('\n')
    except UnicodeDecodeError as bad:
        at = content.count(b'\n', 0, bad.start) + 1
        raise error(f'{path}:{at}: not UTF-8; convert it (iconv -t UTF-8).') from None
    return lines if lines[-1] else lines[:-1]
