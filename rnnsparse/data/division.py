"""Where a text that has no splits of its own is cut into train, validation and test, in this order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from rnnsparse.errors import UserError

MILLION = 1_000_000


@dataclass(frozen=True)
class Division:
    """Three shares that add up to 1, or three numbers of bytes; what is behind these is left out.

    Attributes:
        exact: what the text is called if it must have just so many bytes.
    """

    sizes: tuple[float, float, float] = (0.9, 0.05, 0.05)
    exact: str = ""

    @property
    def is_shares(self) -> bool:
        return self.sizes[0] < 1

    def cuts(self, length: int, label: str) -> list[int]:
        """Return where the three parts of a text of so many bytes begin, and where the last one ends.

        Raises:
            UserError: the text has fewer bytes than that, or must have exactly as many; begins with `label`.
        """
        if self.is_shares:
            return [length * round(share * MILLION) // MILLION for share in accumulate(self.sizes, initial=0.0)]
        cuts = [int(size) for size in accumulate(self.sizes, initial=0)]
        if self.exact and cuts[-1] != length:
            raise UserError(
                f"{label}: has {length:,} bytes, and {self.exact} has {cuts[-1]:,}; fetch it again, or set "
                "data.source=text for another text"
            )
        if cuts[-1] > length:
            raise UserError(
                f"data.split={self.told()}: these are {cuts[-1]:,} bytes, and {label} has {length:,}; lower them, or "
                "give shares that add up to 1"
            )
        return cuts

    def told(self) -> str:
        if self.is_shares:
            return "/".join(f"{100 * share:g}" for share in self.sizes)
        return f"[{', '.join(str(int(size)) for size in self.sizes)}]"


NINETY_FIVE_FIVE = Division()


def conventional(name: str) -> Division:
    """Return that of enwik8 and text8: the first 90 million bytes, the next 5, the last 5."""
    return Division((90 * MILLION, 5 * MILLION, 5 * MILLION), exact=name)
