"""Tar files as data: read in place, and refused where they could lead anywhere else.

All members must be plain files or folders with relative names. Nothing is unpacked to disk, compressed tars are not
read, and what the headers claim about sizes is held to the size of the file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pipeline.data.images import BYTES_LIMIT
from pipeline.errors import InputError, UserError, reason

Members = dict[str, tarfile.TarInfo]
"""Extension -> member, of one sample."""


@contextmanager
def open_tar(path: Path) -> Iterator[tuple[tarfile.TarFile, dict[str, Members]]]:
    """Open a tar and sort its members into samples: key (all up to the first dot of the name) -> extension -> member.

    Raises:
        InputError: The file is no whole, uncompressed tar, or a member is a link, a device or there twice, or leads
            outside; also for what reading members in the block meets.
    """
    try:
        if not path.is_file():  # a pipe or a device need not end
            raise InputError(f"{path}: expected a tar file, found none; fetch or write it again")
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            yield archive, _group(archive, file, path)
    except UserError:
        raise
    except (OSError, EOFError, tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise InputError(f"{path}: not a whole, uncompressed tar ({reason(error)}); fetch or write it again") from error


def content(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    """The bytes of a member; `name` is what errors call its sample.

    Raises:
        InputError: It is over the limit.
    """
    stream = archive.extractfile(member)
    if stream is None or member.size > BYTES_LIMIT:
        raise InputError(f"{name}, {member.name}: over the limit of {BYTES_LIMIT >> 20} MiB; reduce or remove it")
    return stream.read()


def _group(archive: tarfile.TarFile, file: BinaryIO, path: Path) -> dict[str, Members]:
    """Sort the members into samples; refuse all but plain files and folders."""
    samples: dict[str, Members] = {}
    for member in _members(archive):
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
            raise InputError(f"{path}: member {member.name!r} is a link or leads outside; write the shard without it")
        base, _, extension = name.name.partition(".")
        if member.isfile() and base and extension:
            members = samples.setdefault(str(name.parent / base), {})
            if members.setdefault(extension.lower(), member) is not member:
                raise InputError(f"{path}: member {member.name!r} is there twice; write the shard with one of them")
    file.seek(archive.offset)
    tail = file.read(2**20)
    if tail[: tarfile.BLOCKSIZE] != bytes(tarfile.BLOCKSIZE) or tail.strip(b"\0"):
        raise tarfile.ReadError("truncated, or joined to another tar: no end marker after the last readable member")
    return samples


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in their order; a negative size would lead back to where one has been, for ever."""
    end = 0
    while (member := archive.next()) is not None:
        if member.size < 0 or archive.offset <= end:
            raise tarfile.ReadError(f"member {member.name!r} has a size below 0")
        end = archive.offset
        yield member
