"""The `vsp` command: one thin module per job."""
