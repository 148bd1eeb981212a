"""A planted bug: a text of the sources, and what replaces it."""

import dataclasses

# What the emulated driver says when one of its checks finds a fault.
CHECKS = {
    "barrier": "divergent barrier",
    "bounds": "out-of-bounds",
    "copy in flight": "a wait is missing",
    "deadlock": "deadlock",
    "loop": "endless loop",
    "mask": "is not in its member mask",
    "misaligned": "misaligned",
    "race": "race on",
    "shuffle": "divergent shfl.sync",
    "uninitialized": "uninitialized",
}


class DoesNotApplyError(Exception):
    """The sources have changed, so that a mutant's text is no longer there, or there more than once."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A bug, and the tests that notice it."""

    name: str
    # What kind of mistake it is.
    kind: str
    # Path from the root of the repository.
    file: str
    # The text that is replaced. In Rust it is an expression, and so is `new`.
    old: str
    new: str
    # Parts of the names of tests, of which one at least fails.
    tests: tuple[str, ...]
    # If `old` occurs more than once: a text that does not, after which its next occurrence is meant.
    after: str = ""
    # The check of the emulated driver that finds it, one of CHECKS; none if the results are wrong.
    check: str = ""

    def applied(self, text: str, new: str) -> str:
        """The file's text with `new` in the place of `old`."""
        once = self.after or self.old
        if text.count(once) != 1:
            raise DoesNotApplyError(f"{self.name}: {self.file} does not have this exactly once:\n{once}")
        start = text.find(self.old, text.index(self.after) + len(self.after) if self.after else 0)
        if start < 0:
            raise DoesNotApplyError(f"{self.name}: {self.file} does not have this after '{self.after}':\n{self.old}")
        return text[:start] + new + text[start + len(self.old) :]
