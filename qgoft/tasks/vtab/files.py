"""Files of VTAB-1K tasks, and the checksum of their content. Free of torch, without decoding.

Three layouts: the common archive (`<name>/train800.txt` with lines `images/train/0001.jpg 3`, next to the images), parquet files with
encoded images (`<name>/train.parquet`, whose first 800 rows are train800 and whose next 200 are val200, and `<name>/test.parquet`), and
the hub's zip of the first.
"""

import hashlib
import os
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from qgoft.config.locations import cache_directory
from qgoft.errors import QgoftError
from qgoft.pocket.data import atomic_directory

LISTS = ("train800", "val200", "train800val200", "test")
# Limits of an archive: the hub's has about half a million images and 10 GB.
MOST_FILES, MOST_BYTES = 2_000_000, 60 * 10**9


def find_directory(name: str, root: Path) -> Path:
    """Return the directory of a task below a root, in either layout.

    Raises:
        QgoftError: there is none.
    """
    for directory in (root / "vtab" / name, root / name):
        if (
            (directory / "train800val200.txt").is_file()
            or (directory / "train800.txt").is_file()
            or (directory / "train.parquet").is_file()
        ):
            return directory
    raise QgoftError(
        f"data.root={root} has no directory {name} with train800.txt or train.parquet; expected <root>/{name}/train800.txt and its images, or "
        f"<root>/vtab/{name}/train.parquet (docs/data.md gives the layouts); set task.path to a directory with another name"
    )


def split_files(directory: Path, splits: list[str]) -> dict[str, tuple[Path, ...]]:
    """Return the file that defines a split: a list, or a parquet file.

    Raises:
        QgoftError: it is missing.
    """
    found: dict[str, tuple[Path, ...]] = {}
    is_listed = any((directory / f"{name}.txt").is_file() for name in LISTS)
    for split in splits:
        path = directory / (f"{split}.txt" if is_listed else "test.parquet" if split == "test" else "train.parquet")
        if not path.is_file():
            raise QgoftError(f"{directory} has no {path.name}, which split {split} needs; complete the data or set data.root or task.path")
        found[split] = (path,)
    return found


def read_list(path: Path) -> list[tuple[Path, int]]:
    """Return images and labels of a list file.

    Raises:
        QgoftError: a line is not `path label`, the path leaves the directory, or the image is missing.
    """
    root, found = path.parent.resolve(), []
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise QgoftError(f"{path.name} of {path.parent.name} is not UTF-8 text ({error}); correct the list") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        where = f"{path.name}, line {number}"
        if not name or not re.fullmatch("[0-9]{1,9}", label):
            raise QgoftError(
                f"{where} of {path.parent.name} is {line!r}; expected a path, a space and the number of a class; correct the list"
            )
        image = root / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise QgoftError(f"{where} of {path.parent.name} lists {name}, outside the directory; expected images below it")
        if not _is_file(image):
            raise QgoftError(f"{where} of {path.parent.name} lists {name}, which does not exist; complete the data")
        found.append((image, int(label)))
    if not found:
        raise QgoftError(f"{path.name} of {path.parent.name} lists no image; complete the data")
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # an invalid file name
        return False


def list_checksum(path: Path) -> str:
    """Return the checksum of a list and of the bytes of all its images.

    It is cached while names, inodes, sizes and both times are unchanged; the time of the last status change cannot be set back.
    """
    listed = read_list(path)
    state = hashlib.sha256()
    for image, label in listed:
        status = image.stat()
        state.update(f"{image} {label} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
    memo = cache_directory() / "checksums" / state.hexdigest()
    if memo.is_file():
        return memo.read_text()
    content = hashlib.sha256()
    for image, label in listed:
        content.update(hashlib.sha256(image.read_bytes()).digest() + str(label).encode())
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        part = memo.with_name(f"{memo.name}.{os.getpid()}")
        part.write_text(content.hexdigest())
        part.rename(memo)
    except OSError:
        pass  # it is recomputed next time
    return content.hexdigest()


def unpack(archive: Path, revision: str) -> Path:
    """Unpack the hub's zip once into the user's cache, and return the directory of its tasks.

    Raises:
        QgoftError: it cannot be unpacked, or holds unexpected files.
    """
    directory = cache_directory() / f"vtab-{revision}"
    if not directory.is_dir():
        try:
            with atomic_directory(directory) as part:
                _unpack(archive, part)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError if it is encrypted
            if not directory.is_dir():  # another process may have been first
                raise QgoftError(f"{archive.name} cannot be unpacked to {directory} ({error}); free space, or fetch it again") from error
    lists = sorted(directory.glob("**/train800val200.txt"))
    if not lists:
        raise QgoftError(f"{archive.name} has no train800val200.txt, so it is not VTAB-1K; set data.root to a directory instead")
    return lists[0].parents[1]


def _unpack(archive: Path, directory: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        if len(members) > MOST_FILES or sum(member.file_size for member in members) > MOST_BYTES:
            raise QgoftError(
                f"{archive.name} would unpack to more than {MOST_FILES:,} files or {MOST_BYTES / 1e9:.0f} GB; it is not VTAB-1K"
            )
        for member in members:
            name = PurePosixPath(member.filename)
            is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
            if name.is_absolute() or ".." in name.parts or "\\" in member.filename or is_link:
                raise QgoftError(f"{archive.name} contains {member.filename!r}, which points outside its directory; do not use it")
        # The sizes above are claims of the archive; reading beyond them raises BadZipFile.
        packed.extractall(directory, members)
