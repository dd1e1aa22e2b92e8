"""The maths of `clair`: tensors in, frozen dataclasses out. No files, console, clock or randomness.

The method is CLAIR (Collaborative Low-rank Alignment and Identifiable Recovery, arXiv
2605.21217, of which the abstract is what we have): the delta weights of many clients share a
low-rank structure, and some clients are contaminated. A low-rank plus block-sparse decomposition
recovers the shared subspace and the clients that share it; averaging the parts off the subspace
refines each of these clients. The modules below are our reading of the abstract; each says where
it departs from it.

Notation: client k of K, module m, delta weight D_km = scaling_km B_km A_km, shape (out, in).
(B R, R^-1 A) is the same adapter in another gauge, so no result depends on the factors alone, and
no client's dense D is ever formed.

    factors/
        stack               clients' factors side by side
        common_components   the previous adapter subtracted from every client
        grams               the two Grams B'B and AA', from which norms and similarities follow
        lowrank             sums of products as one product, exactly; cut to a rank, error known
        factored_svd, coordinates, block_diagonal, roots
    evidence/
        similarity          how alike two clients are, in three stackings of the same tensors
        gather              one batch of modules -> norms, K x K tables, effective ranks
        overcomplete        the same where Grams would be larger than the layer
        pair_levels, own_sizes
    judge/
        pairs               how alike pairs of clients are, in units of what chance does
        factor              one common factor of them: every client's loading, and its error
        signature           sizes over the modules and number of directions, beside the others'
        minority, groups    who has something of their own; who belongs with whom
        copies, structure   near copies and duplicates, who have one vote; groups by stacking
        sizes, scores       how large a client may be; the numbers behind a verdict
        verdicts            one documented rule, its probability and how sure it is
        decompose, prox     min 1/2 |M-L-S|^2 + lam1 |L|_* + lam2 sum_k |S_k|
        collaborate         its penalties from the stack, solved over the clients: a second opinion
        outcome             the cases in which a cohort cannot be judged
        judge               the above in order -> Judgement
        thresholds          every number that a verdict depends on
    merge/
        mean                weighted mean, distance to the plain mean, the rank to write
        from_grams          the leading singular vectors of the mean, from Grams
        overcomplete        the same for over-complete stacks
        rounding            factors in the file's dtype, and the error of writing them
    refine/
        refine, gain        refined_k = Dbar + P(D_k - Dbar), and its gain where that is known
"""
