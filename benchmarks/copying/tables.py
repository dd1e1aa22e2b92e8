"""Tables of `copying_rounds.py`: means and intervals over seeds, as text.

Numbers in a cell are mean and 1.96 standard errors over seeds. Counts of verdicts are sums over
seeds with 95 % Wilson intervals, which take clients for independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MEASURES = {
    "own_accuracy": "own words: accuracy, %",
    "own_loss": "own words: loss, 0.01 nats a word",
    "new_accuracy": "all new words: accuracy, %",
    "new_loss": "all new words: loss, 0.01 nats a word",
    "backdoor": "backdoor success, whole sequences, %",
    "backdoor_words": "backdoor success, single words, %",
    "error": "distance to the mean of the truly benign, in its norm, %",
}
SHORT = {
    "factor-mean": "factors", "geometric-median": "geomed", "coordinate-median": "c-med",
    "trimmed-mean": "trimmed", "multi-krum": "m-krum", "centered-clipping": "c-clip",
    "norm-z-score": "norm-z", "pooled-pca": "pca", "clair merge": "merge",
    "clair refine": "refine",
}  # fmt: skip


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and 1.96 standard errors of it (0 for a single value)."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    variance = sum((x - mean) ** 2 for x in values) / (len(values) - 1)
    return mean, 1.96 * math.sqrt(variance / len(values))


def wilson(hits: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of a share, 0 to 1: Wilson, "Probable Inference", JASA 22, 1927."""
    if not total:
        return 0.0, 1.0
    share, extra = hits / total, z * z / total
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / total + extra / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per init, kind and share: [mean, half width] of every measure and column, verdict
    counts over seeds, and Wilson intervals of hits, false flags and undetermined rounds."""
    rows: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for cell in cells:
        rows.setdefault((cell["init"], cell["kind"], cell["share"]), []).append(cell)
    result = []
    for (init, kind, share), some in rows.items():
        totals = {
            name: sum(one["verdicts"][name] for one in some)
            for name, value in some[0]["verdicts"].items()
            if isinstance(value, int)
        }
        shares = {"hits": "bad", "false_flags": "honest", "undetermined": ""}
        intervals = {k: wilson(totals[k], totals.get(of, len(some))) for k, of in shares.items()}
        columns = {
            column: {
                measure: mean_interval([one["scores"][column][measure] for one in some])
                for measure in values
            }
            for column, values in some[0]["scores"].items()
        }
        result.append({
            "init": init, "kind": kind, "share": share, "rounds": len(some), "verdicts": totals,
            "intervals": intervals, "columns": columns,
        })  # fmt: skip
    return result


def ordered(names: Sequence[str]) -> list[str]:
    """Columns in the order of the tables."""
    first, last = ["base", "local", "attack"], ["clair merge", "clair refine", "oracle"]
    return first + [name for name in names if name not in first + last] + last


def label(row: Mapping[str, Any]) -> str:
    """Title of a row."""
    return f"{row['init']:4} {row['kind']:8}{100 * row['share']:3.0f}"


def measure_table(rows: Sequence[Mapping[str, Any]], measure: str) -> Iterator[str]:
    """Lines of one measure's table."""
    names = ordered(list(rows[0]["columns"]))
    names = [n for n in names if any(measure in row["columns"].get(n, {}) for row in rows)]
    yield MEASURES[measure]
    yield f"{'init kind      %':16}" + "".join(f"{SHORT.get(name, name)[:7]:>8}" for name in names)
    for row in rows:
        pairs = [row["columns"].get(name, {}).get(measure) for name in names]
        shown = [f"{100 * p[0]:.0f}±{100 * p[1]:.0f}" if p else "-" for p in pairs]
        yield label(row) + "".join(f"{one:>8}" for one in shown)
    yield ""


def verdict_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of the table of verdicts."""
    yield "verdicts: counts over seeds, 95 % intervals in %"
    yield (
        f"{'init kind      %':16}{'hits/bad':>10} {'interval':>10} susp {'false/honest':>12} "
        f"{'interval':>10} susp {'undetermined':>12} {'interval':>10} {'refined':>8}"
    )
    for row in rows:
        counts = row["verdicts"]
        low = {k: f"{100 * a:.1f}..{100 * b:.1f}" for k, (a, b) in row["intervals"].items()}
        hits = f"{counts['hits']}/{counts['bad']}"
        false = f"{counts['false_flags']}/{counts['honest']}"
        refined = f"{counts['refined']}/{counts['honest']}"
        undetermined = f"{counts['undetermined']}/{row['rounds']}"
        yield (
            f"{label(row)}{hits:>10} {low['hits']:>10} {counts['suspicious_bad']:4} "
            f"{false:>12} {low['false_flags']:>10} {counts['suspicious_honest']:4} "
            f"{undetermined:>12} {low['undetermined']:>10} {refined:>8}"
        )
