"""Jobs that go on where they stopped, and stores of arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from perception.datasets.shards import Plan, locked
from perception.datasets.store import Part, Store


def test_a_plan_is_kept_and_other_settings_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "made" / "a.plan.json"
    settings = {"model": "one", "mode": "chain", "seeds": tuple(range(100))}
    Plan(file, settings).begin()
    Plan(file, settings).begin()
    with pytest.raises(ValueError, match="model was 'one' and is 'two'; use those again"):
        Plan(file, {**settings, "model": "two"}).begin()
    with pytest.raises(ValueError, match=r"seeds was \[0, .* \.\. \(390 characters\) and is None"):
        Plan(file, {"model": "one", "mode": "chain"}).begin()
    with pytest.raises(ValueError, match="size was None and is 3"):
        Plan(file, {**settings, "size": 3}).begin()
    file.write_text("{")
    with pytest.raises(ValueError, match=r"a\.plan\.json is not a JSON object"):
        Plan(file, settings).begin()


def test_a_folder_has_one_writer_and_loses_what_a_killed_one_left(tmp_path: Path) -> None:
    left = [tmp_path / ".shard-00000.parquet.0a1b.partial", tmp_path / "images" / ".a.png.0a1b.partial"]
    left[1].parent.mkdir()
    for file in left:
        file.write_text("half")
    with locked(tmp_path):
        assert not any(file.exists() for file in left)
        with pytest.raises(ValueError, match="another process writes"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def squares(number: int) -> Part:
    values = np.arange(3 * number, 3 * number + 3) if number else np.zeros(0, dtype=int)
    return Part({"squares": values[:, None] ** 2}, [{"name": int(v)} for v in values], [f"part {number}"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_holds_the_parts_in_order(tmp_path: Path, workers: int) -> None:
    store = Store.build(tmp_path, {"power": 2}, 3, squares, "squaring", workers)
    assert isinstance(store.arrays["squares"], np.memmap)
    assert store.arrays["squares"][:, 0].tolist() == [v**2 for v in range(3, 9)]
    assert [json.loads(line)["name"] for line in store.lines] == list(range(3, 9)) and len(store) == 6
    assert store.notes == ["part 0", "part 1", "part 2"] and store.settings == {"power": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "rows.jsonl", "squares.npy", "store.json"]


def test_a_finished_store_is_opened_and_not_built_again(tmp_path: Path) -> None:
    Store.build(tmp_path, {"power": 2}, 2, squares, "squaring")

    def never(number: int) -> Part:
        raise AssertionError

    assert len(Store.build(tmp_path, {"power": 2}, 2, never, "squaring")) == 3
    with pytest.raises(ValueError, match="power was 2 and is 3"):
        Store.build(tmp_path, {"power": 3}, 2, never, "squaring")


def test_parts_of_other_settings_are_not_joined(tmp_path: Path) -> None:
    def stop(number: int) -> Part:
        if number == 2:
            raise KeyboardInterrupt
        return squares(number)

    with pytest.raises(KeyboardInterrupt):
        Store.build(tmp_path, {"power": 2}, 3, stop, "squaring")
    with pytest.raises(ValueError, match="not a finished store"):
        Store.open(tmp_path)
    with pytest.raises(ValueError, match="power was 2 and is 3"):
        Store.build(tmp_path, {"power": 3}, 3, squares, "squaring")
    assert len(Store.build(tmp_path, {"power": 2}, 3, squares, "squaring")) == 6


def test_what_a_check_refuses_is_built_anew(tmp_path: Path) -> None:
    def refuse(count: int, notes: object) -> None:
        raise ValueError(f"{count} rows are too few: {notes}")

    with pytest.raises(ValueError, match=r"3 rows are too few: \['part 0', 'part 1'\]"):
        Store.build(tmp_path, {"power": 2}, 2, squares, "squaring", check=refuse)
    assert len(Store.build(tmp_path, {"power": 3}, 2, squares, "squaring")) == 3


def test_damaged_parts_are_made_anew_and_damaged_stores_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[int] = []

    def stop_once(number: int) -> Part:
        made.append(number)
        if number == 2 and made.count(2) == 1:
            raise KeyboardInterrupt
        return squares(number)

    with pytest.raises(KeyboardInterrupt):
        Store.build(tmp_path, {"power": 2}, 3, stop_once, "squaring")
    part = tmp_path / "parts" / "000001.npz"
    part.write_bytes(part.read_bytes()[:-40])
    store = Store.build(tmp_path, {"power": 2}, 3, stop_once, "squaring")
    assert made == [0, 1, 2, 1, 2] and "000001.npz is damaged" in capsys.readouterr().err
    assert store.arrays["squares"][:, 0].tolist() == [v**2 for v in range(3, 9)]
    array = tmp_path / "squares.npy"
    array.write_bytes(array.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is damaged .*delete the folder and build it again"):
        Store.build(tmp_path, {"power": 2}, 3, squares, "squaring")


def test_rows_hold_any_text(tmp_path: Path) -> None:
    rows = ["one\u2028two\x85three"]
    store = Store.build(tmp_path, {}, 1, lambda number: Part({"a": np.zeros(1)}, rows), "writing")
    assert [json.loads(line) for line in store.lines] == rows
