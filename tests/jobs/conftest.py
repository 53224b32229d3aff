"""`vsp` as a function."""

import pytest


@pytest.fixture
def vsp(capsys):
    """Run `vsp ARGUMENTS` here; returns exit code, stdout and stderr."""
    from jobs.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run
