"""``sb3-trl reproduce``: run the studies behind a table or figure of the papers, and draw it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sb3_trl.papers.fixpo import FIXPO_ITEMS
from sb3_trl.papers.item import Item, Results
from sb3_trl.papers.metaworld import METAWORLD_ITEMS
from sb3_trl.papers.scales import SCALES, Part, scale_settings, scaled_study, seconds
from sb3_trl.papers.transfer import TRANSFER_ITEMS
from sb3_trl.papers.trpl import TRPL_ITEMS
from sb3_trl.report.estimates import runs_text, versions_text
from sb3_trl.report.random_policy import shipped_returns
from sb3_trl.zoo.registry import closest

__all__ = ["ITEMS", "find_item", "list_items", "main", "reproduce"]

#: Every table and figure, by the name that ``sb3-trl reproduce`` knows it by.
ITEMS = TRPL_ITEMS | FIXPO_ITEMS | METAWORLD_ITEMS | TRANSFER_ITEMS

#: Environment steps per second of a run that is recorded step by step, for estimates of time.
SPEED_OF_RECORDING = 4500


def main() -> None:
    """Reproduce what the command line names."""
    parser = _parser()
    args = parser.parse_args()
    if args.list:
        print(list_items())
        return
    if args.name is None:
        raise ValueError(f"which table or figure? Known: all, {', '.join(ITEMS)}; --list says what they show.")
    names = list(ITEMS) if args.name == "all" else [args.name]
    out = args.out or Path("reproduction", args.scale)
    for picture, page in reproduce(names, args.scale, out, args.jobs, args.read_only):
        print(f"{picture}  {page}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run the studies behind a table or figure of the papers, and draw it. Runs that are there already "
        "are not run again, so that the command can be interrupted and repeated.",
    )
    parser.add_argument("name", nargs="?", help="a table or figure, such as trpl-table1, or all; --list shows them")
    parser.add_argument("--scale", choices=SCALES, default="smoke", help="how much of it (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for runs, pictures and tables (default: reproduction/SCALE)")
    parser.add_argument("--jobs", type=int, default=-1, help="runs side by side (default: one on every core)")
    parser.add_argument("--read-only", action="store_true", help="draw the runs that are there; train nothing")
    parser.add_argument("--verbose", type=int, default=1, help="2 shows the traceback of an error")
    parser.add_argument("--list", action="store_true", help="what there is, and how long it takes")
    return parser


def reproduce(
    names: Iterable[str], scale: str, out: Path, jobs: int = -1, read_only: bool = False
) -> Iterator[tuple[Path, Path]]:
    """Run or read the studies behind tables and figures, draw them, and yield the picture and the page of each.

    Runs that several of them show are run once, before the first is drawn.

    :param names: Of ``ITEMS``.
    :param scale: One of ``SCALES``.
    :param out: Folder; every study has a folder in ``out/studies``.
    :param jobs: Runs side by side; −1 for one on every core.
    :param read_only: Draw what is there.
    :raises ValueError: for a name that is none, and for a figure whose runs are not there.
    """
    items = {name: find_item(name) for name in names}
    parts = [part for item in items.values() for part in item.parts]
    studies = out / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    tables = {}
    for study in dict.fromkeys(part.study for part in parts):
        content = scaled_study(study, scale)
        if content is not None:
            tables[study] = _results(content, studies, [part for part in parts if part.study == study], jobs, read_only)
    settings = scale_settings(scale)
    for name, item in items.items():
        table = _rows_of(item, tables)
        if item.parts and not len(table):
            raise ValueError(f"{name}: none of its runs is in {studies} yet: repeat without --read-only.")
        results = Results(
            table, settings["last"], shipped_returns(), settings["recording"]["n_timesteps"], studies, read_only
        )
        figure, text = item.draw(results)
        picture, page = out / f"{name}.png", out / f"{name}.md"
        figure.savefig(picture, dpi=150)
        page.write_text(_page(name, item, scale, table, text))
        yield picture, page


def list_items() -> str:
    """Return what can be reproduced, and roughly how long each scale takes on one core."""
    width = max(map(len, ITEMS)) + 1
    lines = [f"{'':{width}} {'  '.join(f'{scale:>8}' for scale in SCALES)}"]
    for name, items in {**{name: [item] for name, item in ITEMS.items()}, "all": list(ITEMS.values())}.items():
        times = "  ".join(f"{_time(_seconds(items, scale)):>8}" for scale in SCALES)
        lines.append(f"{name:{width}} {times}  {items[0].summary if len(items) == 1 else 'all of them'}")
    lines += ["", "Times are of one core, and rough. Runs that several figures show are run once. Scales:"]
    lines += [f"  {scale:{width - 2}} {scale_settings(scale)['summary']}" for scale in SCALES]
    return "\n".join(lines)


def find_item(name: str) -> Item:
    """Return a table or figure by its name.

    :raises ValueError: if there is none of that name.
    """
    if name not in ITEMS:
        guess = closest(name, [*ITEMS, "all"]) or "."
        raise ValueError(f"there is no table or figure {name!r}{guess} Known: all, {', '.join(ITEMS)}.")
    return ITEMS[name]


def _results(content: dict[str, Any], out: Path, parts: list[Part], jobs: int, read_only: bool) -> pd.DataFrame:
    """Run the parts of a study in its folder, unless there are only to be read, and return all that is there."""
    from sb3_trl.study.study import Study, failures

    file, folder = out / f"{content['name']}.yml", out / content["name"]
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    study = Study.load(file, folder)
    if not read_only:
        groups = [g for g in study.plan.groups if any(part.has(g.method.label, g.runs[0].task) for part in parts)]
        failed = Study(replace(study.plan, groups=tuple(groups)), folder).run(jobs)
        if failed:
            raise ValueError(failures(study, failed))
    folder.mkdir(exist_ok=True)
    study.store.write_results(study.name, study.runs)
    return _in_order(study.results(), content)


def _in_order(table: pd.DataFrame, content: dict[str, Any]) -> pd.DataFrame:
    """Return the rows by task, method, seed and step, tasks and methods in the study file's order."""
    for key, names in (("task", content["tasks"]), ("variant", list(content["methods"]))):
        table = table.assign(**{key: pd.Categorical(table[key], names)})
    table = table.sort_values(["task", "variant", "seed", "step"])
    return table.astype({"task": str, "variant": str}).reset_index(drop=True)


