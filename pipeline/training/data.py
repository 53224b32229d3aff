"""Which faces a run trains on, and how they are degraded."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pipeline.degradation import FREE_FORM, MIN_SIZE, DegradationConfig

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class DataConfig(BaseModel):
    """Which faces, and how they are degraded.

    Shards are shuffled over the whole set: remote ones are copied to `cache` first, and the same
    global batch comes whatever the number of workers. `streamed` is for sets that no disk holds:
    each worker reads its share of the shards, in an order drawn per epoch, through a buffer. The
    batches then depend on the number of workers.

    Attributes:
        train: Shards of clean, aligned faces: a folder, a pattern, a list.
        validation: Shards that are never trained on; empty for none.
        validation_faces: The first so many of them.
        degradation: What the degraded face is drawn from, with (seed, record, epoch).
        clean_fraction: Faces that are left as they are, so that clean input comes out clean.
        size: Side of the faces in pixels. Smaller pictures are enlarged, down to half of it.
        threads: Threads that prepare faces.
        ahead_steps: Steps that are prepared ahead at most.
        cache: Folder for copies of remote shards, shared by the processes of a machine; nothing
            is ever removed from it. Empty: below `$VSP_SCRATCH`, else the system's temporary one.
        streamed: Read shards one after the other instead of at random.
        shuffle_buffer: Records among which the next one is drawn where shards are streamed.
        scores: Folder of a `vsp score` run over the training shards (s3://... too), which tells
            how good each clean face is; empty where nobody needs to know.
        scorers: Whose scores count, evenly; empty for all there that look at an image alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    validation_faces: Count = 64
    degradation: DegradationConfig = FREE_FORM
    clean_fraction: Fraction = 0.0
    size: Annotated[int, Field(ge=MIN_SIZE)]
    threads: Count = 1
    ahead_steps: Count = 2
    cache: str = ""
    streamed: bool = False
    shuffle_buffer: Count = 2048
    scores: str = ""
    scorers: tuple[str, ...] = ()
