"""The numbers that stand for rows and answers which cannot be right, in one place."""

# A row that only fills its batch, as its video could not be read: metrics and losses leave it out. It is the label
# that cross-entropy ignores by default.
IGNORED_LABEL = -100

# An answer or a class that the model does not have: metrics count it as wrong, and losses leave it out.
UNKNOWN_LABEL = -1

# The video id of a pair that only fills its batch.
IGNORED_ID = -1

# The score of an option that a row does not have, below any cosine. The Trainer pads predictions with it, too.
MISSING_OPTION_SCORE = -100.0
