"""Folders behind URLs: how they are opened, named in messages, and where this machine keeps what it has read of them."""

from __future__ import annotations

import io
import os
import posixpath
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pyarrow import fs

COPY_BYTES = 1 << 22


def is_url(path: str) -> bool:
    """Whether a path is a URL of a file system."""
    return "://" in path


def join(url: str, *names: str) -> str:
    """The URL of what lies in a folder; the query, which has a file system's options, stays at its end."""
    path, mark, query = url.partition("?")
    return "/".join((path.rstrip("/"), *names)) + mark + query


def open_url(url: str, what: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URL and the path on it. what: names the URL in the `ConfigError` for one that cannot be opened."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        opened, root = fs.FileSystem.from_uri(url)
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        shown = without_secrets(url)
        raise ConfigError(
            f"{what} {shown} cannot be opened: {str(error).replace(url, shown)}",
            "Give a local folder or a URL that pyarrow opens: file:///, s3://, gs://, hdfs:// …",
        ) from None  # the original may quote the URL's password
    return opened, root


def read_file(filesystem: fs.FileSystem, path: str) -> bytes:
    """A file's bytes, whole. Raises FileNotFoundError."""
    data = io.BytesIO()
    copy_file(filesystem, path, data)
    return data.getvalue()


def copy_file(filesystem: fs.FileSystem, path: str, target: BinaryIO) -> None:
    """Copies a file's bytes, whole. Raises FileNotFoundError.

    An object store is asked for the length first and for the bytes then: what is replaced by something longer in between comes cut off.
    A small file is one request, so its bytes are of one writing.
    """
    while True:
        target.seek(0)
        target.truncate()
        with filesystem.open_input_stream(path) as source:
            while target.write(source.read(COPY_BYTES)) == COPY_BYTES:
                pass
        info = filesystem.get_file_info(path)
        if not info.is_file:
            raise FileNotFoundError(f"{path} was deleted while it was read")
        if info.size == target.tell():
            return


def make_folder_of(filesystem: fs.FileSystem, file: str) -> None:
    """Makes a file's folder. Object stores have none, and making one would cost them two requests a file."""
    if filesystem.type_name not in ("s3", "gcs", "abfs"):
        filesystem.create_dir(posixpath.dirname(file), recursive=True)


def without_secrets(path: str) -> str:
    """`path` for messages: a URL without its user, password and query."""
    if not is_url(path):
        return path
    scheme, rest = path.split("?", 1)[0].split("://", 1)
    host, slash, folder = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{folder}"


def cache_base() -> Path:
    """This user's folder for what can be made again: ``$XDG_CACHE_HOME/tutelage``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tutelage"


def cache_folder(url: str) -> Path:
    """This machine's folder for copies of what lies behind a URL, named by a hash of the URL."""
    return cache_base() / blake2b(url.encode(), digest_size=8).hexdigest()
