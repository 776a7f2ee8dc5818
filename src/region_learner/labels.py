"""Numbers that mark padding, and answers that a model cannot give."""

# Label of a padding row, whose video could not be read: metrics and losses ignore it. Cross-entropy ignores this label
# by default.
IGNORED_LABEL = -100

# Label of an answer or a class that the model does not have: metrics count it as wrong, and losses ignore it.
UNKNOWN_LABEL = -1

# Video id of a padding pair.
IGNORED_ID = -1

# Score of an option that a row does not have, below any cosine. The Trainer pads predictions with the same value.
MISSING_OPTION_SCORE = -100.0
