"""What was measured, as one table of medians and ratios."""

from dataclasses import dataclass
from statistics import median

PYGMY = "Pygmy"
TIERS = "Pygmy, each tier its own process"


@dataclass(frozen=True)
class Measure:
    """What a row of the table is about."""

    title: str
    unit: str
    more_is_better: bool = True


MEASURES = {
    "buy-1-p50": Measure("a buy, 1 client, p50", "ms", False),
    "buy-1-p99": Measure("a buy, 1 client, p99", "ms", False),
    "buys-64-7": Measure("buys, 64 clients, 7 hot items", "/s"),
    "buys-64-10000": Measure("buys, 64 clients, 10,000 items", "/s"),
    "buys-256-7": Measure("buys, 256 clients, 7 hot items", "/s"),
    "lookup-1-p50": Measure("a cached lookup, 1 connection, p50", "ms", False),
    "lookups-64": Measure("cached lookups, 64 connections", "/s"),
    "lookups-hot": Measure("cached lookups of items that are being bought, 64 connections",
                           "/s"),
    "balancer-1-p50": Measure("through a balancer, 1 connection, p50", "ms", False),
    "balancer-64": Measure("through a balancer, 64 connections", "/s"),
}


@dataclass(frozen=True)
class Row:
    """One subject under one measure; ratios above 1 say that Pygmy is ahead of it."""

    measure: Measure
    subject: str
    value: float
    # Of each round that has both; empty for Pygmy itself.
    ratios: tuple = ()
    remark: str = ""

    @property
    def ratio(self):
        """In the middle of the rounds."""
        return median(self.ratios) if self.ratios else None


def rows(runs):
    """The table, in the order of `MEASURES`, Pygmy first."""
    return [row for name, measure in MEASURES.items()
            for row in rows_of(measure, [run for run in runs if run["measure"] == name])]


def rows_of(measure, runs):
    """The rows of one measure."""
    found = {}
    for each in runs:
        found.setdefault(each["subject"], {})[each["round"]] = each["value"]
    pygmy = found.get(PYGMY, {})
    table = []
    for subject, values in sorted(found.items(), key=lambda item: item[0] != PYGMY):
        ratios = () if subject == PYGMY else tuple(
            ratio(measure, pygmy[number], value)
            for number, value in values.items() if number in pygmy)
        remark = remark_on([each["found"] for each in runs if each["subject"] == subject])
        table.append(Row(measure, subject, median(values.values()), ratios, remark))
    return table


def remark_on(found):
    """What else must be known about a value."""
    bought = [each["buysPerSecond"] for each in found if "buysPerSecond" in each]
    return f", {figure(median(bought))} buys/s meanwhile" if bought else ""


def ratio(measure, pygmy, other):
    """How many times better Pygmy is."""
    return pygmy / other if measure.more_is_better else other / pygmy


def markdown(table):
    """The table for people."""
    lines = ["| what | who | median | Pygmy's ratio to it (rounds) |", "|---|---|---:|---:|"]
    last = None
    for row in table:
        title = "" if row.measure is last else row.measure.title
        last = row.measure
        value = f"{figure(row.value)} {row.measure.unit}".replace(" /s", "/s")
        name = f"**{row.subject}**" if row.subject == PYGMY else row.subject
        lines.append(f"| {title} | {name}{row.remark} | {value} | {spread(row)} |")
    return "\n".join(lines)


def spread(row):
    """The ratio, and between which values it was in the rounds."""
    if not row.ratios:
        return ""
    if len(row.ratios) == 1:
        return f"**{short(row.ratio)}**"
    return f"**{short(row.ratio)}** ({short(min(row.ratios))} to {short(max(row.ratios))})"


def figure(value):
    """With about three digits that count."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def short(number):
    """A ratio: two digits behind the point if it is small."""
    return f"{number:.2f}" if number < 10 else f"{number:,.0f}"


def every_round(runs):
    """All values that the medians are of."""
    numbers = sorted({run["round"] for run in runs})
    lines = ["| what | who | " + " | ".join(f"round {n}" for n in numbers) + " |",
             "|---|---|" + "---:|" * len(numbers)]
    for name, measure in MEASURES.items():
        subjects = dict.fromkeys(run["subject"] for run in runs if run["measure"] == name)
        first = next(iter(subjects), None)
        for subject in subjects:
            values = {run["round"]: run["value"] for run in runs
                      if run["measure"] == name and run["subject"] == subject}
            cells = [figure(values[n]) if n in values else "-" for n in numbers]
            title = f"{measure.title}, {measure.unit}" if subject == first else ""
            lines.append(f"| {title} | {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
