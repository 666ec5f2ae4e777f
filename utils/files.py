"""Files that are written whole or not at all, and folders that one process writes into."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import secrets
import shutil
import tempfile

from utils.errors import UserError

held = []  # (folder, open lock file, whether the folder was made for it) of this process
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: on the disk, in the quota, in one file


@contextlib.contextmanager
def whole(path):
    """An open binary file that becomes `path` when the block ends well: temporary file, fsync, rename, fsync
    of the folder. A kill, a full disk or an error in the block at any moment leaves what was there. Raises
    UserError where nothing can be written."""
    path = pathlib.Path(path)
    # a number of chance: processes of two containers have equal ids; a name has room for 255 bytes
    temporary = path.with_name(f"{path.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
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


def read_text(path, what="text"):
    """What a file in UTF-8 holds, without the mark that Windows puts before it. Raises UserError."""
    if os.path.exists(path) and not os.path.isfile(path):  # to open a named pipe would wait for ever
        raise UserError(f"{path}: a folder, pipe or device, not a file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not {what} in UTF-8; save it as UTF-8") from None


def read_json(path):
    """What a JSON file holds. Raises UserError: not there, not readable, no JSON, a key twice."""
    try:
        return json.loads(read_text(path, "JSON"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def _object(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found


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


def check_new(path):
    """As `check_file`; raises UserError, too, where there is a file already."""
    if os.path.lexists(path):
        raise UserError(f"{path}: is there already; name another file")
    check_file(path)


def cannot_write(path, error):
    """One line about an OSError of a write, with the room that is left where that is the reason."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        reason += f", {shutil.disk_usage(pathlib.Path(path).parent).free // 2**20} MB are free"
    return f"{path}: cannot be written ({reason}); any earlier one is kept"


def cannot_use(error):
    """One line about an OSError of any file."""
    if error.filename is None:
        return f"{error.strerror or error}; is the disk full, or a file or folder gone?"
    return f"{error.filename}: {error.strerror}"


def file_of(word):
    """The file of FILE.py:FUNCTION, with or without =WEIGHT; None of any other word."""
    file = word.rpartition(":")[0]
    return file if file.endswith(".py") else None


def sha256(path):
    """Of a file's content, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(folder):
    """Make `folder`, if it is not there, and hold it until this process ends, however it ends. Raises
    UserError that names the process that holds it, or says why nothing can be written there."""
    folder = pathlib.Path(folder)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")  # noqa: SIM115 - open for as long as it is held
    except OSError as error:
        raise UserError(f"{folder}: no folder that can be written into ({error.strerror})") from None
    try:  # a record lock: a forked worker that outlives this process does not inherit it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(folder / ".lock")):
            raise FileNotFoundError
    except FileNotFoundError:  # `release` has just removed this file
        return lock(folder)
    except BlockingIOError:
        file.seek(0)
        who = file.read().strip() or "another process"
        raise UserError(f"{folder}: {who} is writing there; stop it, or name another folder") from None
    except OSError:
        return  # a file system without locks
    with contextlib.suppress(OSError):  # a full disk: it is held all the same
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
    held.append((folder, file, made))


def release():
    """Let go of the folders that `lock` holds, and take back those that it made where nothing was written."""
    while held:
        folder, file, made = held.pop()
        with contextlib.suppress(OSError):  # somebody removed the folder
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / ".lock")):
                (folder / ".lock").unlink()
            if made:
                folder.rmdir()  # an OSError where it is not empty
        file.close()
