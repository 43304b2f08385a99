"""What a machine is ready for follows from what was found on it."""

import pytest

from strive import doctor, progress
from strive.commands import house
from strive.doctor import USES, Finding, verdict

FINE = [Finding(what, "ok", "1.0") for what in sorted({w for use in USES.values() for w in use})]


def test_nothing_is_lacking() -> None:
    assert verdict(FINE) == (list(USES), {})


def test_a_gap_stands_in_the_way_of_what_needs_it_alone() -> None:
    lacking = Finding("GPU", "optional", "none", "buy one")
    ready, not_ready = verdict([*(found for found in FINE if found.what != "GPU"), lacking])
    (use,) = not_ready
    assert use.startswith("7B policies") and not_ready[use] == "GPU is lacking"
    assert "the lab and strive-cli demo" in ready
    no_av = [Finding("av", "missing", "No module named 'av'"), *FINE]
    assert verdict(no_av)[1]["precompute"] == "av is lacking (No module named 'av')"
    assert "--decoder torchcodec" in verdict(no_av)[0]


def test_checks_are_told_as_they_begin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = {"first": lambda: iter(FINE[:1]), "second": lambda: iter(FINE[1:3])}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    house.doctor()
    told = capsys.readouterr()
    first, second, *_ = told.err.splitlines()
    assert first.endswith(", first") and second.endswith(", second")
    assert all(finding.what in told.out for finding in FINE[:3])


def test_a_decoder_that_cannot_be_imported_is_optional_and_its_fix_told(monkeypatch) -> None:
    monkeypatch.setattr("strive.video.decoders.torchcodec_import_error", lambda: "no libraries")
    (found,) = doctor.check_torchcodec()
    assert (found.what, found.status) == ("torchcodec", "optional")
    assert "no libraries" in found.found and "pip install torchcodec" in found.fix
