"""The report as one HTML page that needs nothing but itself: figures, plots as SVG, examples of all that went."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmray import html
from llmray.data.report import Accounts, Histogram

_FATES = {
    "kept": "kept",
    "rules": "failed a rule",
    "exact": "exact repeat",
    "near": "near repeat",
    "semantic": "semantic repeat",
}


def render(accounts: Accounts, base: str) -> str:
    """The page; `base` is the folder under which the sources lie."""
    sections = [
        "<h1>What curation did</h1>",
        f"<p class=soft>{html.text(accounts.summary())}. Sources under <code>{html.text(base)}</code>.</p>",
        *_onto(accounts),
        _tiles(accounts),
        "<h2>Where rows went, by kind</h2>",
        _fate_bars(accounts.kinds),
        "<h2>Why rows went</h2>",
        _reasons(accounts),
        "<h2>Length before and after</h2><p class=soft>Rows by length in characters; each bar is half an octave.</p>",
        *(
            _lengths(kind, histogram, accounts.limits.get("length", {}).get(kind))
            for kind, histogram in accounts.histograms.items()
        ),
        "<h2>Repeats</h2>",
        _dedup(accounts.dedup),
        "<h2>Sources</h2>",
        html.table(
            ["source", "in", "kept", "removed", "quarantined"], [[n, *c.values()] for n, c in accounts.sources.items()]
        ),
        _taken_out(accounts),
        _broken(accounts),
        "<h2>Examples of what went</h2>",
        *(_example(reason, accounts.why.get(reason, ""), rows) for reason, rows in accounts.examples.items()),
    ]
    return html.page("Curation report", sections)


def _tiles(accounts: Accounts) -> str:
    figures = {
        "rows in": accounts.records,
        "kept": accounts.kept,
        "removed": accounts.removed,
        "quarantined": accounts.quarantined,
    }
    return html.tiles([(name, f"{count:,}", f"{count / accounts.records:.1%}") for name, count in figures.items()])


def _onto(accounts: Accounts) -> list[str]:
    if not accounts.onto:
        return []
    onto = accounts.onto
    return [
        f"<p>Added to snapshot <code>{html.text(onto['digest'][:12])}</code> of {onto['rows']:,} rows, which all stay: "
        f"{onto['repeated_by']:,} new rows repeat one of them. All figures here are of the new rows.</p>"
    ]


def _fate_bars(kinds: Mapping[str, Mapping[str, int]]) -> str:
    width, left, height = 900, 110, 34
    bars = []
    for line, (kind, count) in enumerate(kinds.items()):
        y, x = 6 + line * height, float(left)
        bars.append(f'<text x="0" y="{y + 16}" font-size="14">{html.text(kind)}</text>')
        for fate, name in _FATES.items():
            wide = (width - left) * count[fate] / max(1, count["in"])
            title = f"{name}: {count[fate]:,} of {count['in']:,}"
            bars.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="24" fill="var(--{fate})">'
                f"<title>{title}</title></rect>"
            )
            if wide > 52:
                bars.append(f'<text x="{x + 6:.1f}" y="{y + 17}" font-size="12" fill="#fff">{count[fate]:,}</text>')
            x += wide
    legend = "".join(f'<span class=key style="background:var(--{fate})"></span>{name}' for fate, name in _FATES.items())
    return f"<p>{legend}</p>{_svg(width, 6 + height * len(kinds), bars)}"


def _reasons(accounts: Accounts) -> str:
    counts = {**{f"{how} repeat": count for how, count in accounts.repeats.items()}, **accounts.rules}
    counts = dict(sorted(((name, count) for name, count in counts.items() if count), key=lambda item: -item[1]))
    if not counts:
        return "<p>No row was removed.</p>"
    width, left, height = 900, 210, 26
    most = max(counts.values())
    bars = []
    for line, (name, count) in enumerate(counts.items()):
        y, wide = line * height, (width - left - 90) * count / most
        colour = name.split(" ")[0] if name.endswith(" repeat") else "rules"
        bars.append(
            f'<text x="0" y="{y + 16}" font-size="13.5">{html.text(name)}</text>'
            f'<rect x="{left}" y="{y + 3}" width="{max(wide, 1):.1f}" height="18" fill="var(--{colour})"/>'
            f'<text x="{left + wide + 8:.1f}" y="{y + 17}" font-size="13">{count:,}</text>'
        )
    note = "<p class=soft>A row that failed several rules counts under each of them.</p>"
    return _svg(width, height * len(counts), bars) + note


def _lengths(kind: str, histogram: Histogram, limits: Mapping[str, float | None] | None) -> str:
    first = next((at for at, count in enumerate(histogram.before) if count), 0)
    last = max((at for at, count in enumerate(histogram.before) if count), default=0) + 1
    edges, before, after = histogram.edges[first : last + 1], histogram.before[first:last], histogram.after[first:last]
    width, height, left, foot = 900, 150, 60, 24
    most = max(*before, 1)
    each = (width - left) / max(1, len(before))
    shapes = [f'<line x1="{left}" x2="{width}" y1="{height}" y2="{height}" stroke="var(--line)"/>']
    shapes.append(f'<text x="{left - 8}" y="12" font-size="12" text-anchor="end" fill="var(--soft)">{most:,}</text>')
    every = max(1, len(before) // 12)
    for at, (was, now) in enumerate(zip(before, after, strict=True)):
        x = left + at * each
        title = f"{edges[at]:,} to {edges[at + 1] - 1:,} characters: {was:,} before, {now:,} after"
        for count, colour in ((was, "before"), (now, "kept")):
            tall = (height - 6) * count / most
            shapes.append(
                f'<rect x="{x + 1:.1f}" y="{height - tall:.1f}" width="{each - 2:.1f}" height="{tall:.1f}" '
                f'fill="var(--{colour})"><title>{title}</title></rect>'
            )
        if at % every == 0:
            shapes.append(f'<text x="{x:.1f}" y="{height + 16}" font-size="12" fill="var(--soft)">{edges[at]:,}</text>')
    legend = "".join(
        f'<span class=key style="background:var(--{colour})"></span>{name}'
        for colour, name in (("before", "before"), ("kept", "after"))
    )
    usual = ""
    if limits is not None and limits["high"] is not None:
        usual = f"; usual, as learned from these rows: {max(0, limits['low'] or 0):,.0f} to {limits['high']:,.0f} characters"
    return f"<h3>{html.text(kind)} <span class=soft>{legend}{usual}</span></h3>{_svg(width, height + foot, shapes)}"


def _dedup(dedup: Mapping[str, Any]) -> str:
    return (
        f"<p>{dedup['clusters']:,} clusters, the largest of {dedup['largest_cluster']:,} rows. Near repeats share "
        f"{dedup['threshold']:.0%} of their word shingles or more, measured exactly on each of the "
        f"{dedup['pairs_compared']:,} pairs that {dedup['bands']} bands of {dedup['rows_per_band']} MinHash rows "
        f"brought together ({dedup['recall_at_threshold']:.1%} of the pairs at the threshold, by the S-curve). Pairs "
        f"of crowded buckets left out: {dedup['pairs_skipped_in_hot_buckets']:,}.</p>"
    )


def _taken_out(accounts: Accounts) -> str:
    taken = accounts.stripped
    plate = (
        f"<h2>Boilerplate</h2><p>{taken['units']:,} repeated lines or paragraphs ({taken['characters']:,} characters) "
        f"were taken out of {taken['rows']:,} rows.</p>"
        if taken
        else ""
    )
    if not accounts.personal:
        return plate
    rows = [[kind, count] for kind, count in accounts.personal.items()]
    return f"{plate}<h2>Personal data and secrets</h2>{html.table(['kind', 'found'], rows)}"


def _broken(accounts: Accounts) -> str:
    parts = []
    if accounts.quarantine:
        shown = list(accounts.quarantine.items())[:20]
        parts += ["<h2>Quarantined</h2>", html.table(["reason", "records"], [[name, count] for name, count in shown])]
    if accounts.losses:
        rows = [[loss["source"], loss["reason"], loss["after_row"], loss.get("rows", "?")] for loss in accounts.losses]
        parts += ["<h2>Could not be read</h2>", html.table(["source", "reason", "after row", "rows lost"], rows)]
    return "".join(parts)


def _example(reason: str, why: str, rows: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for row in rows:
        where = f"{row['source']}, row {row['row']}, <code>{row['id'][:12]}</code>"
        excerpt = f"<pre>{html.text(row['excerpt']) or '(empty)'}</pre>"
        if "repeats" in row:
            other = row["repeats"]
            shown.append(
                f"<p class=soft>{where}: {_likeness(reason, row)} <code>{other['id'][:12]}</code> "
                f"({html.text(other['source'])}, row {other['row']}), which stayed (right)</p>"
                f"<div class=pair>{excerpt}<pre>{html.text(other['excerpt'])}</pre></div>"
            )
        else:
            more = f" ({html.text(row['detail'])})" if "detail" in row else ""
            shown.append(f"<p class=soft>{where}: {row['value']:.4g}, limit {row['threshold']:.4g}{more}</p>{excerpt}")
    return f"<h3>{html.text(reason)} <span class=soft>{html.text(why)}</span></h3>{''.join(shown)}"


def _likeness(reason: str, row: Mapping[str, Any]) -> str:
    if reason == "exact repeat":
        return "says the same as"
    return f"{'Cosine' if reason == 'semantic repeat' else 'Jaccard'} {row['similarity']:.2f} with"


def _svg(width: int, height: int, shapes: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(shapes)}</svg>'
