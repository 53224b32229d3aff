"""A Ray for the commands that want one, and `vsp` as a function."""

import pytest


@pytest.fixture(scope="session")
def ray_started():
    """One embedded Ray for the whole session; whichever test needs it first starts it."""
    from pipeline.pools import ray as pools

    ours = pools.start_embedded(num_workers=2)
    yield pools.ray
    if ours:
        pools.ray.shutdown()


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
