"""Saved networks: what comes back is what was saved, and anything else is refused with a reason."""

import json
import os

import pytest
import torch
from torch import nn

from siren import hashing
from siren.networks import store


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_what_is_loaded_is_what_was_saved(tmp_path, module):
    store.save(tmp_path / "net", module, "toy", {"width": 4}, extra={"licence": "CC0-1.0"})
    config, state = store.load_state(tmp_path / "net", "toy")
    assert config == {"width": 4}
    assert store.read_sidecar(tmp_path / "net")["extra"] == {"licence": "CC0-1.0"}
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors"]


def test_the_same_module_gives_the_same_bytes(tmp_path, module):
    for name in ("a", "b"):
        store.save(tmp_path / name, module, "toy", {"width": 4})
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_weights_that_share_memory_are_saved(tmp_path):
    linear = nn.Linear(2, 2, bias=False)
    store.save(tmp_path, nn.ModuleDict({"a": linear, "b": linear}), "tied", {})
    assert set(store.load_state(tmp_path, "tied")[1]) == {"a.weight", "b.weight"}


def test_tampered_weights_are_refused(tmp_path, module):
    store.save(tmp_path, module, "toy", {})
    data = bytearray((tmp_path / store.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / store.WEIGHTS).write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        store.load_state(tmp_path, "toy")


def test_another_kind_is_refused(tmp_path, module):
    store.save(tmp_path, module, "toy", {})
    with pytest.raises(ValueError, match="holds a network of kind 'toy'; 'codec' was asked for"):
        store.load_state(tmp_path, "codec")


def test_an_empty_folder_a_lost_file_and_a_broken_sidecar_are_refused(tmp_path, module):
    with pytest.raises(ValueError, match="no saved network"):
        store.load_state(tmp_path, "toy")
    store.save(tmp_path, module, "toy", {})
    (tmp_path / store.WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        store.load_state(tmp_path, "toy")
    (tmp_path / store.SIDECAR).write_text(json.dumps({"kind": "toy"}))
    with pytest.raises(ValueError, match="lacks config, extra, sha256"):
        store.load_state(tmp_path, "toy")
    (tmp_path / store.SIDECAR).write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        store.load_state(tmp_path, "toy")


def test_the_fingerprint_sees_values_names_and_shapes():
    a, b = torch.zeros(2, 3), torch.zeros(3, 2)
    one = store.fingerprint({"a": a, "b": b})
    assert one == store.fingerprint({"b": b.clone(), "a": a.clone()})
    assert len({one, store.fingerprint({"a": b, "b": a}), store.fingerprint({"a": a + 1e-7, "b": b})}) == 3
    assert store.fingerprint([a, b]) != store.fingerprint([b, a])
    assert store.fingerprint({"x": torch.zeros(())}) != store.fingerprint({"x": torch.zeros(1)})


def test_a_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path, memory, reads = tmp_path / "shard", tmp_path / ".siren/hashes.json", []
    read = hashing.file_sha256
    monkeypatch.setattr(hashing, "file_sha256", lambda path: reads.append(path) or read(path))

    def hashed() -> tuple[bool, int]:
        return hashing.remembered_sha256(path, memory) == read(path), len(reads)

    path.write_bytes(b"one")
    assert [hashed(), hashed()] == [(True, 1), (True, 1)]
    os.utime(path, ns=(0, 0))  # touched, as a new content of the same length would
    assert hashed() == (True, 2)
    path.write_bytes(b"other")
    assert hashed() == (True, 3)
    memory.write_text("{half")
    assert hashed() == (True, 4)
    assert [p.name for p in memory.parent.iterdir()] == ["hashes.json"]
