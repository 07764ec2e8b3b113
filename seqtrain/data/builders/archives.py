"""Where a corpus' files come from: a local archive or folder, else a download with a checksum.

Fails at once, with one sentence that says which file to put where. TFDS's own downloader
retries for minutes without network, so it is not used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import shutil
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator

from seqtrain.data.utterance import DataError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0


def obtain(
    corpus: str, source: str | os.PathLike | None, url: str, sha256: str, cache_dir: pathlib.Path
) -> pathlib.Path:
    """A folder or an archive that holds the corpus.

    Args:
      corpus: its name, for messages.
      source: a local archive or folder; None: the download, kept in `cache_dir/downloads`.
      url: where to download the archive.
      sha256: of the archive.
      cache_dir: where downloads are kept.

    Raises:
      DataError: there is nothing at `source`, or the archive cannot be downloaded or is damaged.
    """
    if source is not None:
        path = pathlib.Path(source)
        if not path.exists():
            raise DataError(
                f'There is no archive or folder of {corpus} at {path}; get {url} and give its path.'
            )
        if path.is_file() and file_hash(path) != sha256:
            logger.warning(
                '%s is not the published archive of %s (checksum differs).', path, corpus
            )
        return path
    path = cache_dir / 'downloads' / _file_name(corpus, url)
    if not path.is_file():
        _download(corpus, url, path)
    if file_hash(path) != sha256:
        raise DataError(f'{path} is damaged or incomplete: delete it, and {url} is fetched again.')
    return path


def fingerprint(path: pathlib.Path) -> str:
    """Names what a source holds: by content for an archive, by sizes and times for a folder."""
    if path.is_file():
        return file_hash(path)[:16]
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob('*') if p.is_file()):
        status = file.stat()
        entry = (str(file.relative_to(path)), status.st_size, status.st_mtime_ns)
        digest.update(repr(entry).encode())
    return digest.hexdigest()[:16]


def read_files(path: pathlib.Path, suffix: str) -> Iterator[tuple[pathlib.PurePosixPath, bytes]]:
    """The files with this suffix in an archive or below a folder, sorted by path.

    Raises:
      DataError: the archive is damaged, or there is no such file.
    """
    found = sorted(_read_archive(path, suffix) if path.is_file() else _read_folder(path, suffix))
    if not found:
        raise DataError(f'{path} holds no {suffix} file: is it the right archive or folder?')
    yield from found


def file_hash(path: pathlib.Path) -> str:
    """SHA-256 of a file."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _read_archive(path, suffix) -> Iterator[tuple[pathlib.PurePosixPath, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith(suffix) else None
                if file is not None:
                    yield pathlib.PurePosixPath(member.name), file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f'Archive {path} is damaged ({error}): download it again.') from None


def _read_folder(path, suffix) -> Iterator[tuple[pathlib.PurePosixPath, bytes]]:
    for file in path.rglob(f'*{suffix}'):
        yield pathlib.PurePosixPath(file.relative_to(path).as_posix()), file.read_bytes()


def _download(corpus: str, url: str, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + f'.{os.getpid()}.tmp')
    logger.info('Downloading %s from %s.', corpus, url)
    try:
        with (
            urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as remote,
            unfinished.open('wb') as file,
        ):
            shutil.copyfileobj(remote, file)
    except OSError as error:  # URLError and timeouts are OSErrors.
        unfinished.unlink(missing_ok=True)
        reason = getattr(error, 'reason', error)
        raise DataError(
            f'{corpus} cannot be downloaded ({reason}): put {url} at {path}, or give the path of a '
            'local copy as its source.'
        ) from None
    unfinished.replace(path)


def _file_name(corpus: str, url: str) -> str:
    return f'{corpus}-{url.rsplit("/", 1)[-1]}'
