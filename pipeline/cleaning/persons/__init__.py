"""Who is who in a set."""
