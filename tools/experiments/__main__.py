"""`python tools/experiments`: run the missing trainings of the ablation and write its page.

Interrupted runs are resumed; results of an older setting are replaced. KEY=VALUE overrides values
of the setting in all runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from plan import CHEAP, VARIANTS
from report import SEEDS, draw, page, read_records, scores_of
from runs import Run, carry_out

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    variants = VARIANTS if options.all else CHEAP
    if unknown := set(options.variants or ()) - set(VARIANTS):
        raise SystemExit(f"no variant is named {', '.join(unknown)}: {', '.join(VARIANTS)}")
    results: Path = options.results / "ablation"
    for seed in options.seeds:
        for variant in options.variants or variants:
            run = Run(variant, seed, tuple(options.overrides))
            if not run.is_done(results):
                print(f"== {variant}, seed {seed}", flush=True)
                carry_out(run, options.data, options.runs / f"{variant}_{seed}", results)
    write_page(options.results, results)


def write_page(folder: Path, results: Path) -> None:
    """Write `ablation.md` and its plots from the results that exist."""
    records = read_records(results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ablation.md").write_text(page(records, results.name))
    draw(scores_of(records), results)
    print(f"{len(records)} results; the page is {folder / 'ablation.md'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tools/experiments", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--all", action="store_true", help="all variants, not the cheap ones alone")
    parser.add_argument("--variants", nargs="+", help=f"some of {', '.join(VARIANTS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument(
        "--data", type=Path, default=Path("datasets/camvid"), help="CamVid's folder"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    return parser


if __name__ == "__main__":
    main()
