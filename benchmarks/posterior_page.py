"""Tables, findings and plot of docs/posterior.md, from the record of `benchmarks.posterior`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks import measure

PAGE = measure.DOCS / "posterior.md"
IMAGE = measure.DOCS / "images" / "posterior.png"
TITLES = {"left": "left half known", "expand1": "centre 4x4 known"}
HEADER = ["", "SW2", "x floor", "mean error", "sd ratio", "modes off by", "known error", "forwards", "backwards"]
STEERED = "steered"
"""The method of rows that are steered; their preset is the name of the base."""
NEAR, NARROW = 1.25, 0.7
"""Times the floor that count as reaching it; sd ratio that counts as too narrow."""


def ratio(scene: dict[str, Any], row: dict[str, Any]) -> float:
    """Sliced W2 of a row over the floor's mean."""
    return float(row["sliced_w2"] / scene["floor"]["sliced_w2"]["mean"])


def _with_interval(row: dict[str, Any], name: str, digits: int) -> str:
    low, high = row["intervals"][name]
    return f"{row[name]:.{digits}f} ({max(low, 0.0):.{digits}f}–{high:.{digits}f})"


def _line(name: str, scene: dict[str, Any], row: dict[str, Any]) -> list[str]:
    evaluations = [f"{row[key]:.0f}" if key in row else "" for key in ("forwards", "backwards")]
    return [
        name,
        _with_interval(row, "sliced_w2", 3),
        f"{ratio(scene, row):.2f}",
        _with_interval(row, "mean_error", 3),
        _with_interval(row, "sd_ratio", 2),
        _with_interval(row, "mode_error", 2),
        f"{row['known_error']:.3f}",
        *evaluations,
    ]


def scene_table(scene: dict[str, Any], steps: int) -> str:
    """The table of one world and mask."""
    floor = scene["floor"]
    exact = ["*exact draws*"]
    exact += [f"{floor['sliced_w2']['mean']:.3f} ± {floor['sliced_w2']['sd']:.3f}", "1.00"]
    exact += [
        f"{floor[key]['mean']:.{digits}f} ± {floor[key]['sd']:.{digits}f}"
        for key, digits in (("mean_error", 3), ("sd_ratio", 2), ("mode_error", 2))
    ]
    rows = [[*exact, "0.000", "", ""]]
    rows.append(_line(f"*exact conditional denoiser, {steps} steps*", scene, scene["exact_denoiser"]))
    rows += [_line(f"{row['method']} {row['preset']}", scene, row) for row in scene["rows"]]
    shares = ", ".join(f"{share:.2f}" for share in scene["exact_modes"])
    title = f"### {scene['world'].capitalize()} world, {TITLES[scene['mask']]}"
    return f"{title}\n\nExact shares of the kinds of image: {shares}.\n\n{measure.table(HEADER, rows)}"


