"""Every threshold of the judge, and the error rate that it is derived from or what it was measured
against (benchmarks/README.md has the tables)."""

from __future__ import annotations

# --- similarity

# A client shares what the others share if it has at least this fraction of their typical loading.
# Mislabelled clients of the copying task reach 0.41; honest ones whose data overlaps the others' by
# half 0.44 to 0.65.
LINE = 0.45
# Chance of each of these errors: that a client with just that fraction is said to have less; that
# any honest norm of a round exceeds the round's own spread; that the signature of each of two
# clients is said to be unlike the others'; that what each of some clients shares with the others
# beside the common direction is said to be less (its root); that a client who shares nothing is
# said to share something with a trusted one's group, or errors by chance to be more than one thing
# in common; that any two who are left are linked; and, beside a trusted client, that a set of
# clients of one kind shows something of its own.
ERROR_RATE = 0.01
# A round is judged if a client that shares nothing would have been noticed with this probability.
POWER = 0.9
# Chance that a set of clients shows something of its own in a cohort of one kind of clients, and
# the least that it must be, of what two typical other clients share: honest clients that share data
# besides measured at most 0.23, contaminated ones of a pretrained model 0.26 and more.
MINORITY_P, OWN_SHARE = 1e-4, 0.25
# And a set of three or more only if those left without any one member show so much by chance; and
# the chance that the signature of any client of one kind is said to be odd: honest clients of mixed
# recipes measured 1.0e-3 and more, 21 of 23 single contaminated ones less (tuning seeds).
LEFT_P = 1e-3
# A second group larger than this share of the first leaves no majority.
SECOND_GROUP_SHARE = 0.7

# --- copies

# Delta weights this alike are one vote (any gauge, any positive factor).
DUPLICATE_COSINE = 0.999
# Two clients are nearly the same when no more of their distance (1 - similarity) is left than this
# share of what their similarities to the others lead to expect.
COPY_DISTANCE = 0.4

# --- sizes

# Beyond these, over the median or beyond the round's own spread, a client counts as if its norm
# were that: no direction is free. Honest clients of one recipe measured at most 1.23 (whole) and
# 2.02 (in one module, once).
NORM_CAP, MODULE_NORM_CAP = 1.5, 2.0
# Directions the energy is spread over, over the members' median; noise has more. Honest clients
# measured 0.83 to 1.35.
SPREAD_RATIO = 2.0
