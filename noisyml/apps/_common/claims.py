"""``noisyml reproduce claims``: run both arms of each claim and say what they show."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from noisyml.apps._common.presence import missing
from noisyml.errors import UserError
from noisyml.reproduce.claims import choose_claims, claim_jobs, load_claims, tried
from noisyml.reproduce.jobs import distinct
from noisyml.reproduce.times import estimate
from noisyml.reproduce.verdicts import markdown, stored_results, write_verdicts

if TYPE_CHECKING:
    from noisyml.apps.reproduce import Typed


def reproduce_claims(typed: Typed) -> int:
    """Try claims, all or those named after ``claims``; the exit status.

    Pairs come first for all claims and then again, so that an interrupted trial has something on
    each.
    """
    from noisyml.apps.reproduce import run_jobs

    claims = choose_claims(load_claims(), typed.names[1:])
    if typed.noise_seeds:
        raise UserError(
            "Pairs of a claim vary both seeds together: say seeds=N, without noise_seeds."
        )
    claims = [replace(claim, pairs=typed.seeds or claim.pairs) for claim in claims]
    jobs, lacking = claim_jobs(claims, typed.extra, missing)
    for name, gone in lacking.items():
        print(f"  {name} is left out, missing: {gone}", file=sys.stderr)
    claims = [claim for claim in claims if claim.name in jobs]
    if not claims:
        raise UserError("None of these claims can be tried here: their data are missing.")
    pairs = max(claim.pairs for claim in claims)
    inside = [
        arm[pair]
        for pair in range(pairs)
        for claim in claims
        for arm in jobs[claim.name]
        if pair < len(arm)
    ]
    todo = distinct([job for job in inside if not job.is_finished(typed.runs)])
    print(f"{len(claims)} claims, {len(distinct(inside))} runs, {len(todo)} of them to do.")
    if typed.dry:
        for job in todo:
            print(job.command(typed.runs))
        known = stored_results()
        before = {
            job.key: known[name].seconds_per_run
            for name, arms in jobs.items()
            if name in known
            for job in itertools.chain(*arms)
        }
        arms_of_all = [(arm, 0.0) for arms in jobs.values() for arm in arms]
        print(estimate(arms_of_all, typed.runs, before=before))
        return 0
    status = run_jobs(todo, typed) if todo else 0
    trials = [trial for c in claims if (trial := tried(c, jobs[c.name], typed.runs))]
    print(markdown(trials))
    written = write_verdicts(trials, typed.out / "claims", typed.runs, jobs)
    print(f"table  {written} (also .json, .csv)")
    return status
