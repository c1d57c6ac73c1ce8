"""Everything impure: models, hooks, generation, training, judging."""
