"""Print pyproject.toml's lower bounds as pip constraints: the oldest versions that we promise."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for bound in sum(project["optional-dependencies"].values(), project["dependencies"]):
    if oldest := re.match(r"([\w-]+)(?:\[.*?\])?>=([\d.]+)", bound):
        name, version = oldest.groups()
        exact = version.count(".") > 1
        sys.stdout.write(f"{name}=={version}{'' if exact else '.*'}\n")
