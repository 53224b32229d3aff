"""What a training run tells its condition of scores, from one sitting to the next."""

import pytest
import yaml
from loop_folder import write_faces

from jobs.training import TrainingJob, read_settings
from jobs.training_run import locked, work
from tests.vsp_model.tiny_idm import SIZE, UNET
from vsp_model.ask import Ask
from vsp_model.checkpoints import load
from vsp_model.train.distributed import Alone
from vsp_model.train.loop import Watcher

BATCH = 2
STAGE = {
    "kind": "idm",
    "model": {"kind": "idm", "unet": UNET | {"condition": {}}, "steps": 4},
    "run": {"num_images": 2 * BATCH, "batch_size": BATCH, "threads": 1},
    "data": {"size": SIZE},
}


class Once(Watcher):
    """Stops a run after a step."""

    def should_stop(self):
        return True


@pytest.fixture
def sitting(tmp_path, one_thread):
    """Train for a while; the run lies in tmp_path / "run"."""
    write_faces(tmp_path / "a.tar", 4, SIZE)
    (tmp_path / "idm.yaml").write_text(yaml.safe_dump(STAGE))
    faces = {"train": [str(tmp_path / "a.tar")]}
    kind, config, data = read_settings("idm", tmp_path / "idm.yaml", faces, ())
    job = TrainingJob("idm", kind, config, data, (), str(tmp_path / "run"), "cpu")

    def run(watcher):
        with locked(job, restart=False):
            return work(job, Alone(), watcher, print)

    return run


def test_a_run_of_before_learns_on_resuming_that_it_has_no_scores(sitting, tmp_path, monkeypatch):
    with monkeypatch.context() as before:  # its checkpoint holds even knots
        before.setattr("jobs.training_run._tell_scores", lambda *_: None)
        assert not sitting(Once()).finished
    assert sitting(Watcher()).finished
    with pytest.raises(ValueError, match="trained without scores"):
        load(tmp_path / "run" / "model.safetensors").settle(Ask(quality=0.9))
