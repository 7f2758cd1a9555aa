"""The page of a comparison: one file, with its pictures in it. Pure."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from iotsplit.bench.outcomes import Outcome
from iotsplit.bench.schemes import MEANS, TITLES, Scheme
from iotsplit.bench.tables import MB, headlines, table_of

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; } h3 { margin-top: 1.6rem; }
.wide { overflow-x: auto; } img { max-width: 100%; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #eee; vertical-align: top; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: pre-wrap; max-width: 28rem; } .note { color: #666; } .bad { color: #a3241b; }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd; } h2 { border-color: #444; } th, td { border-color: #333; }
  .note { color: #999; } img { background: #fff; }
}
"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A setting on the page.

    Args:
        title: of the setting.
        schemes: results of all its seeds.
        pictures: PNG files by what they show.
    """

    title: str
    schemes: Mapping[Scheme, Sequence[Outcome]]
    pictures: Mapping[str, bytes]


def page(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: of the page.
        facts: model, data, settings, machine.
        sections: setting by setting.
    """
    schemes = list(dict.fromkeys(scheme for section in sections for scheme in section.schemes))
    known = _table(["", ""], [[name, value] for name, value in facts.items()], text=True, head=False)
    body = [
        f"<h1>{escape(title)}</h1>",
        known,
        "<h2>Schemes</h2>",
        _table(["", ""], [[TITLES[each], MEANS[each]] for each in schemes], text=True, head=False),
        *(part for section in sections for part in _section(section)),
        f"<h2>How it was measured</h2>{MEASURED}",
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>{"".join(body)}</html>\n'
    )


MEASURED = """<p class="note">Each cell is a fleet of processes that only talk MQTT, started by <code>iotsplit
run</code>. All schemes of a case see the same records, start from the same adapter and train on as
many batches; SL and central step after each batch, the others on all devices' at once. Memory is
each process's peak of resident pages, those of files that it maps included; <i>imports</i> is
measured once, <i>weights</i> and <i>optimizer</i> follow from the numbers of parameters,
<i>activations</i> is the rest. With two tiers edge and cloud are one server: what goes between them
is not counted as moved. Loss, perplexity and exact matches are of data that no scheme has trained
on, scored by the fleet itself, BLEU of texts written to held-out prompts. Where several seeds ran: median
(least to most).</p>"""


def _section(section: Section) -> list[str]:
    told = "".join(f"<li>{escape(line)}</li>" for line in headlines(section.schemes))
    heads, *rows = table_of(section.schemes)
    parts = [
        f"<h2>{escape(section.title)}</h2>",
        f"<ul>{told}</ul>" if told else "",
        _table(heads, rows),
    ]
    for name, image in section.pictures.items():
        data = base64.b64encode(image).decode()
        parts.append(f'<p><img alt="{escape(name)}" src="data:image/png;base64,{data}"></p>')
    parts += [
        "<h3>Bytes, MB up and down</h3>",
        _table(["", "device - edge", "edge - cloud", "adapters"], _bytes_rows(section)),
        "<h3>Memory, expected and measured, MB</h3>",
        _table(["", "expected", "measured", "off by"], _memory_rows(section)),
        _texts(section),
        _failures(section),
    ]
    return parts


def _first(section: Section) -> list[Outcome]:
    """One result of each scheme that has any: of the first seed that all of these have, if there is one."""
    done = [
        {each.case.seed: each for each in found if each.state == "done"} for found in section.schemes.values()
    ]
    some = [each for each in done if each]
    common = set[int]().union(*some).intersection(*some)
    return [each[min(common or each)] for each in some]


def _bytes_rows(section: Section) -> list[list[str]]:
    return [
        [
            TITLES[each.scheme],
            *(f"{ways['up'] / MB:.2f} / {ways['down'] / MB:.2f}" for ways in each.figures.bytes.values()),
        ]
        for each in _first(section)
        if each.figures is not None
    ]


def _memory_rows(section: Section) -> list[list[str]]:
    rows = []
    for each in _first(section):
        if each.figures is None:
            continue
        measured = sum(each.figures.peaks.values())
        expected = sum(each.needed.values())
        off = f"{(expected / measured - 1) * 100:+.0f} %" if measured else "-"
        rows.append([TITLES[each.scheme], f"{expected / MB:.0f}", f"{measured / MB:.0f}", off])
    return rows


def _texts(section: Section) -> str:
    told = [each for each in _first(section) if each.texts]
    if not told:
        return ""
    rows = [["prompt", told[0].texts[0].prompt], ["held out", told[0].texts[0].wanted]]
    rows += [[TITLES[each.scheme], each.texts[0].written] for each in told]
    return "<h3>What is written with the adapter</h3>" + _table(["", ""], rows, text=True, head=False)


def _failures(section: Section) -> str:
    bad = [each for found in section.schemes.values() for each in found if each.state != "done"]
    lines = "".join(
        f'<li class="bad">{escape(f"{each.cell.name}: {each.state}: {each.reason}")}</li>' for each in bad
    )
    return f"<h3>Not done</h3><ul>{lines}</ul>" if bad else ""


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, text: bool = False, head: bool = True
) -> str:
    shape = ' class="text"' if text else ""
    first = "".join(f"<th>{escape(each)}</th>" for each in heads)
    lines = [
        "<tr>"
        + "".join(f"<td{shape if place else ''}>{escape(cell)}</td>" for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    ]
    return f'<div class="wide"><table>{f"<tr>{first}</tr>" if head else ""}{"".join(lines)}</table></div>'
