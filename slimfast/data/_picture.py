"""Decoding of picture files that may be broken."""

from pathlib import Path

from PIL import Image


def open_picture(path: Path) -> Image.Image:
    """The decoded picture, in the file's own mode.

    Raises:
        ValueError: not a picture, truncated, damaged, or of absurd size; names the file.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    # Which of them Pillow raises depends on the format and on where the damage is.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a whole picture ({error})") from error
