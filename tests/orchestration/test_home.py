import pytest

from ldseg.orchestration.home import home


def test_runs_lie_in_a_folder_that_is_made_and_not_at_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("LDSEG_HOME", str(tmp_path / "by-variable"))
    assert home() == tmp_path / "by-variable" and home(tmp_path / "given").is_dir()
    with pytest.raises(ValueError, match="s3://bucket/runs is no folder; runs lie on a file system"):
        home("s3://bucket/runs")
