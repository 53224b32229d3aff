"""`vsp iterate`: what its YAML asks of the model that cleans."""

from pathlib import Path

import pytest
import yaml
from loop_folder import SIZE

from jobs.cleaning import CleanEnd
from jobs.iteration import Iteration, load_loop
from jobs.iteration_steps import cleaner_of, cleaning
from pipeline.errors import UserError
from vsp_model.ask import Ask

STAGES = Path(__file__).resolve().parents[2] / "configs" / "train" / "small"
BUILT_IN = ("--model", "iqp", "--set", "stages=[]", "--no-proof")


@pytest.fixture
def wanting(place):
    """Put something below `clean` into the loop's YAML; it begins in line 2."""

    def write(**clean):
        loop = yaml.safe_load((place / "loop.yaml").read_text())
        loop = {"size": loop.pop("size"), "clean": clean, **loop}
        (place / "loop.yaml").write_text(yaml.safe_dump(loop, sort_keys=False))

    return write


@pytest.mark.parametrize(
    ("clean", "line"),
    [
        ({"ask": {"stepz": 5}}, "4: clean.ask: unknown key 'stepz'; did you mean 'steps'?"),
        ({"ask": {"steps": 0}}, "4: clean.ask.steps: Input should be greater"),
        ({"ask": {"steps": 5}}, "3: clean.ask: restorer.yaml: steps: not known to vspbfr models"),
        ({"ask": {"quality": 0.9}}, "3: clean.ask: restorer.yaml: quality: this vspbfr model was"),
        ({"model": "iqp", "ask": {"quality": 2}}, "4: clean.ask: iqp-128.safetensors: quality: 2"),
        ({"model": "none"}, "3: clean.model: none: no such model"),
        ({"set": ["model.ask.steps=5"]}, "3: clean.set: unknown key 'model'; known: align"),
    ],
)
def test_what_no_cleaning_can_do_is_told_before_anything_is_trained(
    iterate, doubles, wanting, clean, line
):
    wanting(**clean)
    code, _, err = iterate()
    assert code == 2
    assert f"loop.yaml:{line}" in err
    assert err.count("\n") == 1
    assert doubles.done == []


def test_a_wish_of_the_command_line_is_named_by_it(iterate, doubles):
    code, _, err = iterate("--set", "clean.ask.fidelity=0.5")
    assert code == 2
    assert "--set clean.ask.fidelity=0.5: clean.ask: restorer.yaml: fidelity: not known" in err


def loop_of(folder, stages, wish, scored=()):
    """A loop of small stages in a folder; those named in ``scored`` have scores."""
    files = []
    for stage in stages:
        values = yaml.safe_load((STAGES / f"{stage}.yaml").read_text())
        values["model"] = str(STAGES / values["model"])
        if stage in scored:
            values["data"]["scores"] = "scores"
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(values))
        files.append({"stage": stage.removesuffix("-quality"), "file": f"{stage}.yaml"})
    path = folder / "loop.yaml"
    path.write_text(yaml.safe_dump({"size": SIZE, "stages": files, "clean": {"ask": wish}}))
    return path


@pytest.mark.parametrize("stage", ["iqp-codes", "iqp-fidelity", "idm"])
def test_the_last_stage_tells_what_its_model_can_do(tmp_path, stage):
    wish = {"steps": 5, "quality": "unknown"} if stage == "idm" else {"fidelity": 0.5}
    path = loop_of(tmp_path, [stage], wish)
    if stage == "iqp-codes":  # fidelity is learnt in the next stage
        with pytest.raises(UserError, match=r"fidelity: this iqp model was .* without stage III"):
            load_loop(path)
    else:
        assert load_loop(path).clean.ask == Ask(**wish)


@pytest.mark.parametrize(
    ("stages", "teacher"),
    [
        (["idm"], "idm"),
        (["restorer-quality"], "restorer-quality"),
        (["iqp-codes"], "iqp-codes"),
        (["iqp-codes", "iqp-fidelity"], "iqp-codes"),
    ],
)
def test_a_quality_needs_scores_where_its_condition_is_trained(tmp_path, stages, teacher):
    wish = {"quality": 0.9}
    others = set(stages) - {teacher}
    with pytest.raises(
        UserError, match=rf"clean\.ask: {teacher}\.yaml: quality: .* without scores"
    ):
        load_loop(loop_of(tmp_path, stages, wish, scored=others))
    assert load_loop(loop_of(tmp_path, stages, wish, scored=[teacher])).clean.ask == Ask(**wish)


def test_the_cleaning_is_asked_and_the_table_says_so(iterate, monkeypatch, place):
    asked = []

    def run_clean(request, flags):
        asked.append(request.ask)
        Path(request.out, "manifest").mkdir(parents=True)
        return CleanEnd(0)

    monkeypatch.setattr("jobs.cleaning.run_clean", run_clean)
    wish = "clean.ask={quality: 0.9, fidelity: 0.2}"
    code, _, err = iterate(*BUILT_IN, "--set", wish, "--only", "round-0/clean")
    assert code == 0, err
    assert asked == [Ask(quality=0.9, fidelity=0.2)]
    loop = load_loop(place / "loop.yaml", ("clean.model=iqp", "stages=[]", "proof=null", wish))
    run = Iteration(loop, str(place / "data"), "", place / "out", "cpu")
    assert cleaner_of(run, cleaning(run, 0)) == "iqp (fidelity 0.2, quality 0.9)"


def test_another_wish_than_before_is_refused_as_another_setting(iterate, doubles):
    assert iterate(*BUILT_IN)[0] == 0
    doubles.done.clear()
    code, _, err = iterate(*BUILT_IN, "--set", "clean.ask.quality=0.9")
    assert code == 2
    assert "round-0/clean: made with other settings" in err
    assert iterate(*BUILT_IN)[0] == 0
    assert doubles.done == []


def test_the_model_that_cleans_for_the_proof_alone_is_asked_nothing(iterate, doubles, monkeypatch):
    asked, clean = {}, doubles.clean

    def noting(run, name, faces, model, ask):
        asked[name] = ask
        return clean(run, name, faces, model, ask)

    monkeypatch.setattr("jobs.iteration_steps.clean", noting)
    doubles.accepted["round-0"] = 0
    sets = ("clean.ask.fidelity=0.5", "stages=[]", "proof.cleaner=vspbfr", "proof.seeds=[0]")
    code, _, err = iterate("--model", "iqp", *(word for s in sets for word in ("--set", s)))
    assert code == 0, err
    assert asked == {"round-0/clean": Ask(fidelity=0.5), "proof/clean": None}
