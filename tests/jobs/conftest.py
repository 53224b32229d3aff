"""`vsp` as a function, and a loop's folder to run it in."""

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


@pytest.fixture
def place(tmp_path):
    """A folder with a loop's YAML, shards to train on, shards held out."""
    from loop_folder import write_configs, write_faces

    write_configs(tmp_path)
    write_faces(tmp_path / "data" / "a.tar", 8)
    write_faces(tmp_path / "held" / "h.tar", 6)
    return tmp_path


@pytest.fixture
def iterate(vsp, place, one_thread):
    """Run `vsp iterate` on that folder's loop."""

    def run(*more):
        return vsp("iterate", place / "loop.yaml", place / "out", "--data", place / "data",
                   "--held-out", place / "held", "--device", "cpu", *more)  # fmt: skip

    return run


@pytest.fixture
def doubles(monkeypatch):
    """In the place of all that the steps of a loop do."""
    from loop_folder import Doubles

    found = Doubles()
    monkeypatch.setattr("jobs.iteration_training.train", found.train)
    monkeypatch.setattr("jobs.iteration_steps.clean", found.clean)
    monkeypatch.setattr("jobs.iteration_steps.figures_of", found.figures_of)
    monkeypatch.setattr("jobs.iteration_proof.conclude", found.conclude)
    return found
