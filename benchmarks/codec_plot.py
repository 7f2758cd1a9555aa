"""Loss against bits, from the CSV files of `codec_loss` or `codec_epochs`: a table in Markdown, and a plot.

    python -m benchmarks.codec_plot plant.csv logs.csv --plot docs/codec-loss.svg

Each point is a codec: bits for a value, the mean of both ways or (`codec_epochs`) of an activation, and how
much higher the held-out loss ends than with fp32 of the same data and seed; bars from the least to the most of
the seeds.
"""

import argparse
import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib import ticker

LOSSLESS_BITS = 8
"""Codecs of so many bits lose next to nothing, and are told apart on a logarithmic scale only."""
LINEAR_TO = 0.01
"""Differences below this are noise between seeds: from here on the scale is logarithmic."""

Gaps = dict[str, dict[str, list[float]]]
"""By codec and data: the differences to fp32 of the seeds."""


def read(paths: Iterable[Path]) -> tuple[Gaps, dict[str, float], str]:
    """Differences, bits by codec, and what they are bits of."""
    rows = [row for path in paths for row in csv.DictReader(path.open())]
    epochs = "way" in rows[0]
    exact, found = {}, []
    for row in rows:
        codec = row["way" if epochs else "codec"]
        if codec == "fp32":
            exact[row["data"], row["seed"]] = float(row["after"])
        else:
            found.append((codec, row))
    gaps: Gaps = defaultdict(lambda: defaultdict(list))
    bits = {}
    for codec, row in found:
        gaps[codec][row["data"]].append(float(row["after"]) - exact[row["data"], row["seed"]])
        up, down = float(row["up_bits"]), float(row["down_bits"])
        bits[codec] = up if epochs else (up + down) / 2
    return gaps, bits, "bits for an activation, all epochs" if epochs else "bits for a value, mean of both ways"


def table(gaps: Gaps, bits: Mapping[str, float], data: list[str]) -> str:
    """Markdown, most bits first."""
    lines = [f"| codec | bits | {' | '.join(data)} |", "|---|---|" + "---|" * len(data)]
    for codec in sorted(gaps, key=lambda each: -bits[each]):
        cells = [", ".join(f"{gap:+.3f}" for gap in gaps[codec].get(each, [])) for each in data]
        lines.append(f"| `{codec}` | {bits[codec]:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(gaps: Gaps, bits: Mapping[str, float], data: list[str], path: Path, of: str) -> None:
    """One line of points for each set of data."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for color, each in zip(("tab:blue", "tab:orange", "tab:green"), data, strict=False):
        points = [(bits[codec], codec, gaps[codec][each]) for codec in gaps if gaps[codec].get(each)]
        for at, _, found in points:
            axes.plot([at, at], [min(found), max(found)], color=color, alpha=0.5)
        means = [statistics.mean(found) for *_, found in points]
        axes.scatter([at for at, *_ in points], means, color=color, label=each, zorder=3)
        if each == data[0]:
            labelled = sorted(zip(points, means, strict=True), key=lambda each: each[0][0])
            for number, ((at, codec, _), mean) in enumerate(labelled):
                beside = (5, -10 if number % 2 else 4)  # neighbours would stand on each other
                axes.annotate(codec, (at, mean), xytext=beside, textcoords="offset points", fontsize=8)
    axes.axhline(0, color="gray", linewidth=0.8)
    every = [gap for found in gaps.values() for each in found.values() for gap in each]
    lowest = min([0, *every]) - max(every) / 10
    if max(bits.values()) > LOSSLESS_BITS:
        axes.set_yscale("symlog", linthresh=LINEAR_TO)
        lowest = min([0, *every]) - LINEAR_TO / 4
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set(xlabel=of, ylabel="held-out loss after training, less that with fp32")
    axes.set_ylim(lowest, 1.2 * max(every))
    axes.margins(x=0.1)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    gaps, bits, of = read(options.tables)
    data = list(dict.fromkeys(each for found in gaps.values() for each in found))
    print(table(gaps, bits, data))
    if options.plot:
        mpl.rcParams["svg.hashsalt"] = "iotsplit"
        draw(gaps, bits, data, options.plot, of)


if __name__ == "__main__":
    main()
