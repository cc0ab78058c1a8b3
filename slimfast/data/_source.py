"""Published files: where they may lie, whether they are whole, what to tell the user if they are not."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """A file as its authors published it.

    Args:
        name: of the file.
        size: bytes, unpacked; None where unknown.
        digest: "algorithm:hex" over the unpacked bytes.
    """

    name: str
    size: int | None
    digest: str


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Args:
        title: as people call it.
        archive: what to download.
        home: its public page.
        subfolders: where its files may lie under the user's folder.
        pickled: names, under the user's folder, that betray the pickled edition.
    """

    title: str
    archive: str
    home: str
    subfolders: tuple[str, ...] = ("",)
    pickled: tuple[str, ...] = ()

    def find(self, root: Path, *names: str) -> Path:
        """The first of ``names`` that is a file in ``root`` or one of the subfolders.

        Raises:
            FileNotFoundError: none is; says where to get it, and why a pickled edition is not read.
        """
        for folder in self.subfolders:
            for name in names:
                if (root / folder / name).is_file():
                    return root / folder / name
        where = f"get {self.archive} from {self.home}"
        if any((root / name).exists() for name in self.pickled):
            raise FileNotFoundError(
                f"{root} holds {self.title} as Python pickles, which can run code when read; {where} instead"
            )
        raise FileNotFoundError(f"{root / names[0]} not found; {where} and unpack it")

    def verify(self, path: Path, content: bytes, published: Published) -> None:
        """Compares unpacked bytes with the published size and digest.

        Raises:
            ValueError: they differ; names the file and where to get it.
        """
        if published.size is not None and len(content) != published.size:
            word = "truncated" if len(content) < published.size else "too long"
            raise self.damaged(path, f"{word}, {len(content)} bytes instead of {published.size}")
        algorithm, _, expected = published.digest.partition(":")
        found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
        if found != expected:
            raise self.damaged(path, f"wrong checksum, {algorithm} {found} instead of {expected}")

    def damaged(self, path: Path, what: str) -> ValueError:
        """The error for a file that cannot be used."""
        return ValueError(f"{path}: {what}; get {self.archive} again from {self.home}")
