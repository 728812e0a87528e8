"""A package, so that these are the tests that `tests.` means: another one is installed beside us."""
