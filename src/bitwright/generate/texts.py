"""Text as tokens arrive: whole characters only, and stop strings found across the borders of tokens. No torch."""

import re
from collections.abc import Iterable

from tokenizers import Tokenizer

_HALF = "\ufffd"  # what bytes become that are no character, or not yet
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


class Detokenizer:
    """Turns tokens into text piece by piece. The pieces joined are what the tokenizer makes of all tokens at once.

    A decoder looks at a token's neighbours: it drops the first space of a text, writes a space between words, joins
    bytes to characters. So each token is decoded together with those before it that gave the last piece, and what is
    new in the result is the next piece. The end of a character that is not complete is held back; where the tokenizer
    writes bytes as tokens (<0xE2>), a run of them, because one wrong byte makes the decoder reject all.
    """

    def __init__(self, tokenizer: Tokenizer, special_ids: Iterable[int] | None = None) -> None:
        """special_ids: tokens that are no text; default: those that tokenizer.json calls special."""
        self._tokenizer = tokenizer
        if special_ids is None:
            special_ids = (one for one, token in tokenizer.get_added_tokens_decoder().items() if token.special)
        self._special = frozenset(special_ids)
        decoder = tokenizer.decoder
        self._bytes_are_tokens = decoder is not None and b"ByteFallback" in decoder.__getstate__()
        self._window: list[int] = []  # the tokens of the last piece, and those after it
        self._last = 0  # of those, the ones of the last piece
        self._shown = 0  # characters of the decoded window that were given out

    def add(self, token: int) -> str:
        """The piece of text that a further token completes; "" if none."""
        name = None if token in self._special else self._tokenizer.id_to_token(token)
        if name is None:  # special, or an id without a text: heads are padded
            return ""
        self._window.append(token)
        if self._bytes_are_tokens and _BYTE.fullmatch(name):
            return ""
        text = self._decoded()
        whole = text.removesuffix(_HALF)
        piece = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if piece and whole == text:
            self._window, self._last = self._window[self._last :], len(self._window) - self._last
            self._shown = len(self._decoded())
        return piece

    def rest(self) -> str:
        """What is held back, given out as it is: no token follows."""
        piece = self._decoded()[self._shown :]
        self._shown += len(piece)
        return piece

    def _decoded(self) -> str:
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=False)
        return text


class StopStrings:
    """Ends a text at the first of some strings, and gives out nothing that may be the beginning of one.

    found: the string that ended it.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(strings)
        self._longest = max(map(len, self._strings), default=0)
        self._held = ""
        self.found: str | None = None

    def add(self, piece: str) -> str:
        """The text that is certain now. After a stop string is found: the rest before it, and then nothing."""
        if self.found is not None or not piece:
            return ""
        text = self._held + piece
        places = [(place, one) for one in self._strings if (place := text.find(one)) >= 0]
        if places:
            place, self.found = min(places)
            self._held = ""
            return text[:place]
        most = min(self._longest - 1, len(text))
        held = next((n for n in range(most, 0, -1) if any(one.startswith(text[-n:]) for one in self._strings)), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What is held back: no text follows."""
        held, self._held = self._held, ""
        return held
