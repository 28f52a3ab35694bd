"""The page of a profile: one HTML file that needs neither network nor JavaScript; jobs have no template engine."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from lightning_modules.insight.profile_verdict import PHASES, Profile
from lightning_modules.palette import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION

COLORS = dict(zip(PHASES, (VERMILLION, ORANGE, SKY, BLUE, GREEN, GREY), strict=True))
_BAR, _WIDTH = 14, 640
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Profile</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.4rem; }}
h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8884; }}
td + td, th + th {{ text-align: right; }}
svg {{ width: 100%; height: auto; }}
i {{ display: inline-block; width: .8em; height: .8em; }}
h1, code {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{verdict}</h1>
<h2>Where a step's time goes</h2>
{phases}
<h2>Each step</h2>
<p>A bar is a step, from step {first} of the run on; the longest took {longest:.1f} ms.</p>
{bars}
<h2>Slowest operators</h2>
<p>From {traced} more steps with PyTorch's profiler on, of {traced_ms:.1f} ms each; without what an operator calls.</p>
{operators}
<h2>Machine</h2>
{machine}
<h2>The trace</h2>
<p>Every operator and Python call of those steps is in <a href="trace.json.gz">trace.json.gz</a> beside this page. Open
<code>ui.perfetto.dev</code> (it stays in the browser) or <code>chrome://tracing</code> and drop the file there. All
figures are in <a href="profile.json">profile.json</a>.</p>
</body>
</html>
"""


def page(profile: Profile, verdict: str) -> str:
    """The whole page."""
    trace, shares, seconds = profile.trace, profile.shares, profile.seconds
    machine = [
        ("cores used by this process", f"{100 * profile.cpu_share:.0f} %"),
        ("most memory of this process", f"{profile.peak_rss_bytes / 1e9:.2f} GB"),
    ]
    if trace.gpu_idle is not None:
        machine += [
            (profile.gpu, f"{100 * (1 - trace.gpu_idle):.0f} % busy"),
            ("most GPU memory", f"{profile.gpu_peak_bytes / 1e9:.2f} of {profile.gpu_total_bytes / 1e9:.0f} GB"),
        ]
    reads = f"{trace.waits:.0f} a step, {100 * trace.wait_share:.0f} % of it"
    machine.append((f"values read off the device {trace.wait_place}", reads))
    return _PAGE.format(
        verdict=escape(verdict),
        phases=_table(
            ("Phase", "ms", "Share"),
            (
                (f'<i style="background:{COLORS[phase]}"></i> {label}', _ms(seconds[phase]), f"{shares[phase]:.0%}")
                for phase, label in PHASES.items()
            ),
        ),
        first=profile.first_step,
        longest=1000 * max(sum(step.values()) for step in profile.steps),
        bars=_bars(profile),
        traced=trace.steps,
        traced_ms=1000 * trace.seconds,
        operators=_table(
            ("Operator", "ms per step", "Calls"),
            (
                (f"<code>{escape(operator.name)}</code>", _ms(operator.seconds), f"{operator.calls:.0f}")
                for operator in trace.operators
            ),
        ),
        machine=_table(("", ""), ((escape(name), escape(value)) for name, value in machine)),
    )


def _bars(profile: Profile) -> str:
    """One bar per step, divided into phases; the table above it has the numbers."""
    scale = _WIDTH / max(sum(step.values()) for step in profile.steps)
    elements = []
    for row, step in enumerate(profile.steps):
        x, title = 0.0, ", ".join(f"{label} {_ms(step[phase])} ms" for phase, label in PHASES.items())
        elements.append(f"<g><title>step {profile.first_step + row}: {title}</title>")
        for phase in PHASES:
            width = scale * step[phase]
            attributes = f'x="{x:.2f}" y="{row * _BAR}" width="{width:.2f}" height="{_BAR - 3}"'
            elements.append(f'<rect {attributes} fill="{COLORS[phase]}"/>')
            x += width
        elements.append("</g>")
    alt = ", ".join(f"{label} {profile.shares[phase]:.0%}" for phase, label in PHASES.items())
    box = f"0 0 {_WIDTH} {_BAR * len(profile.steps)}"
    return f'<svg role="img" viewBox="{box}" aria-label="Steps by phase: {alt}">{"".join(elements)}</svg>'


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div><table><tr>{head}</tr>{body}</table></div>"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"
