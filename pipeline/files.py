"""Files that are seen whole or not at all, also after a kill, after a power cut, and on a full disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a system says when a file cannot grow: the disk, the user's quota or the largest size of a file is reached."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a draft to write, which then takes the place of `path`; if the block fails, the draft is deleted.

    A process that is killed leaves its draft behind, under a name that nobody reads.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        draft.unlink(missing_ok=True)
