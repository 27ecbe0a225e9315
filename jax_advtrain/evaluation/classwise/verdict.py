"""The diagnosis in a few words: which classes are weak, how sure that is, and what is within noise."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax_advtrain.evaluation.classwise.per_class import SIGNIFICANT
from jax_advtrain.evaluation.records import CLEAN, WORST_OF

_NAMED = 6  # classes in one line
AGREE = 0.8  # Spearman from which rankings are called consistent


def lines(facts: Mapping[str, Any]) -> list[str]:
    """Sentences, one line each, from the content of classwise.json without its verdict."""
    tables = {one["attack"]: one for one in facts["accuracy"]}
    worst, names = tables[WORST_OF], facts["class_names"]
    found = [_overall(facts, tables[CLEAN], worst), *_spread(worst, names), *_weak(worst, names)]
    found += _empty(worst, names) + _flow(facts, names) + _consistency(facts) + _gains(facts)
    found += _confidence(facts) + _weight_norm(facts) + _epochs(facts)
    return found


def _overall(facts, clean, worst) -> str:
    radius = f" at {facts['norm']} {facts['epsilon']:.4g}"
    return (
        f"{worst['n']} {facts['split']} samples{radius}: {clean['correct'] / clean['n']:.1%} right clean, "
        f"{worst['correct'] / worst['n']:.1%} under the worst of {len(facts['attacks'])} attacks"
    )


def _spread(worst, names) -> list[str]:
    found = worst["spread"]
    if found["discrepancy"] is None:
        return []
    best, weakest = found["best_class"], found["worst_class"]
    sure = found["worst_shares"][weakest]
    apart = (
        f"robust accuracy goes from {found['worst']:.1%} ({names[weakest]}) to {found['best']:.1%} ({names[best]}): "
        f"{100 * found['discrepancy']:.1f} points apart (95%: {100 * found['low']:.1f} to {100 * found['high']:.1f}; "
        f"equal classes would show up to {100 * found['chance']:.1f})"
    )
    if found["p_value"] >= SIGNIFICANT:
        return [f"{apart}: WITHIN NOISE, this many samples show no difference between classes"]
    certain = (
        f"{names[weakest]} is the weakest in {sure:.0%} of resampled sets"
        if sure >= 1 - SIGNIFICANT
        else f"which class is the weakest is not certain: {_contenders(found['worst_shares'], names)}"
    )
    return [f"{apart}; {certain}"]


def _contenders(shares: Sequence[float], names: Sequence[str]) -> str:
    order = sorted(range(len(shares)), key=lambda k: -shares[k])
    few = [f"{names[k]} {shares[k]:.0%}" for k in order if shares[k] >= SIGNIFICANT][:_NAMED]
    return f"{', '.join(few)} of resampled sets" if few else f"no class is it in {SIGNIFICANT:.0%} of resampled sets"


def _weak(worst, names) -> list[str]:
    rows, mean = worst["per_class"], worst["spread"]["mean"]
    p_values = worst["weakness_p"]
    weak = [k for k, p in enumerate(p_values) if p is not None and p < SIGNIFICANT]
    below = [
        k
        for k, row in enumerate(rows)
        if row["accuracy"] is not None and row["accuracy"] < mean and k not in weak and p_values[k] is not None
    ]
    if mean is None:
        return []
    by_accuracy = sorted(weak, key=lambda k: rows[k]["accuracy"])
    few = [
        f"{names[k]} ({rows[k]['accuracy']:.1%}, {rows[k]['low']:.1%} to {rows[k]['high']:.1%})" for k in by_accuracy
    ]
    more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
    found = [f"weak beyond noise: {', '.join(few[:_NAMED]) + more if few else 'no class'}"]
    if below:
        rest = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
        found.append(f"below the mean, but within noise: {', '.join(names[k] for k in below[:_NAMED])}{rest}")
    return found


def _empty(worst, names) -> list[str]:
    empty = [names[k] for k, row in enumerate(worst["per_class"]) if row["n"] == 0]
    if not empty:
        return []
    more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
    return [f"no sample, so nothing is known of: {', '.join(empty[:_NAMED])}{more}"]


def _flow(facts, names) -> list[str]:
    worst = next(one for one in facts["flow"] if one["attack"] == WORST_OF)
    if not worst["edges"]:
        return []
    few = [f"{names[e['source']]} to {names[e['target']]} {e['share']:.1%}" for e in worst["edges"][:3]]
    text = f"attacked images go mostly from {', '.join(few)}; {worst['symmetry']:.0%} of the flow is symmetric"
    if worst["grouped"] and worst["grouped"]["inside"] is not None:
        text += (
            f"; {worst['grouped']['inside']:.0%} stays inside its super-class "
            f"({worst['grouped']['expected']:.0%} if targets were drawn evenly)"
        )
    return [text]


def _consistency(facts) -> list[str]:
    found = facts["consistency"]
    # Between attacks: clean is none, and the worst case is made of the others.
    places = [i for i, name in enumerate(found["names"]) if name not in (CLEAN, WORST_OF)]
    pairs = [(found["spearman"][i][j], i, j) for i in places for j in places if i < j]
    known = [pair for pair in pairs if pair[0] is not None]
    if not known:
        return ["ranking of classes across attacks: nothing to compare"] if len(places) > 1 else []
    value, i, j = min(known)
    low, high = found["spearman_low"][i][j], found["spearman_high"][i][j]
    word = "consistent" if value > AGREE else "NOT consistent"
    left_out = f"; {len(pairs) - len(known)} pairs undefined" if len(known) < len(pairs) else ""
    return [
        f"ranking of classes across attacks: {word}, smallest Spearman {value:.2f} (95%: {low:.2f} to {high:.2f}; "
        f"{found['names'][i]} and {found['names'][j]}){left_out}"
    ]


def _gains(facts) -> list[str]:
    found = []
    for one in facts["gains"]:
        what = f"{one['stronger']} over {one['weaker']}"
        if one["mean"] is None:
            continue
        if one["p_value"] >= SIGNIFICANT:
            found.append(f"{what}: {100 * one['mean']:.1f} points, within noise")
            continue
        if one["share"] is None:
            found.append(f"{what}: weaker by {-100 * one['mean']:.1f} points")
            continue
        low, high = one["share_low"], one["share_high"]
        where = (
            "mainly on the weaker half"
            if low is not None and low > 0.5
            else "mainly on the stronger half"
            if high is not None and high < 0.5
            else "on which half is not certain"
        )
        found.append(
            f"{what}: gains {100 * one['mean']:.1f} points, {one['share']:.0%} of it on the weaker half of the classes "
            f"(95%: {low:.0%} to {high:.0%}): {where}"
        )
    return found


def _confidence(facts) -> list[str]:
    found = facts["temperature"]
    if found is None or None in found["mean"]:
        return []
    plain = found["temperatures"].index(1.0)
    best = min(range(len(found["mean"])), key=lambda t: found["mean"][t])
    gain = found["mean"][plain] - found["mean"][best]
    if best == plain or found["p_values"][best] >= SIGNIFICANT:
        return [f"temperature: none finds more than PGD-{found['num_steps']} itself, beyond noise"]
    return [
        f"temperature: PGD-{found['num_steps']} at T = {found['temperatures'][best]:g} finds {100 * gain:.1f} points "
        "more than at T = 1: the plain attack is too weak for this model"
    ]


def _weight_norm(facts) -> list[str]:
    found = facts["weight_norm"]
    if found["why_not"] is not None:
        return [f"weight norms: {found['why_not']}"]
    if found["spearman"] is None:
        few = len(found["norms"]) < 3
        return [f"weight norms: {'two classes are too few to say' if few else 'norms or accuracies are all alike'}"]
    text = f"Spearman {found['spearman']:.2f} (p = {found['spearman_p']:.2g}), Pearson {found['pearson']:.2f} (p = "
    text += f"{found['pearson_p']:.2g})"
    noise = "" if min(found["spearman_p"], found["pearson_p"]) < SIGNIFICANT else ": within noise"
    return [f"norm of a class's last weights against its robust accuracy: {text}{noise}"]


def _epochs(facts) -> list[str]:
    found = facts["epochs"]
    if found["why_not"] is not None:
        return [found["why_not"]]
    last = found["discrepancy_robust"][-1]
    if found["appears"] is None:
        return [f"over training: the robust discrepancy is within noise at the end ({100 * last:.1f} points)"]
    return [
        f"over training: the robust discrepancy is beyond noise from epoch {found['appears']} to the last one "
        f"({100 * last:.1f} points then, on validation)"
    ]
