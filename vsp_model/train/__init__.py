"""Training of every stage: steps, losses and state, without a word about shards or Ray."""
