"""Rates of the seam rule with a detector that errs, beside those of the first simulation of the rule.

    python tests/benchmarks/seam_simulation.py [--scenes 80] [--side 2048]

`tests/erring.py` says how it errs.
"""

import argparse
from pathlib import Path
from sys import path

path.insert(0, str(Path(__file__).resolve().parents[1]))

from erring import simulate

# Lost and all of each kind, as DESIGN.md gives them for 80 scenes.
BEFORE = {"small": "2 of 2005", "middle": "0 of 1220", "large": "3 of 215", "companion": "13 of 137"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=80)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    total = simulate(**vars(parser.parse_args()))
    print(f"{'':24}{'here':>16}{'before':>16}")
    for kind, name in zip(BEFORE, ("up to 56 px", "up to 192 px", "larger", "companions"), strict=True):
        print(f"{name + ', lost':24}{total[kind + ' lost']:>8} of {total[kind]:<5}{BEFORE[kind]:>16}")
    n = sum(total[kind] for kind in (*BEFORE, "knot"))
    print(f"{'doubled':24}{total['doubled']:>8} of {n:<5}{'0 of 3577':>16}")
    print(f"{'knots kept':24}{total['knot kept'] / max(total['knot'], 1):>14.0%}  {'18%':>16}")
