"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile

from utils.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: on the disk, in the quota, in one file


@contextlib.contextmanager
def whole(path):
    """An open binary file that becomes `path` when the block ends well: temporary file, fsync, rename, fsync
    of the folder. A kill, a full disk or an error in the block at any moment leaves what was there. Raises
    UserError where nothing can be written."""
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
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


def check_folder(folder):
    """Make `folder`, and see that a file can be written there: before the work, rather than after it. Raises
    UserError."""
    folder = pathlib.Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written into ({error.strerror})") from None


def check_file(path):
    """See that a file can be written at `path`; its folder is made. Raises UserError."""
    if pathlib.Path(path).is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    check_folder(pathlib.Path(path).parent)


def cannot_write(path, error):
    """One line about an OSError of a write, with the room that is left where that is the reason."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        reason += f", {shutil.disk_usage(pathlib.Path(path).parent).free // 2**20} MB are free"
    return f"{path}: cannot be written ({reason}); any earlier one is kept"
