"""The report of a sweep: one HTML page that needs no network, to read, keep or send.

The comparison of runs of every origin comes first, then a section per study. The plots are drawn by plotly; each
is above a table of its data, which is also what a screen reader or a browser without JavaScript gets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from markupsafe import Markup
from optuna import Study
from plotly.offline import get_plotlyjs

from experiments.config import RunConfig, override
from experiments.errors import UserError
from experiments.report.compared_runs import ComparedRun, other_runs, runs_of_study
from experiments.report.comparison import Comparison, compare
from experiments.report.page import NOTHING, Table, render_page
from experiments.report.study_section import study_section
from experiments.study.storage import study_folder
from experiments.study.study import interrupted_trials, metric_name
from lightning_modules.files import replaced_whole

PAGE = "report.html"


def report_studies(studies: Sequence[Study], config: RunConfig, path: Path | None = None) -> Path:
    """Write the report of some studies, with the trainings and jobs on the same photos that are on this machine.

    Args:
        config: where runs are kept.
        path: the HTML file; by default in the folder of the study, or in `output_dir` for several.

    Raises:
        UserError: if there is no study.
    """
    if path is None and len(studies) == 1:
        path = study_folder(override(config, {"sweep.study_name": studies[0].study_name})) / PAGE
    path = path or config.output_dir / PAGE
    runs = [run for study in studies for run in runs_of_study(study, config)]
    runs += other_runs(config, {run.fingerprint for run in runs if run.fingerprint is not None})
    interrupted = {
        study.study_name: interrupted_trials(study, override(config, {"sweep.study_name": study.study_name}))
        for study in studies
    }
    write_report(studies, path, comparisons=_comparisons(studies, runs, config), interrupted=interrupted)
    return path


def _comparisons(studies: Sequence[Study], runs: Sequence[ComparedRun], config: RunConfig) -> list[Comparison]:
    """A comparison per set of photos: losses on different photos can't be compared."""
    found = []
    for fingerprint in dict.fromkeys(run.fingerprint for run in runs):
        same = [run for run in runs if run.fingerprint == fingerprint]
        study = next((study for study in studies if any(run.study == study.study_name for run in same)), studies[0])
        at_home = override(config, study.user_attrs.get("config", {}) | {"output_dir": str(config.output_dir)})
        compared = compare(
            same,
            at_home,
            class_names=study.user_attrs.get("photos", {}).get("class_names", ()),
            metric=metric_name(study),
            maximize=study.direction.name == "MAXIMIZE",
        )
        if compared is not None:
            found.append(compared)
    return found


def write_report(
    studies: Sequence[Study],
    path: Path,
    *,
    comparisons: Sequence[Comparison] = (),
    interrupted: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> None:
    """Write the report of some studies as one self-contained HTML page.

    The page replaces an older one in one step: a reader never sees half of it.

    Args:
        studies: studies of one objective each. A study's attribute `metric` names its values and
            intermediate values (`val_loss` by default). A trial's attribute `failure_reason` says
            why it failed; each of its attributes that is a number becomes a column.
        path: the HTML file.
        comparisons: runs of every origin, for the top of the page, once for each set of photos.
        interrupted: unfinished trials that no process trains, by the study's name.

    Raises:
        UserError: if there is no study.
    """
    page = report_page(studies, comparisons, interrupted)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_whole(path, shared=True) as part:
        part.write_text(page, encoding="utf-8")


def report_page(
    studies: Sequence[Study], comparisons: Sequence[Comparison], interrupted: Mapping[str, Collection[int]]
) -> str:
    """Build the HTML of `write_report`, with the same arguments and errors."""
    names = [study.study_name for study in studies]
    if not names:
        raise UserError("a report needs at least one study, got none; run a sweep first")
    sections = [study_section(study, interrupted.get(study.study_name, ())) for study in studies]
    overview_facts = tuple(dict.fromkeys(fact for section in sections for fact in section.facts))
    return render_page(
        "experiments.report",
        "report.html.j2",
        title=f"Sweep report: {names[0]}" if len(names) == 1 else f"Sweep report: {len(names)} studies",
        comparisons=comparisons,
        sections=sections,
        overview=Table(
            ("Study", *overview_facts),
            tuple(
                (section.name, *(section.facts.get(fact, NOTHING) for fact in overview_facts)) for section in sections
            ),
        ),
        plotly_js=Markup(get_plotlyjs()),
    )
