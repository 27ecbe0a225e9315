"""What gradient masking would look like in the records of an evaluation."""

import itertools
import json
import re
from collections.abc import Sequence

from jax_advtrain.evaluation.records import CLEAN, WORST_OF, Record, radii

MASKING_TOLERANCE = 0.02  # CE-PGD may be this much weaker than another attack before the result says so
RISE_TOLERANCE = 0.01  # a larger radius may raise accuracy by this much before the result says so
SQUARE_TOLERANCE = 0.002  # a query attack may be this much stronger than the gradient attacks
STEPS_TOLERANCE = 0.005  # more steps may leave this much more right
_ROUNDING = 1e-12  # a gap of exactly the tolerance is none, whatever the last bits of two quotients


def masking_warnings(records: Sequence[Record]) -> list[str]:
    """Lines on what gradient masking would look like; empty where nothing does.

    Four signs: at some (norm, epsilon) the strongest PGD on cross entropy is weaker than another attack by
    more than 2 points; Square, which sees no gradients, is stronger than all attacks that do by more than 0.2; the same
    attack with more steps is weaker by more than 0.5; an attack's accuracy rises by more than 1 point as epsilon grows
    (noise excepted: it is drawn, not searched).
    """
    lines = []
    for split in dict.fromkeys(record.split for record in records):
        here = [record for record in records if record.split == split]
        lines += _weak_cross_entropy(here, split) + _beaten_by_queries(here, split)
        lines += _more_steps(here, split) + _rising(here, split)
    return lines


def is_cross_entropy_pgd(record: Record) -> bool:
    """True for the attack most people evaluate with: PGD on cross entropy (ce, bce for one logit; of segmentation what
    training descends)."""
    loss = record.settings.get("loss", record.attack.rsplit("-", 1)[-1])
    return record.attack.startswith("pgd") and loss in ("ce", "bce", "task")


def _weak_cross_entropy(records, split) -> list[str]:
    lines = []
    for norm, epsilon in radii(records):
        attacks = [r for r in records if (r.norm, r.epsilon) == (norm, epsilon) and r.attack != WORST_OF]
        usual = [r for r in attacks if is_cross_entropy_pgd(r)]
        others = [r for r in attacks if not is_cross_entropy_pgd(r)]
        if not usual or not others:
            continue
        best, other = (min(group, key=lambda r: r.accuracy) for group in (usual, others))
        gap = best.accuracy - other.accuracy
        if gap > MASKING_TOLERANCE + _ROUNDING:
            lines.append(
                f"{split}, {norm} epsilon {epsilon:.4g}: the strongest PGD on cross entropy ({best.attack}) "
                f"leaves {best.accuracy:.1%} right, {other.attack} only {other.accuracy:.1%} "
                f"({100 * gap:.1f} points fewer): gradient masking is the first suspicion, do not report the "
                "cross-entropy figure alone"
            )
    return lines


def _asks_only(record: Record) -> bool:
    return record.attack.startswith("square")


def _climbs(record: Record) -> bool:
    """True for single attacks that follow gradients; ensembles hold Square themselves."""
    others = r"^(square|autoattack|worst-of)|\bnoise\b"
    return record.norm is not None and re.search(others, record.attack) is None


def _beaten_by_queries(records, split) -> list[str]:
    lines = []
    for norm, epsilon in radii(records):
        at = [r for r in records if (r.norm, r.epsilon) == (norm, epsilon)]
        asking, climbing = [r for r in at if _asks_only(r)], [r for r in at if _climbs(r)]
        if not asking or not climbing:
            continue
        best, other = (min(group, key=lambda r: r.accuracy) for group in (climbing, asking))
        gap = best.accuracy - other.accuracy
        if gap > SQUARE_TOLERANCE + _ROUNDING:
            lines.append(
                f"{split}, {norm} epsilon {epsilon:.4g}: {other.attack}, which sees no gradients, leaves "
                f"{other.accuracy:.1%} right, the strongest attack that follows them ({best.attack}) "
                f"{best.accuracy:.1%} ({100 * gap:.1f} points more): the gradients lead astray (gradient masking)"
            )
    return lines


def _more_steps(records, split) -> list[str]:
    lines = []
    families: dict[tuple, list[Record]] = {}
    for record in records:
        if record.settings.get("num_steps") and record.norm is not None:
            same = {name: value for name, value in record.settings.items() if name != "num_steps"}
            key = (record.norm, record.epsilon, json.dumps(same, sort_keys=True, default=str))
            families.setdefault(key, []).append(record)
    for (norm, epsilon, _), members in families.items():
        members = sorted(members, key=lambda r: r.settings["num_steps"])
        pairs = [(few, many) for few, many in itertools.pairwise(members) if few.attack != many.attack]
        pairs = [pair for pair in pairs if pair[1].accuracy - pair[0].accuracy > STEPS_TOLERANCE + _ROUNDING]
        if pairs:
            few, many = max(pairs, key=lambda pair: pair[1].accuracy - pair[0].accuracy)
            lines.append(
                f"{split}, {norm} epsilon {epsilon:.4g}: {few.attack} leaves {few.accuracy:.1%} right, {many.attack} "
                f"with more steps {many.accuracy:.1%}: more steps don't help, so the loss is no guide (gradient "
                "masking)"
            )
    return lines


def _rising(records, split) -> list[str]:
    clean = [r for r in records if r.attack == CLEAN]
    lines = []
    for attack, norm in dict.fromkeys((r.attack, r.norm) for r in records if r.norm is not None):
        if re.search(r"\bnoise\b", attack):
            continue
        curve = sorted(clean + [r for r in records if (r.attack, r.norm) == (attack, norm)], key=lambda r: r.epsilon)
        rises = [(low, high) for low, high in itertools.pairwise(curve) if low.epsilon < high.epsilon]
        rises = [pair for pair in rises if pair[1].accuracy - pair[0].accuracy > RISE_TOLERANCE + _ROUNDING]
        if rises:
            low, high = max(rises, key=lambda pair: pair[1].accuracy - pair[0].accuracy)
            lines.append(
                f"{split}, {norm} {attack}: accuracy rises from {low.accuracy:.1%} to {high.accuracy:.1%} as "
                f"epsilon grows from {low.epsilon:.4g} to {high.epsilon:.4g}: the attack fails there (gradient "
                "masking, or too few steps)"
            )
    return lines
