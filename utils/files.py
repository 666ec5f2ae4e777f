"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import pathlib
import secrets
import shutil

from utils.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: on the disk, in the quota, in one file


@contextlib.contextmanager
def whole(path):
    """An open binary file that becomes `path` when the block ends well: temporary file, fsync, rename, fsync
    of the folder. A kill, a full disk or an error in the block at any moment leaves what was there. Raises
    UserError where nothing can be written."""
    path = pathlib.Path(path)
    # a number of chance: processes of two containers have equal ids
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(cannot_write(path, error)) from None


def write_whole(path, content):
    """`content`, bytes or str (UTF-8), as a file; see `whole`."""
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def cannot_write(path, error):
    """One line about an OSError of a write, with the room that is left where that is the reason."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        reason += f", {shutil.disk_usage(pathlib.Path(path).parent).free // 2**20} MB are free"
    return f"{path}: cannot be written ({reason}); any earlier one is kept"
