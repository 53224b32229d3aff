"""Where stages run: one interface, the same results."""
