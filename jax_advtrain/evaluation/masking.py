"""What gradient masking would look like in the records of an evaluation."""

import itertools
import re
from collections.abc import Sequence

from jax_advtrain.evaluation.records import CLEAN, WORST_OF, Record, radii

MASKING_TOLERANCE = 0.02  # CE-PGD may be this much weaker than another attack before the result says so
RISE_TOLERANCE = 0.01  # a larger radius may raise accuracy by this much before the result says so
_ROUNDING = 1e-12  # a gap of exactly the tolerance is none, whatever the last bits of two quotients


def masking_warnings(records: Sequence[Record]) -> list[str]:
    """Lines on what gradient masking would look like; empty where nothing does.

    Two signs: at some (norm, epsilon) the strongest PGD on cross entropy is weaker than another attack by
    more than 2 points; an attack's accuracy rises by more than 1 point as epsilon grows (noise excepted: it
    is drawn, not searched).
    """
    lines = []
    for split in dict.fromkeys(record.split for record in records):
        here = [record for record in records if record.split == split]
        lines += _weak_cross_entropy(here, split) + _rising(here, split)
    return lines


def is_cross_entropy_pgd(record: Record) -> bool:
    """True for the attack most people evaluate with: PGD on cross entropy (ce, or bce for one logit)."""
    loss = record.settings.get("loss", record.attack.rsplit("-", 1)[-1])
    return record.attack.startswith("pgd") and loss in ("ce", "bce")


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
