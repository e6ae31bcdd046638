"""Imports every module of the installed package and says how many there are."""

import importlib
import pkgutil

import noisyml

names = [found.name for found in pkgutil.walk_packages(noisyml.__path__, "noisyml.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(f"{len(names)} modules imported")
