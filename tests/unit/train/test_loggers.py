import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from strive.configs.load import load_config
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.train.loggers import MetricWriters, require_loggers
from strive.train.processes import start_processes
from strive.train.run_folder import RunFolder


class Deaf:
    """Fails as a logger does whose network has gone."""

    def __init__(self):
        self.calls = 0

    def log(self, step, values):
        self.calls += 1
        raise ConnectionError("no route\nto host")

    def close(self, *, failed):
        self.calls += 1


class Kept:
    def __init__(self):
        self.rows, self.failed = [], None

    def log(self, step, values):
        self.rows.append((step, values))

    def close(self, *, failed):
        self.failed = failed


def test_a_failing_logger_is_said_once_and_stops_nothing(capsys):
    deaf, kept = Deaf(), Kept()
    loggers = MetricWriters(None, {"deaf": deaf, "kept": kept})
    for step in (1, 2, 3):
        loggers.metrics(step, {"reward/mean": step / 2})
    loggers.close(failed=False)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "warning: logger deaf failed at step 1 and gets nothing more (ConnectionError: no route to "
        "host); metrics.jsonl goes on"
    ]
    assert deaf.calls == 1 and kept.failed is False
    assert kept.rows == [(step, {"reward/mean": step / 2}) for step in (1, 2, 3)]


def test_loggers_get_finite_numbers_alone():
    kept = Kept()
    MetricWriters(None, {"kept": kept}).metrics(
        4, {"a": 1, "b": float("nan"), "c": float("inf"), "d": "text"}
    )
    assert kept.rows == [(4, {"a": 1})]


def test_tensorboard_voids_what_came_after_the_checkpoint(tmp_path):
    folder, config = RunFolder(tmp_path), TrainConfig()
    for first_step, values in ((0, {1: 0.1, 2: 0.2, 3: 0.3}), (1, {2: 0.4})):
        with MetricWriters.opened(folder, config, start_processes(), first_step) as writers:
            for step, value in values.items():
                writers.metrics(step, {"reward/mean": value})
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    scalars = [(event.step, round(event.value, 3)) for event in events.Scalars("reward/mean")]
    assert scalars == [(1, 0.1), (2, 0.4)]


def test_a_package_that_is_missing_is_named_with_its_install_line(monkeypatch):
    # What Python itself records for a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "wandb", None)
    require_loggers(["tensorboard"])
    with pytest.raises(ConfigError, match=r"loggers names wandb, which is not installed.*`pip "):
        require_loggers(["tensorboard", "wandb"])


def test_loggers_by_name():
    assert load_config(TrainConfig, overrides=["loggers=[tensorboard, wandb]"]).loggers == (
        "tensorboard",
        "wandb",
    )
    assert load_config(TrainConfig, overrides=["loggers=[]"]).loggers == ()
    with pytest.raises(ConfigError, match=r"'loggers.0' is 'wanb'.*'tensorboard' or 'wandb'"):
        load_config(TrainConfig, overrides=["loggers=[wanb]"])
