"""What the splits of a dataset have shown so far, against which the next picture is held."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from pipeline.data.images import Sample, Split
from pipeline.errors import InputError

LEAKS_SHOWN = 10


@dataclass(kw_only=True)
class Census:
    """What the splits have shown so far, to compare the next picture with; test and val must come before train."""

    count: int = 0
    classes: dict[str, int] | None = None
    held_out: dict[bytes, tuple[Split, str]] = field(default_factory=dict)
    """Hash of the pixels of every picture of test and val -> where it is."""
    leaks: list[str] = field(default_factory=list)

    def take(self, split: Split, sample: Sample) -> None:
        """Look at the next picture of a split.

        Raises:
            InputError: Its attributes are others than those of the pictures before it.
        """
        pixels = hashlib.blake2b(sample.image.tobytes(), digest_size=16).digest()
        twin = self.held_out.get(pixels, (split, ""))
        if twin[0] != split:
            self.leaks.append(f"{twin[0]} {twin[1]} = {split} {sample.key}")
        if split != "train":
            self.held_out.setdefault(pixels, (split, sample.key))
        if self.count == 0 and sample.attributes is not None:
            self.classes = dict.fromkeys(sample.attributes, 1)
        self._take_attributes(sample)
        self.count += 1

    def _take_attributes(self, sample: Sample) -> None:
        expected, found = sorted(self.classes or {}), sorted(sample.attributes or {})
        if expected != found:
            raise InputError(
                f"{sample.key}: has the attributes {found}, expected {expected} as in the pictures before it; give all "
                "pictures of the dataset the same attributes, or none"
            )
        if self.classes is not None and sample.attributes is not None:
            self.classes = {name: max(n, sample.attributes[name] + 1) for name, n in self.classes.items()}

    def refuse_leaks(self) -> None:
        """Refuse pictures that are in two splits.

        Raises:
            InputError: There are some; the message names the first.
        """
        if self.leaks:
            more = len(self.leaks) - LEAKS_SHOWN
            raise InputError(
                f"two splits share pictures, so held-out results would flatter: {'; '.join(self.leaks[:LEAKS_SHOWN])}"
                f"{f'; and {more} more' if more > 0 else ''}; remove one of each pair from the source"
            )
