"""Labels of large sets, kept on the disk between runs."""

import os

import numpy as np
import pytest

from jax_advtrain.data import label_cache


@pytest.fixture
def shard(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(label_cache, "LARGE_BYTES", 10)
    path = tmp_path / "train.array_record"
    path.write_bytes(bytes(20))
    return path


class Reader:
    """Labels, and how many were asked for."""

    def __init__(self, labels):
        self.labels, self.asked = np.array(labels), []

    def __call__(self, ids):
        self.asked.append(len(ids))
        return self.labels[ids]


def cached(reader: Reader, shard, key: str = "label", skip: int = 0):
    return label_cache.cached(reader, len(reader.labels), [label_cache.Stretch(str(shard), skip, -1)], key)


def test_all_are_read_once_and_then_come_from_the_disk(shard):
    first, second = Reader([3, 1, 2]), Reader([3, 1, 2])
    labels = cached(first, shard)
    assert not first.asked  # not before they are wanted
    assert labels(np.array([2, 0])).tolist() == [2, 3] and labels(np.array([1])).tolist() == [1]
    assert first.asked == [3]
    assert cached(second, shard)(np.array([0])).tolist() == [3] and not second.asked


def test_other_files_another_feature_or_a_damaged_copy_are_read_anew(shard, tmp_path):
    cached(Reader([3, 1]), shard)(np.array([0]))
    other = Reader([5, 6])
    assert cached(other, shard, key="coarse")(np.array([0])).tolist() == [5]
    half = Reader([6, 4])
    assert cached(half, shard, skip=2)(np.array([0])).tolist() == [6]  # "train[:50%]" and "train[50%:]" share a file
    os.utime(shard, ns=(1, 1))
    changed = Reader([7, 8])
    assert cached(changed, shard)(np.array([1])).tolist() == [8]
    for path in label_cache.folder().iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    again = Reader([9, 9])
    assert cached(again, shard)(np.array([1])).tolist() == [9] and again.asked == [2]
    assert not list(label_cache.folder().glob("*.partial"))


def test_small_sets_are_not_kept(shard, tmp_path, monkeypatch):
    monkeypatch.setattr(label_cache, "LARGE_BYTES", 1000)
    reader = Reader([3, 1])
    assert cached(reader, shard)(np.array([1])).tolist() == [1]
    assert reader.asked == [1] and not (tmp_path / "cache").exists()


def test_where_nothing_can_be_kept_they_are_read_all_the_same(shard, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file in the way")
    reader = Reader([3, 1])
    assert cached(reader, shard)(np.array([1])).tolist() == [1]
    assert "cannot be kept" in caplog.text
