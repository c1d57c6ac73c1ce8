"""The miniature world whose personas are planted, so that every method can be scored against the truth."""
