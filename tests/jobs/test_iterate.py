"""`vsp iterate`: its plan, its steps one after the other, where it ends, how it resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from loop_folder import AGAIN, ARMS, TRAININGS, WHOLE, write_faces

# ------------------------------------------------------------------------------------ order


def test_the_whole_loop_in_order(iterate, doubles, place):
    code, out, err = iterate()
    assert code == 0, err
    assert doubles.done == WHOLE
    assert "rule 5 ends the loop" in err
    assert (place / "out" / "rounds.md").read_text() == out
    assert "no difference can be detected" in out
    assert "level  share" in out


def test_a_second_run_does_nothing_again(iterate, doubles):
    assert iterate()[0] == 0
    doubles.done.clear()
    assert iterate()[0] == 0
    assert doubles.done == []


@pytest.mark.parametrize("step", ["round-0/clean", AGAIN[1], "proof/figures"])
def test_stopped_between_steps_it_goes_on_there(iterate, doubles, step):
    doubles.fails_at = step
    code, _, err = iterate()
    assert code == 75
    assert "to go on: vsp" in err
    assert doubles.done == WHOLE[: WHOLE.index(step)]
    doubles.fails_at = ""
    assert iterate()[0] == 0
    assert doubles.done == WHOLE


def test_a_signal_in_a_step_s_last_moment_ends_the_loop_after_it(iterate, doubles, monkeypatch):
    train = doubles.train

    def signalled(run, what):
        run.stop.set()
        return train(run, what)

    monkeypatch.setattr("jobs.iteration_training.train", signalled)
    assert iterate()[0] == 75
    assert doubles.done == TRAININGS[:1]
    monkeypatch.setattr("jobs.iteration_training.train", train)
    assert iterate()[0] == 0
    assert doubles.done == WHOLE


def test_two_rounds_clean_the_original_set_each_time(iterate, doubles, monkeypatch, place):
    sources = []
    clean = doubles.clean

    def noting(run, name, faces, model, ask):
        sources.append((name, Path(faces.shards).name, Path(model).parent.parent.parent.name))
        return clean(run, name, faces, model, ask)

    monkeypatch.setattr("jobs.iteration_steps.clean", noting)
    assert iterate("--rounds", 2, "--no-proof")[0] == 0
    assert sources == [("round-0/clean", "data", "round-0"), ("round-1/clean", "data", "round-1")]
    assert doubles.done[-1] == "round-2/train/restorer"


def test_cumulative_rounds_clean_what_the_last_one_gave(iterate, doubles, monkeypatch):
    sources = []
    clean = doubles.clean

    def noting(run, name, faces, model, ask):
        sources.append(faces.shards)
        return clean(run, name, faces, model, ask)

    monkeypatch.setattr("jobs.iteration_steps.clean", noting)
    assert iterate("--rounds", 2, "--no-proof", "--set", "cumulative=true")[0] == 0
    assert [Path(source).parent.name for source in sources][1] == "round-0"


def test_an_idle_round_ends_the_loop_and_the_proof_looks_at_it(iterate, doubles):
    doubles.changes = {"gain": 0.001}
    code, out, _ = iterate()
    assert code == 0
    assert doubles.done == [*TRAININGS, "round-0/clean", "round-0/figures", *ARMS, "proof/figures"]
    assert "rule 1" in out


def test_harm_ends_the_loop_before_anything_is_trained_on_it(iterate, doubles):
    doubles.changes = {"below": 0.5}
    assert iterate("--no-proof", "--rounds", 2)[0] == 0
    assert doubles.done == [*TRAININGS, "round-0/clean", "round-0/figures"]


def test_harm_in_the_second_round_leaves_the_first_for_the_proof(iterate, doubles, monkeypatch):
    trained_on = {}
    train, figures_of = doubles.train, doubles.figures_of

    def noting(run, what):
        trained_on[what.name] = what.faces.needs
        return train(run, what)

    def harmful(run, name, number, before, cleaned):
        doubles.changes = {"below": 0.5} if number else {}
        return figures_of(run, name, number, before, cleaned)

    monkeypatch.setattr("jobs.iteration_training.train", noting)
    monkeypatch.setattr("jobs.iteration_steps.figures_of", harmful)
    assert iterate("--rounds", 3)[0] == 0
    assert "round-2/train/prior" not in doubles.done
    assert trained_on["proof/cleaned/seed-0"] == "round-0/clean"
    assert trained_on["proof/raw/seed-0"] == ""


def test_nothing_cleaned_is_said_and_nothing_compared(iterate, doubles):
    doubles.accepted["round-0"] = 0
    code, out, _ = iterate()
    assert code == 0
    assert doubles.done == [*TRAININGS, "round-0/clean", "round-0/figures"]
    assert "nothing to compare" in out


def test_where_the_own_model_changes_nothing_another_cleans_for_the_proof(iterate, doubles):
    doubles.accepted["round-0"] = 0
    code, out, err = iterate("--set", "proof.cleaner=default")
    assert code == 0, err
    middle = ["proof/clean", "proof/cleaning/figures"]
    assert doubles.done == [*TRAININGS, "round-0/clean", "round-0/figures", *middle, *ARMS,
                            "proof/figures"]  # fmt: skip
    assert "cleaned by the built-in model" in out


def test_another_model_may_clean_and_nothing_need_be_trained(iterate, doubles):
    assert iterate("--model", "default", "--set", "stages=[]", "--no-proof")[0] == 0
    assert doubles.done == ["round-0/clean", "round-0/figures"]


def test_parts_of_a_proof_can_run_elsewhere(iterate, doubles):
    assert iterate("--only", "proof/raw")[0] == 0
    assert doubles.done == ["proof/raw/seed-0", "proof/raw/seed-1"]
    code, _, err = iterate("--only", "proof/cleaned")
    assert code == 2
    assert "needs round-0/clean" in err
    assert iterate()[0] == 0
    assert sorted(doubles.done) == sorted(WHOLE)


# ------------------------------------------------------------------------------ what is refused


def test_other_faces_than_before_are_refused(iterate, doubles, place):
    assert iterate()[0] == 0
    write_faces(place / "data" / "b.tar", 3)
    code, _, err = iterate()
    assert code == 2
    assert "made with other faces" in err


def test_other_settings_than_before_are_refused_where_they_matter(iterate, doubles, place):
    assert iterate()[0] == 0
    values = yaml.safe_load((place / "encoder.yaml").read_text())
    values["adam"] = {"lr": 0.5}
    (place / "encoder.yaml").write_text(yaml.safe_dump(values))
    code, _, err = iterate()
    assert code == 2
    assert "round-0/train/encoder: made with other settings" in err


def test_more_seeds_add_to_what_is_there_and_are_compared_anew(iterate, doubles):
    assert iterate()[0] == 0
    doubles.done.clear()
    assert iterate("--set", "proof.seeds=[0, 1, 2]")[0] == 0
    assert doubles.done == ["proof/raw/seed-2", "proof/cleaned/seed-2", "proof/figures"]


def test_a_missing_output_is_made_again(iterate, doubles, place):
    assert iterate()[0] == 0
    (place / "out" / AGAIN[2] / "model.safetensors").unlink()
    doubles.done.clear()
    assert iterate()[0] == 0
    assert doubles.done == [AGAIN[2]]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--only", "nothing"], "no such step; known: round-0/train/prior"),
        (["--set", "stages=[]"], "clean.model: trained needs stages"),
        (["--set", "rounds=4"], "rounds"),
        (["--set", "proof.file=none.yaml"], "none.yaml: no such file"),
    ],
)
def test_mistakes_are_one_line(iterate, doubles, arguments, line):
    code, _, err = iterate(*arguments)
    assert code == 2
    assert line in err
    assert doubles.done == []


def test_a_folder_of_others_is_refused(iterate, doubles, place):
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").write_text("")
    code, _, err = iterate()
    assert code == 2
    assert "holds files of others" in err


def test_a_damaged_record_is_named(iterate, doubles, place):
    assert iterate()[0] == 0
    (place / "out" / "_steps" / "round-0.clean.json").write_text("{")
    code, _, err = iterate()
    assert code == 2
    assert "round-0.clean.json: damaged" in err


# --------------------------------------------------------------------------------- plan, status


def test_the_plan_is_told_with_an_estimate_and_nothing_is_done(iterate, doubles, place):
    code, out, _ = iterate("-n")
    assert code == 0
    assert doubles.done == []
    assert not (place / "out").exists()
    settings, end, plan = out.partition("\n}\n")
    assert json.loads(settings + end)["max_minutes"] == 25
    lines = plan.splitlines()
    assert [line.split()[2] for line in lines[:-1]] == WHOLE
    assert lines[-1].startswith("left: about ")


def test_status_tells_what_is_done(iterate, doubles):
    doubles.fails_at = "round-0/clean"
    iterate()
    code, out, _ = iterate("--status")
    assert code == 0
    states = {line.split()[-3 if line.startswith("done") else 2]: line[:5] for line in
              out.splitlines()[:6]}  # fmt: skip
    assert states["round-0/train/restorer"] == "done "
    assert states["round-0/clean"] == "to do"


# ------------------------------------------------------------------------------ real trainings


@pytest.mark.slow
def test_a_training_that_takes_too_long_is_stopped_and_goes_on_with_more_minutes(iterate, place):
    slow = ("--only", "round-0/train/prior", "--no-proof")
    code, _, err = iterate(*slow, "--set", "max_minutes=0.000001")
    assert code == 1
    assert "of 8 images" in err
    assert "raise max_minutes" in err
    code, _, err = iterate(*slow)
    assert code == 0, err
    assert "going on from step 1" in err
    record = json.loads((place / "out" / "_steps" / "round-0.train.prior.json").read_text())
    assert record["facts"]["images"] == 8


@pytest.mark.slow
def test_real_generators_are_drawn_from_and_compared(iterate, doubles, monkeypatch, place):
    """Trainings, drawing and measuring are real; another set stands in for the cleaned one."""
    monkeypatch.undo()
    monkeypatch.setenv("VSP_WEIGHTS", str(place / "none"))
    monkeypatch.setattr("jobs.iteration_steps.clean", doubles.clean)
    monkeypatch.setattr("jobs.iteration_steps.figures_of", doubles.figures_of)
    doubles.changes = {"gain": 0.001}  # ends the loop: no second restorer
    code, out, err = iterate("--set", "stages=[]", "--model", "default")
    assert code == 0, err
    figures = json.loads((place / "out" / "proof" / "figures.json").read_text())
    assert len(figures["arms"]) == 8
    assert {each["reference"] for each in figures["comparisons"]} == {"raw set", "held-out"}
    assert all(each["num_seeds"] == 2 for each in figures["comparisons"])
    assert "thumbnail8" in out
    distances = [arm["distance"] for arm in figures["arms"]]
    assert len(set(distances)) == 8
    assert iterate("--set", "stages=[]", "--model", "default")[1] == out


@pytest.mark.slow
def test_a_loop_that_is_interrupted_ends_as_one_that_was_not(place):
    """The real thing with tiny nets, twice: straight, and with Ctrl-C in a training.

    The faces are none, so nothing is cleaned: the loop ends there and says so.
    """
    results = []
    for name in ("straight", "interrupted"):
        command = [sys.executable, "-m", "jobs.cli", "iterate", str(place / "loop.yaml"),
                   str(place / name), "--data", str(place / "data"), "--held-out",
                   str(place / "held"), "--device", "cpu"]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if name == "interrupted":
            with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
                while not (place / name / "round-0/train/encoder/log.jsonl").exists():
                    time.sleep(0.02)
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=120)
            assert process.returncode == 75
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "nothing to compare" in done.stdout
        assert "rule 2" in done.stderr
        out = place / name
        model = (out / "round-0/train/restorer/model.safetensors").read_bytes()
        results.append((model, (out / "round-0/figures.json").read_bytes()))
    assert results[0] == results[1]
