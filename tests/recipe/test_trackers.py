"""MLflow and Weights & Biases, without a network."""

import json
import struct
from pathlib import Path
from unittest.mock import Mock

import pytest
import wandb

from videoattn.engine.trackers import MLflow, Tracker, WeightsAndBiases
from videoattn.recipe.config import Config, DataConfig, TrainConfig
from videoattn.recipe.training import make_trackers

RECORD = {"epoch": 1, "loss": 0.5, "accuracy": None, "name": "x"}


def config_with(*names: str) -> Config:
    return Config(name="tiny", data=DataConfig(root="c"), train=TrainConfig(trackers=names))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


def wandb_records(path: Path) -> list[dict[str, float]]:
    """Returns the numbers in the file of an offline run.

    The file has 7 bytes, and then records: checksum, length, type, content.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    data, start = path.read_bytes(), 7
    while start < len(data):
        length, kind = struct.unpack_from("<HB", data, start + 4)
        assert kind == 1  # a whole record
        record = Record()
        record.ParseFromString(data[start + 7 : start + 7 + length])
        start += 7 + length
        items = {item.key or item.nested_key[0]: item for item in record.history.item}
        numbers = {k: float(v.value_json) for k, v in items.items() if k[:5] in ("train", "_step")}
        found += [numbers] if numbers else []
    return found


def test_mlflow_gets_settings_and_metrics_and_the_same_run_after_a_resume(offline: Path) -> None:
    from mlflow.tracking import MlflowClient

    for step, loss in ((3, 0.5), (6, 0.25)):
        (tracker,) = make_trackers(config_with("mlflow"), offline)
        assert isinstance(tracker, Tracker)
        tracker.write("train", step, RECORD | {"loss": loss})
        tracker.close()
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("videoattn").experiment_id])
    assert run.info.run_name == "tiny"
    assert run.info.status == "FINISHED"
    assert run.data.params["train.batch_size"] == "8"
    assert set(run.data.metrics) == {"train/epoch", "train/loss"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(3, 0.5), (6, 0.25)]
    ids = json.loads((offline / "trackers.json").read_text())
    assert ids == {"mlflow": run.info.run_id}


def test_weights_and_biases_gets_metrics_and_the_same_run_after_a_resume(offline: Path) -> None:
    for step, loss in ((3, 0.5), (6, 0.25)):
        (tracker,) = make_trackers(config_with("wandb"), offline)
        assert isinstance(tracker, Tracker)
        tracker.write("train", step, RECORD | {"loss": loss})
        tracker.close()
        wandb.teardown()  # the process that writes the file ends
        (file,) = offline.glob("wandb/offline-run-*/run-*.wandb")
        numbers = {"train/epoch": 1.0, "train/loss": loss, "_step": float(step)}
        assert wandb_records(file) == [numbers]
        ids = json.loads((offline / "trackers.json").read_text())
        assert ids == {"wandb": file.stem.removeprefix("run-")}
        file.parent.rename(offline / str(step))  # its name has the time in seconds
    assert {path.stem for path in offline.glob("*/*.wandb")} == {file.stem}


def test_errors_of_trackers_name_them(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"train\.trackers: 'wanbd' does not exist \(did you mean"):
        make_trackers(config_with("wanbd"), offline)
    for text in ("[]", '{"mlflow": "../x"}', '{"mlflow": 1.5}'):
        (offline / "trackers.json").write_text(text)
        with pytest.raises(ValueError, match=r"trackers\.json is damaged: need one identifier per"):
            make_trackers(config_with("mlflow"), offline)
    with pytest.raises(OSError, match=r"MLflow \(MLFLOW_TRACKING_URI is .*mlruns\): .*'nowhere'"):
        MLflow("x", {}, run_id="nowhere")
    monkeypatch.setattr("wandb.init", Mock(side_effect=wandb.Error("no API key")))
    with pytest.raises(
        OSError, match=r"Weights & Biases: no API key; to work offline, set WANDB_MODE=offline"
    ):
        WeightsAndBiases("x", {}, run_id=None)
    (offline / "trackers.json").unlink()
    assert make_trackers(config_with(), offline) == []
    assert not (offline / "trackers.json").exists()
