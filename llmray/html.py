"""The shell of a report: one HTML page that needs nothing but itself.

Every report of llmray looks the same because it is made of these few pieces. Rejected: a template engine, for pages
that are a list of sections.
"""

import html as _html
from collections.abc import Sequence

_STYLE = """
:root{--ink:#1c2330;--soft:#5b6575;--line:#dde2ea;--paper:#fff;--before:#c3cedd;--kept:#2f7d5b;--rules:#c4642d;
--exact:#5567b8;--near:#8f7cc9;--semantic:#4f9bb5;--quarantined:#b03a48}
*{box-sizing:border-box}body{margin:0;background:#f5f6f8;color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:960px;margin:0 auto;padding:32px 24px 64px;background:var(--paper)}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px}h3{font-size:15px;margin:22px 0 6px}
p{margin:6px 0}.soft{color:var(--soft)}svg{max-width:100%;height:auto;display:block}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left}th{font-weight:600;color:var(--soft);font-size:13px}
.tiles{display:flex;gap:12px;flex-wrap:wrap;margin:18px 0}
.tile{flex:1 1 140px;border:1px solid var(--line);border-radius:8px;padding:10px 14px}
.tile b{display:block;font-size:22px;white-space:nowrap;font-variant-numeric:tabular-nums}
.key{display:inline-block;width:11px;height:11px;border-radius:2px;margin:0 5px 0 14px;vertical-align:-1px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f5f6f8;border-radius:6px;padding:8px 10px;margin:4px 0;
font:12.5px/1.45 ui-monospace,monospace;max-height:11em;overflow:auto}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:10px}code{font:12.5px ui-monospace,monospace}
"""


def page(title: str, sections: Sequence[str]) -> str:
    """A whole document of ready-made sections."""
    body = "\n".join(sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body><main>\n{body}\n</main></body></html>\n"
    )


def tiles(figures: Sequence[tuple[str, str, str]]) -> str:
    """A row of big figures: name, figure, and a word on it."""
    shown = "".join(
        f"<div class=tile>{text(name)}<b>{text(figure)}</b><span class=soft>{text(note)}</span></div>"
        for name, figure, note in figures
    )
    return f"<div class=tiles>{shown}</div>"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; whole numbers get their thousands marked, other numbers four digits."""
    cells = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{text(name)}</th>' for name in head)}</tr>{cells}</table>"


def text(value: str) -> str:
    """Text that is safe inside a page."""
    return _html.escape(value)


def _cell(cell: object) -> str:
    if isinstance(cell, bool) or cell is None:
        return {True: "yes", False: "no", None: ""}[cell]
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else text(str(cell))
