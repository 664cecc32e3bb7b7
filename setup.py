"""The packages of the wheel; everything else is in pyproject.toml, which cannot find packages and name one more as well."""

from setuptools import find_packages, setup

setup(
    # The cards stand at the top of the repository and travel inside the package: `models/` is installed as `service/models/`.
    packages=[*find_packages(include=["service*"]), "service.models"],
    package_dir={"service.models": "models"},
)
