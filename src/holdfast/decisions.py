"""Decisions that are no class. Evidence holds these numbers, so they stay what they are."""

SILENT = -1  # scores that are not finite, or no answer
UNASKED = -2  # the model was not asked
REFUSED = -3  # the model will not answer
