"""What the report says in numbers and words: results, times and provenance, from what was found on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.experiment.distribution import frechet_distances, kernel_distances
from pipeline.experiment.features import FILE, load_features
from pipeline.experiment.report_inputs import Findings
from pipeline.experiment.report_table import Row, table_rows
from pipeline.experiment.statistics import Array, Comparison, compare
from pipeline.experiment.tables import DISTRIBUTIONS, METRICS, Metric, collect


@dataclass(frozen=True, kw_only=True)
class Results:
    """Scores arranged and summarised; metrics in the order they are offered, the LPIPS in use first."""

    metrics: dict[str, Metric]
    """By name: columns of the scores, then distances between sets of pictures if there are any."""
    methods: tuple[str, ...]
    masks: tuple[str, ...]
    reference: int
    """Index of the method that differences are taken to."""
    ids: dict[str, list[str]]
    """Image ids by dataset, the last axis of its cubes."""
    cubes: dict[str, dict[str, Array]]
    """Metric name, then dataset -> [masks, methods, images]."""
    found: dict[str, Comparison]
    """By metric."""
    rows: dict[str, list[Row]]
    """Metric name -> lines of its table."""

    @property
    def main(self) -> Metric:
        """The LPIPS in use."""
        return next(iter(self.metrics.values()))

    def score(self, dataset: str, mask: str, method: int, image_id: str) -> float:
        """The main metric of one image, averaged over its samples."""
        cube = self.cubes[self.main.name][dataset]
        return float(cube[self.masks.index(mask), method, self.ids[dataset].index(image_id)])


def arrange(findings: Findings, options: Mapping[str, Any]) -> Results:
    """Collect and summarise every metric.

    Args:
        findings: what is on disk.
        options: `bootstrap`, the number of resamples, and `reference`, the method differences are taken to; without
            one, the first method of the sweep.

    Raises:
        ConfigError: the reference is not a method of the sweep.
        InputError: scores are missing, doubled or of different images.
    """
    methods, masks = findings.methods, findings.masks
    name = options.get("reference") or methods[0]
    if name not in methods:
        raise ConfigError(
            f"report.reference is {name!r}, which is not a method of the sweep; expected one of {', '.join(methods)}."
        )
    reference = methods.index(name)
    scores = {
        dataset: collect(rows, findings.metrics, dataset=dataset, masks=masks, methods=methods)
        for dataset, rows in findings.scores.items()
    }
    cubes = {name: {dataset: values[name] for dataset, (_, values) in scores.items()} for name in findings.metrics}
    metrics = {name: METRICS[name] for name in findings.metrics}
    found = {
        name: compare(cubes[name], masks, higher=of.higher, digits=of.digits, resamples=options["bootstrap"])
        for name, of in metrics.items()
    }
    rows = {name: table_rows(of, reference) for name, of in found.items()}
    for metric, of in _distributions(findings, options["bootstrap"]):
        metrics[metric.name], found[metric.name] = metric, of
        rows[metric.name] = table_rows(of, reference, averages=False)
    return Results(
        metrics=metrics,
        methods=methods,
        masks=masks,
        reference=reference,
        ids={dataset: images for dataset, (images, _) in scores.items()},
        cubes=cubes,
        found=found,
        rows=rows,
    )


def _distributions(findings: Findings, resamples: int) -> list[tuple[Metric, Comparison]]:
    """Distances between sets of pictures; none if the scores were made without features."""
    folders = {dataset: findings.root / "scores" / dataset for dataset in findings.datasets}
    if not any((folder / FILE).is_file() for folder in folders.values()):
        return []
    features = {dataset: load_features(folder, findings.methods) for dataset, folder in folders.items()}
    kernel, frechet = DISTRIBUTIONS[findings.lpips["column"]]
    return [
        (kernel, kernel_distances(features, digits=kernel.digits, resamples=resamples)),
        (frechet, frechet_distances(features, digits=frechet.digits)),
    ]


def provenance(findings: Findings) -> list[tuple[str, str]]:
    """Say on what machine, from which commit and with which versions the records were made."""
    records = [training.record for found in findings.trainings.values() for training in found.values()]
    measured = [record["measured"] for record in [*records, *findings.cells.values()]]
    facts = [
        ("commit", tally(entry["git_commit"] for entry in measured)),
        ("execution", tally(entry["execution"] for entry in measured)),
        ("device", tally(entry["device"] for entry in measured)),
    ]
    for group in ("hardware", "versions"):
        for key in dict.fromkeys(key for entry in measured for key in entry[group]):
            values = [entry[group].get(key) for entry in measured]
            facts.append((key.replace("_", " "), tally("none" if value is None else value for value in values)))
    return facts


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record by their path in it, apart from its schema and what was measured."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping) and key != "measured":
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "schema":
            found[prefix + key] = value
    return found


def times(findings: Findings) -> dict[str, dict[str, float]]:
    """Wall time in seconds by stage, then dataset; for inpainting, of the sampling of all images."""
    found: dict[str, dict[str, float]] = {}
    for trainings in findings.trainings.values():
        for dataset, training in trainings.items():
            found.setdefault(training.record["stage"], {})[dataset] = float(training.record["measured"]["seconds"])
    for name, record in findings.stages.items():
        if "seconds" in record.get("measured", {}):
            stage, _, dataset = str(Path(name).parent).partition("/")
            found.setdefault(stage, {})[dataset] = float(record["measured"]["seconds"])
    for (dataset, _, method), cell in findings.cells.items():
        seconds = cell["measured"]["seconds_per_image"] * len(cell["image_ids"]) * cell["samples"]
        line = found.setdefault(f"inpaint, {method}", {})
        line[dataset] = line.get(dataset, 0.0) + seconds
    return found


def tally(values: Iterable[object]) -> str:
    """Name the distinct values, with their counts if there are several, the most frequent first."""
    counts = Counter(map(str, values)).most_common()
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{value} ({count}×)" for value, count in counts)


def listing(words: Sequence[str]) -> str:
    """Join words as one says them: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def duration(seconds: float) -> str:
    """Print a length of time, never broken between lines: 35 ms, 3.21 s, 4 min 10 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 0.0995:
        text = f"{1000 * seconds:.2g} ms"
    elif seconds < 99.95:
        text = f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    else:
        text = f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
    return text.replace(" ", "\N{NO-BREAK SPACE}")
