"""What the first page of a report says: which setting is best, in words and in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rnnsparse.reporting.compare import COLUMNS, SPARSITY, Setting, Statistic
from rnnsparse.reporting.markup import boxed, breakable, header, swatch, text
from rnnsparse.reporting.ranking import Ranked, ranked, standing

BITS = ("bits_per_character", "test_bits_per_character")
# Connections are what a setting was given, and that more positions were active is neither good nor bad.
BETTER: dict[str, Callable[[Sequence[float]], float]] = {
    "bits_per_character": min,
    "test_bits_per_character": min,
    "training_flops_vs_dense": min,
    "flops_per_character": min,
    "characters_per_second": max,
    "peak_memory_bytes": min,
}
EXACT = {"training_flops_vs_dense", "flops_per_character"}  # counted, not measured
ABOUT_RANKING = (
    "Settings are ranked against those with the same sparsity, on the same text. Numbers are means ± sample standard "
    "deviations over seeds. The best of each column is marked; ≈ marks what is behind it by no more than noise: the "
    "difference of two means is within what Student's t allows at 5 % with the spread over seeds pooled over the "
    "ranked settings, corrected for as many comparisons with the best. Nothing says that ≈ are equal, more seeds may "
    "tell them apart. Speed and memory depend on the machine and on what else it did. Bits per character are those "
    "at the end of training on the whole validation text, and on the test text if measured."
)


def answer(settings: Sequence[Setting]) -> str:
    """Return a line for each group of settings that can be ranked; nothing for one setting."""
    if len(settings) < 2:
        return ""
    return f'<ul class="answer">{"".join(f"<li>{_line(group)}</li>" for group in ranked(settings))}</ul>'


def _line(group: Ranked) -> str:
    best, *others = group.settings
    names = [_name(setting, group) for setting in group.settings]
    said = f"{_heading(group)}: <b>{names[0]}</b>, {_bits(best)} bits per character"
    if not others:
        return f"{said}{', the reference' if group.sparsity == 0 else ', alone'}."
    ahead = [f"{name} (+{other.bits.mean - best.bits.mean:.4f})" for name, other in zip(names[1:], others, strict=True)]
    if all(len(setting.runs) == 1 for setting in group.settings):
        return f"{said}; next {ahead[0]}. One run each, so how much of it is chance is not known."
    places = standing([setting.bits for setting in group.settings])[1:]
    close = [
        name
        for name, other, place in zip(ahead, others, places, strict=True)
        if place == "close" or other.bits.mean == best.bits.mean
    ]
    if not close:
        return f"{said}, ahead of all others by more than noise; next {ahead[0]}."
    return f"{said}; these seeds do not tell it from {_listed(close)}."


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{'; '.join(words[:-1])}; or {words[-1]}"


def _bits(setting: Setting) -> str:
    deviation = setting.bits.deviation
    return f"{setting.bits.mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _heading(group: Ranked) -> str:
    where = "Any sparsity" if group.sparsity is None else f"Sparsity {group.sparsity:g}" if group.sparsity else "Dense"
    return text(", ".join([where, *group.text]))


def _name(setting: Setting, group: Ranked) -> str:
    return text(setting.label if group.sparsity is None else setting.label_without(SPARSITY))


def table_of_settings(settings: Sequence[Setting], colours: Mapping[str, str]) -> str:
    """Return all settings, the best first within each group; names lead to `#setting-N`, N in order of `settings`."""
    columns = [column for column in COLUMNS if any(setting.statistic(column[1]) for setting in settings)]
    titles = ["setting", "seeds"]
    for title, field, _ in columns:
        titles += [title, "behind the best"] if field == BITS[0] and len(settings) > 1 else [title]
    number = {id(setting): i for i, setting in enumerate(settings, start=1)}
    groups = ranked(settings)
    bodies = []
    for group in groups:
        cells: list[list[str]] = [[f"<td>{len(setting.runs)}</td>"] for setting in group.settings]
        for _, field, show in columns:
            numbers = [setting.statistic(field) for setting in group.settings]
            places = standing(numbers, BETTER[field]) if field in BETTER else ["" for _ in numbers]
            if field in EXACT:
                places = [place if place == "best" else "" for place in places]
            for row, one, place in zip(cells, numbers, places, strict=True):
                row.append(_cell(one, show, place, always=field in BITS))
                if field == BITS[0] and len(settings) > 1:
                    row.append(_behind(one, numbers[0]))
        rows = [
            f'<tr><th scope="row">{swatch(colours[setting.method])}'
            f'<a href="#setting-{number[id(setting)]}">{breakable(_name(setting, group))}</a></th>{"".join(row)}</tr>'
            for setting, row in zip(group.settings, cells, strict=True)
        ]
        if len(groups) > 1:
            rows.insert(
                0, f'<tr class="group"><th scope="rowgroup" colspan="{len(titles)}">{_heading(group)}</th></tr>'
            )
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    return boxed(f"<table>{header(titles)}{''.join(bodies)}</table>", "all settings")


def _cell(number: Statistic | None, show: Callable[[Statistic], str], place: str, always: bool) -> str:
    """Return mean and spread, the latter where it is more than nothing or `always`."""
    if number is None:
        return "<td>–</td>"
    mean, deviation = show(Statistic(number.mean, None, 1)), number.deviation
    if place == "best":
        mean = f'<span class="best">{mean}<span class="unseen"> (best)</span></span>'
    elif place == "close":
        mean = f'<span title="behind the best by no more than noise">≈ {mean}</span>'
    if deviation is None:
        return f"<td>{mean}</td>"
    spread = show(Statistic(deviation, None, 1))
    shown = always or spread != show(Statistic(0.0, None, 1))
    return f"<td>{mean}{f' <small>± {spread}</small>' if shown else ''}</td>"


def _behind(number: Statistic | None, best: Statistic | None) -> str:
    if number is None or best is None or number is best:
        return "<td>–</td>"
    return f"<td>+{number.mean - best.mean:.4f}</td>"