def _rows_of(item: Item, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the rows that a figure shows, of all its studies."""
    chosen = []
    for part in item.parts:
        if part.study in tables:
            table = tables[part.study]
            has = [part.has(variant, task) for variant, task in zip(table.variant, table.task, strict=True)]
            chosen.append(table[has])
    return pd.concat(chosen, ignore_index=True) if chosen else pd.DataFrame()


def _page(name: str, item: Item, scale: str, table: pd.DataFrame, text: str) -> str:
    """Return the Markdown page: what it is, the picture, the numbers, and how they came about."""
    lines = [f"# {item.summary}", f"![{item.summary}]({name}.png)", text]
    if len(table):
        lines.append(_caption(scale, table))
    lines.append(f"```\nsb3-trl reproduce {name} --scale {scale}\n```")
    return "\n\n".join(lines) + "\n"


def _caption(scale: str, table: pd.DataFrame) -> str:
    """Return how the numbers came about: scale, seeds, steps, evaluations, versions."""
    settings = scale_settings(scale)
    return (
        f"Scale **{scale}** ({settings['summary']}): {runs_text(table)}. Numbers are "
        f"means over seeds ± half the 95 % interval (Student's t), bands the same; where there are fewer than three "
        f"seeds, thin lines are the runs. Final results, “at the end”, are means of the last {settings['last']} "
        f"evaluations, with deterministic actions. {versions_text(table)}."
    )


def _seconds(items: list[Item], scale: str) -> float:
    """Return roughly the time of all runs of the items on one core, in seconds."""
    recorded = sum(item.recordings for item in items) * scale_settings(scale)["recording"]["n_timesteps"]
    return seconds([part for item in items for part in item.parts], scale) + recorded / SPEED_OF_RECORDING


def _time(seconds: float) -> str:
    if seconds == 0:
        return "–"
    if seconds < 5400:
        return f"{max(seconds / 60, 1):.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
