"""Search of one's own videos: the index, its vectors, and what is shown of the hits."""
