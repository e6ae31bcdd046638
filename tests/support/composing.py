"""Composing without reading and preparing again what has not changed, which Hydra does each time.

A command composes its configuration three times, and each time parses some thirty files: most of
the time of a command that is refused. Importing this module keeps the parsed files and the composed
configurations, and leaves out the table of choices that Hydra makes beside every defaults list and
reads for interpolations alone, and the composition that finds out whether one file or another sets
``hydra.mode``, unless a word or a file says so.
"""

import os
import pickle
from pathlib import Path

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins

from noisyml.command.config import conf_dir


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


def keep_composed(load):
    """Let a loader compose again only if a word, a file or the working folder is another."""
    composed = {}

    def load_configuration(self, config_name, overrides, run_mode, **settings):
        if "searchpath" in " ".join(overrides):  # files in folders that are not known yet
            return load(self, config_name, overrides, run_mode, **settings)
        sources = [(source.provider, source.path) for source in self.repository.get_sources()]
        words = (config_name, *overrides, run_mode, *sorted(settings.items()))
        key = (words, *sources, *map(versions, folders_of(self)), os.getcwd())
        if key not in composed:
            composed[key] = pickle.dumps(load(self, config_name, overrides, run_mode, **settings))
        return pickle.loads(composed[key])

    return load_configuration


def mode_where_set(get_mode):
    """The mode that the configuration sets, or None at once where nothing can set one."""

    def get_mode_if_set(self, config_name, overrides):
        files = [file for folder in folders_of(self.config_loader) for file in files_below(folder)]
        asked = "mode" in " ".join(overrides) or any(b"mode" in file.read_bytes() for file in files)
        return get_mode(self, config_name, overrides) if asked else None

    return get_mode_if_set


def folders_of(loader):
    """Where a loader finds files, the folder of the project left out, which no test changes."""
    sources = loader.get_sources()
    return [Path(s.path) for s in sources if s.scheme() == "file" and Path(s.path) != OURS]


def files_below(folder):
    """The YAML files of a configuration tree."""
    return sorted(folder.rglob("*.yaml"))


def versions(folder):
    """An answer that changes when a YAML file below a folder does."""
    facts = ((file, file.stat()) for file in files_below(folder))
    return tuple((file, fact.st_mtime_ns, fact.st_size, fact.st_ino) for file, fact in facts)


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
LOAD, GET_MODE = ConfigLoaderImpl.load_configuration, Hydra.get_mode
OURS = conf_dir()

for source in SOURCES:
    keep_parsed_files(source)
defaults_list._create_interpolation_map = choices_where_interpolated(TABLE)
ConfigLoaderImpl.load_configuration = keep_composed(LOAD)
Hydra.get_mode = mode_where_set(GET_MODE)
