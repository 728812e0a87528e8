"""`Drafter`: guesses an answer's next tokens from what prompt and answer held before (Saxena 2023, prompt lookup
decoding). A step checks the guesses beside the token that it computes anyway; a wrong one costs its row and no more.
"""

_MATCH = 3  # tokens that must be as they were before, for what followed them to be guessed
_FIRST, _MOST = 3, 8  # tokens of a guess: at the beginning, and after guesses that were right
_LONGEST_PAUSE = 64


class Drafter:
    """Guesses for one text. It guesses more tokens while it is right, and pauses ever longer while it is wrong."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = list(ids)
        self._end: dict[tuple[int, ...], int] = {}  # where what follows these tokens begins, the last time
        self._size, self._misses, self._pause = _FIRST, 0, 0
        self._index(_MATCH)

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; none where nothing like it came before."""
        if self._pause > 0:
            return []
        begin = self._end.get(tuple(self._ids[-_MATCH:]))
        return [] if begin is None else self._ids[begin : begin + min(most, self._size)]

    def learn(self, ids: list[int], drafted: int, kept: int) -> None:
        """Tokens came. drafted: how many were guessed; kept: how many of these were right."""
        self._pause = max(self._pause - 1, 0)
        if drafted and kept == drafted:
            self._size, self._misses = min(2 * self._size, _MOST), 0
        elif drafted and kept == 0:
            self._misses += 1
            self._size, self._pause = max(self._size // 2, 1), min(2**self._misses, _LONGEST_PAUSE)
        elif drafted:
            self._size, self._misses = max(kept, 1), 0
        done = len(self._ids)
        self._ids += ids
        self._index(done)

    def _index(self, done: int) -> None:
        """Note what follows every run of tokens; the last run has nothing behind it yet."""
        for end in range(max(done, _MATCH), len(self._ids)):
            self._end[tuple(self._ids[end - _MATCH : end])] = end
