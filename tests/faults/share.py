"""A folder that can be full, read-only or not mounted: by real mounts where permitted, by other means elsewhere."""

import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.faults.faults import struck
from tests.manager.support import as_nobody

_SIZE = 8 * 1024 * 1024


class Mounted:
    """A small tmpfs, bound to the folder; each trouble lasts while inside."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "share"
        self._disk = folder / "disk"
        for one in (self.root, self._disk):
            one.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=755", "tmpfs", self._disk)
        _run("mount", "--bind", self._disk, self.root)

    @contextmanager
    def full(self) -> Iterator[None]:
        """ENOSPC from the first byte on."""
        ballast = self._disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                struck()
        try:
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """EROFS."""
        _run("mount", "-o", "remount,bind,ro", self.root)
        struck()
        try:
            yield
        finally:
            _run("mount", "-o", "remount,bind,rw", self.root)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Unmounted: what is left is the empty folder that it was mounted on, and what is written there meanwhile."""
        _run("umount", "--lazy", self.root)
        struck()
        try:
            yield
        finally:
            for left in sorted(self.root.rglob("*"), reverse=True):
                left.rmdir() if left.is_dir() else left.unlink()
            _run("mount", "--bind", self._disk, self.root)

    def close(self) -> None:
        for one in (self.root, self._disk):
            # Whatever still looks into it: it is off the tree at once.
            _run("umount", "--lazy", one)


class Plain:
    """The same troubles without a mount: a limit on the size of files, permissions, and an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "share"
        self.root.mkdir()
        # For whoever stands for the other user: pytest keeps its folders to itself.
        for above in folder, *folder.parents:
            if not above.stat().st_mode & 0o005:
                above.chmod(above.stat().st_mode | 0o055)

    @contextmanager
    def full(self) -> Iterator[None]:
        """EFBIG from the first byte on, for this process."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        struck()
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """EACCES."""
        self._allow(0o555)
        struck()
        with as_nobody():
            yield
        self._allow(0o755)

    @contextmanager
    def away(self) -> Iterator[None]:
        """An empty folder in its place."""
        aside = self.root.rename(self.root.with_name("aside"))
        self.root.mkdir()
        struck()
        try:
            yield
        finally:
            for left in sorted(self.root.rglob("*"), reverse=True):
                left.rmdir() if left.is_dir() else left.unlink()
            self.root.rmdir()
            aside.rename(self.root)

    def close(self) -> None:
        pass

    def _allow(self, mode: int) -> None:
        for folder, _, _ in list(os.walk(self.root)):
            Path(folder).chmod(mode)


Share = Mounted | Plain


@cache
def kinds() -> dict[str, type[Mounted] | type[Plain]]:
    """The means that this machine permits; there is always one."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            Mounted(Path(folder)).close()
        except (OSError, subprocess.CalledProcessError):
            return {"plain": Plain}
    return {"mounted": Mounted, "plain": Plain}


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
