import shutil
from pathlib import Path

import artifact_sample
import pytest


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete artifact nobody may change."""
    return artifact_sample.write_sample(tmp_path_factory.mktemp("pristine") / "small.aicc").path


@pytest.fixture
def sample(pristine: Path, tmp_path: Path) -> Path:
    """A complete artifact to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "small.aicc"))
