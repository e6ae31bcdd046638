"""Keep the results of `noisyml reproduce claims` in the package, and their tables in the pages.

Claims that were not among those tried keep the results they have.

noisyml reproduce claims seeds=3
python scripts/keep_claims.py outputs/reproduce/claims.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from noisyml.reproduce.claims import RESULTS_FILE, Trial, load_claims
from noisyml.reproduce.verdicts import markdown, short_markdown, stored_trials
from noisyml.storage.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- claims -->\n", "<!-- end of claims -->"


def with_table(page: str, table: str) -> str:
    """The text of a page with another table between its marks.

    Raises:
        SystemExit: the page has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"A page lacks the marks {BEGIN.strip()} and {END}.")
    return before + begin + table + end + after


def counted(trials: list[Trial]) -> str:
    """How many claims have which verdict, in words."""
    verdicts = [trial.verdict for trial in trials]
    kinds = [k for k in ("holds", "does not show", "contradicted", "open") if k in verdicts]
    return ", ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds)


def main() -> int:
    """Write the file of the package and both pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="claims.json of `noisyml reproduce claims`")
    typed = parser.parse_args()
    known = json.loads(RESULTS_FILE.read_text(encoding="utf-8"))
    known |= json.loads(typed.results.read_text(encoding="utf-8"))
    results = {claim.name: known[claim.name] for claim in load_claims() if claim.name in known}
    write_atomically(RESULTS_FILE, json.dumps(results, indent=1) + "\n")
    trials = stored_trials(load_claims())
    for page, table in (("README.md", short_markdown), ("docs/reproduce.md", markdown)):
        file = ROOT / page
        write_atomically(file, with_table(file.read_text(encoding="utf-8"), table(trials)))
    print(f"{len(trials)} claims: {counted(trials)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
