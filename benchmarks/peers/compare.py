"""The table of ours against the originals from the kept verdicts (either environment).

    python benchmarks/peers/compare.py [--data=/tmp/peers_data] [--out=benchmarks/results/peers.md]

Robust accuracy in percent on the samples that both sides attacked, ours minus the peer's in points (below 0: ours is
stronger), and on how many samples only one side succeeds. For minimum-norm attacks robust accuracy is read off at the
case's radius, and the median distance is compared too.
"""

import argparse
from pathlib import Path

import numpy as np
import verdicts
from settings import CASES, SETTINGS, epsilon_of

WEAKER = 0.5  # points
HEAD = [
    "network",
    "attack",
    "radius",
    "n",
    "peer",
    "ours %",
    "peer %",
    "difference",
    "only ours / only peer",
    "distance",
]


def rows_of(data: str, who: str) -> list[list[str]]:
    rows = []
    for case_name, case in CASES.items():
        for name, setting in SETTINGS.items():
            mine = verdicts.path(data, case_name, name, who)
            for place in sorted(mine.parent.glob(f"{name}@*.npz")):
                peer = place.stem.split("@")[1].replace("_", " ")
                if peer.startswith("ours"):
                    continue
                if not mine.exists():
                    rows.append([case_name, name, "", "", peer, "-", "", "", "", ""])
                    continue
                epsilon, pair = epsilon_of(case, setting), [np.load(p) for p in (mine, place)]
                count = min(len(one["wrong"]) for one in pair)
                pair = [{k: v[:count] for k, v in one.items() if k != "seconds"} for one in pair]
                rows.append([case_name, name, *row(pair, epsilon, setting.minimum, peer, count)])
    return rows


def row(pair, epsilon: float, minimum: bool, peer: str, count: int) -> list[str]:
    fell = [verdicts.fooled(one, epsilon) for one in pair]
    robust = [100 * (1 - f.mean()) for f in fell]
    difference = robust[0] - robust[1]
    marks = " (!)" if difference > WEAKER else ""
    outside = 0 if minimum else int((pair[1]["wrong"] & ~fell[1]).sum())
    note = f" ({outside} outside the ball)" if outside else ""
    if pair[1]["broken"].any():
        note += f" ({int(pair[1]['broken'].sum())} NaN or outside the box)"
    distance = " / ".join(f"{verdicts.median(one):.4f}" for one in pair) if minimum else ""
    only = f"{int((fell[0] & ~fell[1]).sum())} / {int((fell[1] & ~fell[0]).sum())}"
    numbers = [f"{robust[0]:.1f}", f"{robust[1]:.1f}{note}", f"{difference:+.1f}{marks}", only, distance]
    return [f"{epsilon:.4g}", str(count), peer, *numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="/tmp/peers_data")
    parser.add_argument("--who", default="ours")
    parser.add_argument("--out")
    parser.add_argument("--only_weaker", action="store_true")
    args = parser.parse_args()
    rows = rows_of(args.data, args.who)
    if args.only_weaker:
        rows = [r for r in rows if "(!)" in r[7]]
    text = "\n".join("| " + " | ".join(line) + " |" for line in [HEAD, ["---"] * len(HEAD), *rows])
    print(text)
    if args.out:
        Path(args.out).write_text(f"# Ours against the originals, same weights and images\n\n{text}\n")


if __name__ == "__main__":
    main()
