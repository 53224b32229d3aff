"""Training and cleaning in turns: figures, stop rule, proof."""
