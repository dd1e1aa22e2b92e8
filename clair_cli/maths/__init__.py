"""The maths of `clair`: tensors in, frozen dataclasses out. No files, console, clock or chance.

The method is CLAIR (Collaborative Low-rank Alignment and Identifiable Recovery, arXiv
2605.21217, of which the abstract is what we have): many clients' matrix-valued updates share a
low-rank structure, some are contaminated; a low-rank plus block-sparse decomposition recovers
the shared subspace and the clients that share it; averaging what lies off the subspace refines
each of them. What is below is our reading; departures are marked where they are.

Notation: client k of K, module m, delta weight D_km = scaling_km B_km A_km, shape (out, in).
(B R, R^-1 A) is the same adapter, so nothing here depends on the factors, and no client's
dense D is ever formed.

    factors/
        stack           clients' factors side by side
        grams           the two Grams B'B and AA' that hold everything
        lowrank         sums of products as one product, exactly; cut to a rank with a known error
    evidence/
        similarity      how alike two clients are, in three stackings of the same tensors
        gather          one batch of modules -> norms, K x K tables, small cores (pure, per module)
    judge/
        groups          coherent groups from pairwise similarities
        structure       duplicates, groups, and the stacking in which sharing is found
        decompose       min 1/2 |M-L-S|^2 + lam1 |L|_* + lam2 sum_k |S_k|
        collaborate     its penalties from the stack, solved over the clients
        scores          alignment, energy inside the subspace, norms, place, spread
        verdicts        one documented rule joins alignment and decomposition
        judge           the above in order -> Judgement
        thresholds      every number that a verdict depends on
    merge/
        mean            weighted mean, distance to the plain mean, the rank to write
        from_grams      the leading part of the mean from Grams
        rounding        what writing costs
    refine/
        refine, gain    refined_k = Dbar + P(D_k - Dbar), and what it is worth where that is known
"""
