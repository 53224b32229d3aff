from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.config import load, load_model_config, resolve
from pipeline.errors import UserError


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cat(Frozen):
    kind: Literal["cat"]
    lives: int = 9


class Dog(Frozen):
    kind: Literal["dog"]
    tricks: list[str] = []


class Home(Frozen):
    size: int
    pet: Cat | Dog = Field(discriminator="kind")
    name: str = "home"

    @model_validator(mode="after")
    def _big_enough(self):
        if self.size < 0:
            raise ValueError("size must be positive")
        return self


GOOD = "size: 3\npet:\n  kind: cat\n  lives: 7\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path.joinpath("home.yaml").relative_to(tmp_path)

    def read(text, *overrides):
        path.write_text(text)
        return load(path, Home, overrides)

    return read


def test_a_good_file_is_read_and_overridden(home):
    assert home(GOOD) == Home(size=3, pet=Cat(kind="cat", lives=7))
    changed = home(GOOD, "pet.lives=8", "name=den", "size=4")
    assert changed == Home(size=4, pet=Cat(kind="cat", lives=8), name="den")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("szie: 3\n" + GOOD, "home.yaml:1: unknown key 'szie'; did you mean 'size'?"),
        (
            GOOD.replace("lives", "livse"),
            "home.yaml:4: pet: unknown key 'livse'; did you mean 'lives'?",
        ),
        (GOOD + "zzz: 1\n", "home.yaml:5: unknown key 'zzz'; known: name, pet, size"),
        (GOOD.replace("7", "many"), "home.yaml:4: pet.lives: Input should be a valid integer"),
        ("pet:\n  kind: cat\n", "home.yaml: size: Field required"),
        ("size: 3\nsize: 4\n", "home.yaml:2: size: given twice"),
        ("size: [3\n", "home.yaml:2: not valid YAML"),
        ("- 3\n", "home.yaml:1: expected keys and values"),
        ("", "home.yaml:1: expected keys and values"),
        (GOOD.replace("3", "-3"), "home.yaml: size must be positive"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(home, text, message):
    with pytest.raises(UserError) as told:
        home(text)
    assert str(told.value).startswith(message)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pet.livse=3", "--set pet.livse=3: pet: unknown key 'livse'; did you mean 'lives'?"),
        ("size=big", "--set size=big: size: Input should be a valid integer"),
        ("size", "--set size: expected key=value"),
        ("a..b=1", "--set a..b=1: expected key=value"),
        ("name=[", "--set name=[: the value is not valid YAML"),
    ],
)
def test_an_override_goes_through_the_same_checks(home, override, message):
    with pytest.raises(UserError) as told:
        home(GOOD, override)
    assert str(told.value).startswith(message)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="No such file or directory; give"):
        load(tmp_path / "missing.yaml", Home)


def test_several_problems_are_counted():
    with pytest.raises(UserError, match=r"\(and 1 more\)$"):
        resolve({"size": "x", "pet": {"kind": "dog"}, "nmae": 1}, Home)


def test_a_models_file_is_read_and_its_typo_told(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text("model:\n  kind: vspbfr\n  encodre: {}\n")
    with pytest.raises(UserError, match=r"model.yaml:3: model: unknown key 'encodre'; .*'encoder'"):
        load_model_config(path)
    path.write_text("model:\n  kind: vspbfr\n")
    assert load_model_config(path).size == 512