def beyond(scene: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether the whole interval of the distance lies above the floor's mean and two standard deviations."""
    floor = scene["floor"]["sliced_w2"]
    return bool(row["intervals"]["sliced_w2"][0] > floor["mean"] + 2 * floor["sd"])


def findings(record: dict[str, Any]) -> Iterator[str]:
    """What was expected of the rows that are there, and whether it was found."""
    for scene in record["scenes"]:
        place = f"{scene['world']}, {TITLES[scene['mask']]}"
        plain = {f"{row['method']} {row['preset']}": row for row in scene["rows"] if row["method"] != STEERED}
        steered = {row["preset"]: row for row in scene["rows"] if row["method"] == STEERED}
        if plain:
            yield from (f"{place}: {line}" for line in (_half if scene["mask"] == "left" else _little)(scene, plain))
        yield from (f"{place}: {line}" for line in _steered(scene, steered, plain))


def _half(scene: dict[str, Any], rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    times = {name: ratio(scene, row) for name, row in rows.items()}
    if "ddnm paper" in rows:
        found = times["ddnm paper"]
        yield f"ddnm paper within {NEAR:g} x floor: {found:.2f}, {_verdict(found <= NEAR)}"
    if "ddnm copaint_repo" in rows:
        found = rows["ddnm copaint_repo"]["sd_ratio"]
        yield f"ddnm copaint_repo too narrow, sd ratio below {NARROW:g}: {found:.2f}, {_verdict(found < NARROW)}"
    for name in ("blended paper", "blended copaint_repo"):
        if name in rows:
            yield f"{name} beyond {NEAR:g} x floor: {times[name]:.2f}, {_verdict(times[name] > NEAR)}"


def _little(scene: dict[str, Any], rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    failed = [name for name, row in rows.items() if beyond(scene, row)]
    best = min(rows, key=lambda name: ratio(scene, rows[name]))
    yield (
        f"no method reaches the floor by itself: {len(failed)} of {len(rows)} are beyond it with their whole interval, "
        f"{_verdict(len(failed) == len(rows))}; the nearest is {best}, at {ratio(scene, rows[best]):.2f} x floor"
    )


def _steered(scene: dict[str, Any], rows: dict[str, dict[str, Any]], plain: dict[str, dict[str, Any]]) -> Iterator[str]:
    for base, row in rows.items():
        found, asked = ratio(scene, row), f"with {row['forwards']:.0f} forwards"
        if base in plain:
            asked += f", by itself {ratio(scene, plain[base]):.2f} with {plain[base]['forwards']:.0f}"
        yield f"steered {base} within {NEAR:g} x floor: {found:.2f} {asked}, {_verdict(found <= NEAR)}"


def _verdict(holds: bool) -> str:
    return "confirmed" if holds else "NOT confirmed"


def text(record: dict[str, Any]) -> str:
    """The generated part of the page."""
    settings = record["settings"]
    head = (
        f"{settings['n']} completions each; floor from {settings['repeats']} sets of as many exact draws (mean ± sd); "
        f"95% intervals from {settings['resamples']} bootstrap resamples."
    )
    tables = [scene_table(scene, settings["steps"]) for scene in record["scenes"]]
    return "\n\n".join([head, *tables, "### Expectations", "\n".join(f"* {line}" for line in findings(record))])


def draw(axes: Axes, scene: dict[str, Any], steps: int) -> None:
    """One panel: distance with interval of every row, and the floor as a band of two standard deviations."""
    floor = scene["floor"]["sliced_w2"]
    rows = [(f"exact denoiser, {steps} steps", scene["exact_denoiser"])]
    rows += [(f"{row['method']} {row['preset']}", row) for row in scene["rows"]]
    axes.axvspan(floor["mean"] - 2 * floor["sd"], floor["mean"] + 2 * floor["sd"], color="tab:green", alpha=0.2)
    axes.axvline(floor["mean"], color="tab:green", linewidth=1)
    for place, (_, row) in enumerate(rows):
        low, high = row["intervals"]["sliced_w2"]
        colour = "tab:green" if place == 0 else "tab:orange" if row["method"] == STEERED else "tab:blue"
        axes.plot([max(low, 1e-3), high], [place, place], color=colour, linewidth=2)
        axes.plot(row["sliced_w2"], place, "o", color=colour, markersize=5)
    axes.set(title=f"{scene['world']} world, {TITLES[scene['mask']]}", xscale="log", ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    ends = [value for _, row in rows for value in (row["sliced_w2"], row["intervals"]["sliced_w2"][1])]
    axes.set_xlim(0.5 * floor["mean"], 1.3 * max(ends))
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if 0.5 * floor["mean"] <= tick <= 1.3 * max(ends)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", alpha=0.3)


def write(record: dict[str, Any]) -> None:
    """Write the page's tables and the plot."""
    measure.write_block("posterior", text(record), PAGE)
    scenes = record["scenes"]
    height = 1.2 + 0.28 * max(len(scene["rows"]) + 1 for scene in scenes)
    worlds = len(scenes) // 2
    figure, grid = plt.subplots(
        worlds, 2, figsize=(11, worlds * height), sharey="row", squeeze=False, layout="constrained"
    )
    for axes, scene in zip(grid.flat, scenes, strict=True):
        draw(axes, scene, record["settings"]["steps"])
    figure.supxlabel(
        "sliced Wasserstein-2 distance to the exact posterior; green: the floor, orange: steered", fontsize="medium"
    )
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGE, dpi=130)
    plt.close(figure)
