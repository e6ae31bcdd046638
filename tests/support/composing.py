"""Composing without reading and preparing again what has not changed, which Hydra does each time.

A command composes its configuration three times, and each time parses some thirty files: most of
the time of a command that is refused. Importing this module keeps the parsed files, and leaves out
the table of choices that Hydra makes beside every defaults list and reads for interpolations alone.
"""

import pickle
from pathlib import Path

from hydra._internal import defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins


def keep_parsed_files(source):
    """Let a config source parse a file again only if it is another one."""
    load, parsed = source.load_config, {}

    def load_config(self, config_path):
        file = Path(self.path, self._normalize_file_name(config_path))
        try:
            facts = file.stat()
            version = facts.st_mtime_ns, facts.st_size, facts.st_ino
        except OSError:
            version = None  # in a package, or missing
        key = self.provider, self.path, config_path, version
        if key not in parsed:
            parsed[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(parsed[key])

    source.load_config = load_config


def choices_where_interpolated(make):
    """The table of choices, or None for a list that has no interpolation to look up there."""

    def make_if_needed(overrides, defaults, self_added):
        asked = any(not default.is_self() and default.is_interpolation() for default in defaults)
        return make(overrides, defaults, self_added) if asked else None

    return make_if_needed


# Finding its plugins, Hydra makes the classes anew.
Plugins.instance()
#: Sources of files and of packages with Hydra's own way to load, for the test that compares.
SOURCES = {
    source: source.load_config
    for source in map(SourcesRegistry.instance().resolve, ("file", "pkg"))
}
TABLE = defaults_list._create_interpolation_map

for source in SOURCES:
    keep_parsed_files(source)
defaults_list._create_interpolation_map = choices_where_interpolated(TABLE)
