"""What `bench/growth` has measured, for people: a section of RESULTS.md and a plot."""

from .plot import STYLE, text

MARKER = "<!-- What follows is written by bench/growth. -->"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 820, 300, 70, 20, 50, 40
COLOURS = ("#2f6fb0", "#2f9e5a", "#d97a1d")


def section(data):
    """The section of RESULTS.md."""
    lines = [
        "## Growth", "",
        f"Measured on {data['date']} with `{data['command']}`, {data['version']}: three nodes, "
        f"{data['seconds']} s each after 2 s of warm-up, generator and nodes on the same machine "
        f"({data['machine']['processor']}).", "",
        "| orders in the database | clients | buys/s | p50 | p99 | longest | memory of a node |",
        "|---:|---:|---:|---:|---:|---:|---:|"]
    for row in data["orders"]:
        for clients, of in row["clients"].items():
            lines.append(
                f"| {row['orders']:,} | {int(clients):,} | {of['perSecond']:,.0f} | "
                f"{of['p50']:.2f} ms | {of['p99']:.2f} ms | {of['max']:.0f} ms | "
                f"{row['memoryBytes'] / 2**20:,.0f} MiB |")
    lines += ["", "![Buys as the database grows](growth.svg)", ""]
    if data["snapshots"]:
        lines += [
            "Buys at 500/s by the clock while snapshots are taken (each writes all orders):", "",
            "| orders | snapshots | time of each | p50 | p99 | longest buy | failed |",
            "|---:|---:|---:|---:|---:|---:|---:|"]
        for row in data["snapshots"]:
            each = f"{row['secondsEach']:.1f} s" if row["secondsEach"] else "-"
            lines.append(f"| {row['orders']:,} | {row['snapshots']} | {each} | {row['p50']:.2f} ms "
                         f"| {row['p99']:.2f} ms | {row['max']:.0f} ms | {row['failed']} |")
        lines.append("")
    lines += ["Cached lookups:", "",
              "| connections | idle ones beside them | lookups/s | p50 | p99 | failed |",
              "|---:|---:|---:|---:|---:|---:|"]
    for row in data["lookups"]:
        lines.append(f"| {row['connections']:,} | {row['idle']:,} | {row['perSecond']:,.0f} | "
                     f"{row['p50']:.2f} ms | {row['p99']:.2f} ms | {row['failed']} |")
    idle = [row for row in data["lookups"] if "memoryOfIdleBytes" in row]
    for row in idle:
        lines += ["", f"{row['idle']:,} idle connections take "
                  f"{row['memoryOfIdleBytes'] / 2**20:,.0f} MiB of a node."]
    return "\n".join([*lines, "", "[growth.json](growth.json) has all of it.", ""])


def with_section(document, new):
    """RESULTS.md with `new` in the place of the section that it had."""
    return f"{document.split(MARKER)[0].rstrip()}\n\n{MARKER}\n\n{new}"


def kept_section(document):
    """The section that RESULTS.md has, with its marker; nothing if it has none."""
    return MARKER + document.split(MARKER, 1)[1] if MARKER in document else ""


def draw(data):
    """Buys per second by orders, a line for each number of clients, as SVG."""
    rows = data["orders"]
    clients = list(rows[0]["clients"])
    most = max(of["perSecond"] for row in rows for of in row["clients"].values())
    step = 5000 if most > 5000 else 500
    top = (int(most / step) + 1) * step

    def x(place):
        return LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / len(rows)

    def y(value):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    body = []
    for value in range(0, top + 1, step):
        body.append(f'<line class="grid" x1="{LEFT}" y1="{y(value):.1f}" x2="{WIDTH - RIGHT}" '
                    f'y2="{y(value):.1f}"/>')
        body.append(text(LEFT - 8, y(value) + 4, "end", f"{value:,}"))
    for place, row in enumerate(rows):
        body.append(text(x(place), HEIGHT - 16, "middle", f"{row['orders']:,} orders"))
    for colour, each in zip(COLOURS, clients):
        points = [(x(n), y(row["clients"][each]["perSecond"])) for n, row in enumerate(rows)]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        body.append(f'<polyline points="{line}" fill="none" stroke="{colour}" '
                    'stroke-width="2.5"/>')
        body += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>' for a, b in points]
        body.append(text(points[-1][0] + 10, points[-1][1] - 8, "start",
                         f"{int(each):,} client{'s' if int(each) > 1 else ''}"))
    heading = "Buys per second as the database grows"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{heading}">', f"<style>{STYLE}</style>",
        text(8, 22, "start", heading, "title"), *body, "</svg>", ""])
