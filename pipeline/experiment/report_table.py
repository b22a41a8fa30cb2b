"""Lines of the report's tables: every setting, averages of every dataset and mask, and of all, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.experiment.statistics import Array, Comparison, Counts, average, difference, places
from pipeline.experiment.tables import Metric

AVERAGE = "average"  # the mask of a line that averages masks
ALL = "all datasets"  # the dataset of a line that averages datasets


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: a setting (dataset, mask) or an average; every array is [methods]."""

    dataset: str
    mask: str
    mean: Array
    low: Array
    high: Array
    difference: Array
    """Mean minus the reference method's mean; 0 for the reference itself."""
    difference_low: Array
    difference_high: Array

    @property
    def is_average(self) -> bool:
        """Whether the line averages settings instead of being one."""
        return self.mask == AVERAGE or self.dataset == ALL


def table_rows(found: Comparison, reference: int, *, averages: bool = True) -> list[Row]:
    """Each dataset's masks, with their average if asked for, then the same of all datasets if there are several."""
    rows = []
    for dataset in (*found.datasets, *([ALL] if len(found.datasets) > 1 else [])):
        of = found if dataset == ALL else found.only(dataset=dataset)
        rows += [_row(of.only(mask=mask), dataset, mask, reference) for mask in found.masks]
        if averages:
            rows.append(_row(of, dataset, AVERAGE, reference))
    return rows


def _row(found: Comparison, dataset: str, mask: str, reference: int) -> Row:
    of, to = average(found), difference(found, reference)
    return Row(
        dataset=dataset,
        mask=mask,
        mean=of.mean,
        low=of.low,
        high=of.high,
        difference=to.mean,
        difference_low=to.low,
        difference_high=to.high,
    )


def row_places(row: Row, metric: Metric) -> Counts:
    """Place of each method in a line, [methods]: 1 for the best and all that print equal, 2 for the next, ..."""
    return places(metric.sign * row.mean, metric.digits)


def standing(row: Row, metric: Metric) -> list[str]:
    """Say for each method whether its paired interval is on the better or worse side of the reference, or open."""
    low, high = row.difference_low, row.difference_high
    if metric.higher:
        low, high = -high, -low
    return ["better" if ends[1] < 0 else "worse" if ends[0] > 0 else "open" for ends in zip(low, high, strict=True)]
