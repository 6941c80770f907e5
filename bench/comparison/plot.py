"""The ratios as bars, as SVG; one to the right of the line is one where Pygmy is ahead."""

import math
from html import escape

WIDTH = 820
LEFT = 250
RIGHT = 70
TOP = 60
BAR = 16
GAP = 6
TITLE = 30
# Text and lines follow the reader's colours; the bars have colours that both grounds bear.
STYLE = ("text{font:13px system-ui,sans-serif;fill:#333}.title{font-weight:600}"
         ".grid{stroke:#888;stroke-opacity:.3}.one{stroke:#888;stroke-width:1.5}"
         ".ahead{fill:#2f9e5a}.behind{fill:#d97a1d}"
         "@media(prefers-color-scheme:dark){text{fill:#ddd}}")


def draw(table):
    """Draws the rows that have a ratio, on a logarithmic axis that has 1 on it."""
    shown = [row for row in table if row.ratio]
    ratios = [row.ratio for row in shown] + [1]
    low, high = math.floor(math.log10(min(ratios))), math.ceil(math.log10(max(ratios)))
    high = max(high, low + 1)

    def x(value):
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - low) / (high - low)

    body, y, last = [], TOP, None
    for row in shown:
        if row.measure is not last:
            last = row.measure
            y += TITLE
            body.append(text(8, y - 8, "start", last.title, "title"))
        body += bar(row, x(1), x(row.ratio), y)
        y += BAR + GAP
    grid = []
    for decade in range(low, high + 1):
        at = x(10 ** decade)
        grid.append(f'<line class="{"grid" if decade else "one"}" x1="{at:.1f}" y1="{TOP}" '
                    f'x2="{at:.1f}" y2="{y}"/>')
        grid.append(text(at, TOP - 6, "middle", f"{10.0 ** decade:g}"))
    heading = "How many times better Pygmy is (ratio of the same round, median)"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 20}" role="img" '
        f'aria-label="{heading}">',
        f"<style>{STYLE}</style>", text(8, 22, "start", heading, "title"), *grid, *body,
        "</svg>", ""])


def bar(row, one, end, y):
    """A bar from 1 to the ratio, with the name before and the number behind it."""
    kind = "ahead" if row.ratio >= 1 else "behind"
    number = f"{row.ratio:.2f}" if row.ratio < 10 else f"{row.ratio:,.0f}"
    return [
        text(LEFT - 10, y + 13, "end", row.subject),
        f'<rect class="{kind}" x="{min(one, end):.1f}" y="{y}" '
        f'width="{max(1.0, abs(end - one)):.1f}" height="{BAR}" rx="2"/>',
        text(max(one, end) + 6, y + 13, "start", number)]


def text(x, y, anchor, words, kind=""):
    """A line of text."""
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'
