"""Every threshold of the judge, and what it was measured against."""

from __future__ import annotations

# --- groups

# Measured on trained cohorts (benchmarks/README.md): mislabelled and unrelated clients reach at
# most 0.41 of the group's level, honest ones whose data overlaps the others' by half 0.44 to
# 0.65. Between backdoored and clean clients the level is at most 0.64 of the smaller one.
LONER_RATIO = 0.45
GROUP_RATIO = 0.7
# Share of comparisons of an inside pair with a pair across that the inside one must win.
# Measured: contaminated groups and clients 0.98 to 1, parts of heterogeneous honest cohorts at
# most 0.93.
SEPARATION = 0.95
# Similarity between two groups that hold different amounts of one thing, over the geometric
# mean of their levels; contaminated groups measured at most 0.62.
ONE_THING = 0.75
# A group this many times as coherent as another is another thing. Parts of heterogeneous honest
# cohorts reach 1.2.
TIGHTER = 2.0


# --- loadings

# Loading right below a gap over the one right above it. Clean cohorts 0.72 and more, mislabelled
# clients at most 0.65.
GAP_RATIO = 0.7
# And the distance across, in standard deviations of the loadings above.
GAP_DEVIATIONS = 2.5
# Similarity between an inner group and the rest over the geometric mean of their levels.
# Backdoored clients 0.34 to 0.62, parts of clean heterogeneous cohorts 0.57 and more.
INNER_RATIO = 0.62
# The least own level of an inner group's client over its similarity to the rest, and of the
# rest's clients likewise. Backdoored 1.7 and more with 1.0 and more; in clean cohorts the one is
# at most 1.5 where the other is at least 1.
INNER_PREFERENCE, REST_PREFERENCE = 1.6, 1.0
MIN_INNER = 3
# Two clients are nearly the same when no more of their distance (1 - similarity) is left than this
# share of what their similarities to the others lead to expect.
COPY_DISTANCE = 0.4
MIN_WITH_COPIES = 5
# What a client is similar to others by: above what 40 % who act together can set, and below what
# one of two equal groups sees inside.
COPY_QUANTILE = 0.6


# --- structure

# Delta weights this alike are one vote (any gauge, any positive factor).
DUPLICATE_COSINE = 0.999
# A pair set apart as a group of two must be about as coherent as the main group: two honest
# clients that share other data besides are less so.
PAIR_LEVEL = 0.9
# A second coherent group larger than this share of the largest leaves no majority.
SECOND_GROUP_SHARE = 0.7
# Below this level a cohort in which nobody stands out shares too little to vouch for anybody.
MIN_LEVEL = 0.05
# Such a group is no match for one that is this many times as coherent.
FAR_TIGHTER = 4.0
# A client this well aligned with the main group is judged alone, whatever company it has.
# Members of contaminated groups measured at most 0.70.
AT_HOME = 0.8
# And so is one of several that are nearly the same, from where honest clients begin.
VICTIM = 0.55


# --- minority

# Cohorts of one kind of clients in which some are called a minority, at most.
MINORITY_P = 0.01


# --- sharing

# Least significant level, in standard errors over modules (with 4 modules or more).
MIN_T = 3.0


# --- outcome

# Below MIN_LEVEL a cohort is judged only if somebody stands out; below this one never.
LEAST_LEVEL = 0.03
# A relative duality gap above this is "did not converge".
MAX_GAP = 1e-3


# --- scores

# Below this many members a module's spread is not known well enough to single one out.
MIN_MEMBERS = 6
# A module this far below what the client's other modules lead to expect is odd.
ODD_RATIO = 0.25


# --- size_scores

# Beyond these, a client counts as if its norm were that, whatever its verdict: no direction is
# free. Honest clients measured at most 1.23 (whole) and 2.02 (in one module).
NORM_CAP, MODULE_NORM_CAP = 1.5, 2.5


# --- verdicts

# Unrelated clients come out within a few hundredths of 0.
OPPOSITE_RATIO = 0.1
# An honest client whose data overlaps the others' by half can come down to 0.44 (measured).
DOUBT_RATIO = 0.5
# Below this no standard error makes a client doubtful: mislabelled ones reach 0.41 (measured).
DOUBT_FLOOR = 0.3
# A member is hardly ever this much less aligned than the others (Student's t).
MEMBER_P = 1e-3
# Norms over the set's median. Clients of one round differ by tens of percent; at 5 a client of
# ten outweighs half of the others.
NORM_SUSPICIOUS, NORM_CONTAMINATED = 2.5, 5.0
MODULE_NORM_SUSPICIOUS, MODULE_NORM_CONTAMINATED = 5.0, 10.0
NORM_VANISHING = 1e-3
# A doubtful client counts by what it shares with the others, but at least this much.
LEAST_SHARE = 0.2
# Distance of the core over the members' median distance; honest clients measured 0.75 to 1.35,
# data overlapping by half up to 1.7. Far out is bounded, far in is what a copied mean looks like.
CORE_FAR, CORE_NEAR = 3.0, 0.25
# Directions the energy is spread over, over the members' median; honest 0.83 to 1.19 measured.
SPREAD_RATIO = 2.0
# A spread-out client at least this well aligned is only suspicious.
SPREAD_ALIGNED = 0.9
