"""Decode token ids into text: some clients send ids of another model in place of texts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from worker.contract.errors import SettingsError


class TokenTable:
    """The bytes that each token stands for, by its id. Never changes, so any thread may use it."""

    def __init__(self, pieces: dict[int, bytes]) -> None:
        self._pieces = pieces

    @classmethod
    def load(cls, path: Path) -> TokenTable:
        """Read a `.tiktoken` file: on each line base64 of a token's bytes, and its id.

        Raises SettingsError if it is not such a file.
        """
        pieces = {}
        try:
            for line in path.read_bytes().splitlines():
                if line:
                    piece, rank = line.split()
                    pieces[int(rank)] = base64.b64decode(piece, validate=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no .tiktoken file"
            raise SettingsError(
                f"EMBEDQ_TOKEN_TABLE={str(path)!r} cannot be read: {reason}"
            ) from error
        if not pieces:
            raise SettingsError(f"EMBEDQ_TOKEN_TABLE={str(path)!r} holds no tokens")
        return cls(pieces)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens. Raises KeyError with an id that is not in the table.

        A character that was cut in two becomes U+FFFD.
        """
        return b"".join([self._pieces[one] for one in ids]).decode("utf-8", "replace")
