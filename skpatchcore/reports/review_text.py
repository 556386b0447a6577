"""text_of: the numbers of a review as text for a reader without knowledge of statistics."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from skpatchcore._utils.answers import DEFECT, FINE
from skpatchcore._utils.names import shown_name
from skpatchcore.reports.review_summary import COUNTS

# Width of the text, start of the lines that are not wrapped, and number of names in a list.
_WIDTH, _COMMAND_INDENT, _N_NAMED = 100, "    ", 5
# Largest false-positive rate that `recalibrate` accepts.
_MOST = 0.5


def text_of(summary: dict[str, Any]) -> str:
    """Return a summary as text.

    Parameters
    ----------
    summary : dict
        Result of ``summary_of_review``.
    """
    parts = summary["parts"]
    n = sum(parts["parts"].values())
    n_open = sum(parts["open"].values())
    files = ", ".join(map(shown_name, summary["files"]))
    lines = [
        f"{n:,} parts in {files}: {n - n_open:,} reviewed, {n_open:,} not reviewed.",
        _source(summary),
        "",
        *_confusion(parts),
        "",
        *(_of_verdict(summary, name) for name in ("flagged", "not flagged")),
    ]
    if summary["unreadable"]:
        names = summary["unreadable"]
        more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
        lines += ["", f"Could not be read, and count as flagged: {', '.join(names[:_N_NAMED])}{more}."]
    lines += ["", *_rates(summary), "", *_thresholds(summary)]
    if summary["teach"]:
        lines += ["", "Command that teaches the model your answers:", f"    {summary['teach']}"]
    return "\n".join(map(_wrapped, lines))


def _wrapped(line: str) -> str:
    """Return a line as lines of a readable length. Lines with an indent of four have commands, and stay whole."""
    if line.startswith(_COMMAND_INDENT) or len(line) <= _WIDTH:
        return line
    indent = "    " if line.startswith("  ") else ""
    return textwrap.fill(line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _source(summary: dict[str, Any]) -> str:
    reason, model = summary["decisions"]["reason"], shown_name(summary["model"])
    if summary["decisions"]["source"] == "file":
        return (
            f"Decisions: those written in the file, NOT those of {model} now. {reason} Pass --rescore to score the "
            "images with the model."
        )
    return f"Decisions: those of {model} with its present threshold. {reason}"


def _confusion(parts: dict[str, dict[str, int]]) -> list[str]:
    rows = [*((f"you: {answer}", answer) for answer in COUNTS[1:4]), ("not reviewed", "open"), ("all", "parts")]
    lines = [f"{'':14}{'flagged':>12}{'not flagged':>14}"]
    for title, key in rows:
        note = "   left out of all rates" if key == "unsure" else ""
        lines.append(f"{title:14}{parts[key]['flagged']:>12,}{parts[key]['not flagged']:>14,}{note}")
    return lines


def _of_verdict(summary: dict[str, Any], name: str) -> str:
    share = summary[f"defects of {name}"]
    k, n = share["defects"], share["reviewed"]
    if n == 0:
        is_empty = summary["parts"]["parts"][name] == 0
        if not is_empty and summary["parts"]["unsure"][name]:
            return f"No part that is {name} is marked as a defect or as fine."
        return f"{'There are no parts that are' if is_empty else 'No answer about a part that is'} {name}."
    verb = "is a defect" if k == 1 else "are defects"
    parts = f"{n:,} {name} part{'' if n == 1 else 's'}"
    return f"Of {parts} with an answer, {k:,} {verb}: {_percent(k / n)} {_interval(share['interval'])}."


def _rates(summary: dict[str, Any]) -> list[str]:
    lines = ["Over all parts:"]
    for title, key, what in (
        ("False alarms", "false-alarm rate", "of the good parts are flagged"),
        ("Missed defects", "miss rate", "of the defective parts are not flagged"),
    ):
        found = summary[key]
        if found["rate"] is None:
            lines.append(f"  {title}: the rate cannot be estimated. {_what_to_do(summary, found['missing'])}")
        else:
            lines.append(f"  {title}: {_percent(found['rate'])} {what} {_interval(found['interval'])}.")
    lines += [
        "The numbers in brackets are 95 % intervals: the range in which the true value is expected. Few answers give a "
        "wide range.",
        "The rates over all parts hold only if the reviewed parts were chosen at random among the flagged parts, and "
        "among the parts that are not flagged (or if all of them were reviewed). If you reviewed the most suspicious "
        "parts first, the rates are wrong. On the page, 'Sort by: random order' gives a fair choice.",
    ]
    if n := summary["changed decisions"]:
        lines.append(f"The decisions about {n:,} parts differ from those on the page. The rates allow for this.")
    if n := summary["learnt"]:
        start = f"ATTENTION: the model has learnt {n:,} of the reviewed parts. It knows them, so that "
        if summary["decisions"]["source"] == "file":
            lines.append(f"{start}the rates are too good if it decided after that, as with --rescore.")
        else:
            lines.append(f"{start}the rates are too good. Review new parts for a fair result.")
    more = summary["to review"]["not flagged"]
    if more and summary["miss rate"]["rate"] is not None:
        lines.append(f"For a narrower range of missed defects, review {more:,} more parts that are not flagged.")
    return lines


def _what_to_do(summary: dict[str, Any], missing: str) -> str:
    if missing in ("flagged", "passed"):
        name = "flagged" if missing == "flagged" else "not flagged"
        what = "is marked as a defect or as fine" if summary["parts"]["unsure"][name] else "has an answer"
        if summary["changed decisions"]:
            return f"No part that is {name}, and was {name} on the page, {what}. Review some of them, in random order."
        if summary["parts"]["open"][name] == 0:
            return f"All parts that are {name} are marked as unsure."
        n = summary["to review"][name]
        return f"No part that is {name} {what}. Review {n:,} of them, in random order."
    if missing == "changed":
        return (
            "In a group of parts whose decision has changed since the page was made, no part is marked as a defect or "
            "as fine. Review some of them."
        )
    if missing == DEFECT:
        return "No reviewed part is a defect. Review more parts, or check defects that you know."
    return "No reviewed part is fine. Review more parts."


def _thresholds(summary: dict[str, Any]) -> list[str]:
    found = summary["thresholds"]
    if found is None:
        if summary["decisions"]["source"] == "file":
            return ["No other thresholds are proposed, because the scores are not known to be of this model."]
        return ["No other thresholds are proposed: each product of the model has its own threshold."]
    n_defects, n_fine = (sum(summary["parts"][key].values()) for key in (DEFECT, FINE))
    lines = [
        f"Other thresholds, and what they do with your {n_defects:,} defects and {n_fine:,} fine parts (threshold as "
        "on the page: a higher score is flagged):",
        f"  {'':34}{'threshold':>10}{'defects found':>15}{'fine flagged':>14}{'promise':>12}",
    ]
    for one in found:
        promise = "none" if one["promised rate"] is None else f"{100 * one['promised rate']:.3g} %"
        effect = f"{one['defects found']:>15,}{one['fine flagged']:>14,}"
        lines.append(f"  {_title(one):34}{one['anomaly score']:>10.4g}{effect}{promise:>12}")
    n = summary["calibration images"]
    lines.append(
        "Promise: at most this fraction of good parts is flagged on average, if they are like the calibration images. "
        f"With {n:,} calibration images, the smallest possible promise is {100 / (n + 1):.2g} %."
    )
    if any(one["name"] in ("all defects", "no fine part") for one in found):
        lines.append("The last rows were chosen with your answers. New parts can differ: check them with new answers.")
    if any(one["promised rate"] is not None and one["promised rate"] > _MOST for one in found):
        lines.append("A promise above 50 % is of no use: most good parts can be flagged. No command sets it.")
    if commands := [one for one in found if one["command"]]:
        lines += ["", "Commands that set these thresholds:"]
        for one in commands:
            lines += [f"  {_title(one)}:", f"    {one['command']}"]
    return lines


def _title(one: dict[str, Any]) -> str:
    if one["name"] == "promised":
        return f"promise of {100 * one['promised rate']:g} %"
    return {
        "current": "present threshold",
        "all defects": "flags all your defects",
        "no fine part": "flags none of your fine parts",
    }[one["name"]]


def _percent(rate: float) -> str:
    return f"{100 * rate:.2g} %" if rate < 0.1 else f"{100 * rate:.0f} %" if rate in (0, 1) else f"{100 * rate:.3g} %"


def _interval(limits: Sequence[float]) -> str:
    low, high = (f"{100 * limit:.2g}" if limit < 0.0995 else f"{100 * limit:.0f}" for limit in limits)
    return f"({low} to {high} %)"
