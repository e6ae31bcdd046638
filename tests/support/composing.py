"""Composing without reading and preparing again what has not changed, which Hydra does each time.

A command composes its configuration three times, and each time parses and merges some thirty
files: most of the time of a command that is refused. Importing this module keeps the parsed files,
the lists of files that choices lead to, what the files of such a list are merged to, and the
composed configurations. It leaves out the table of choices that Hydra makes beside every defaults
list and reads for interpolations alone, and the composition that finds out whether one file or
another sets ``hydra.mode``, unless a word or a file says so.
"""

import os
import pickle
from pathlib import Path

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

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
        words = (config_name, *overrides, run_mode, *sorted(settings.items()))
        key = (words, state_of(self.repository), os.getcwd())
        if key not in composed:
            composed[key] = pickle.dumps(load(self, config_name, overrides, run_mode, **settings))
        return pickle.loads(composed[key])

    return load_configuration


def keep_lists(create):
    """Let a defaults list be made again only if a choice or a file is another."""
    made = {}
    kept_facts = (
        *("override_choices", "override_metadata", "deletions"),
        *("known_choices", "known_choices_per_group"),
    )

    def create_if_new(repo, config_name, overrides, **settings):
        added = [vars(default) for default in overrides.append_group_defaults]
        facts = {**vars(overrides), "append_group_defaults": added, "config_overrides": None}
        key = repr((config_name, facts, settings, state_of(repo)))
        if key in made:
            result, found = pickle.loads(made[key])
            vars(overrides).update(found)
            return result
        result = create(repo, config_name, overrides, **settings)
        found = {name: getattr(overrides, name) for name in kept_facts}
        made[key] = pickle.dumps((result, found))
        return result

    return create_if_new


def keep_merged(merge):
    """Let a loader merge the files of a defaults list from where a list before was another."""
    kept, passed = {}, set()

    def merge_the_rest(self, defaults, repo):
        state = state_of(repo)
        files = [(d.config_path, d.package, d.is_self, d.primary) for d in defaults]
        keys = [(state, *files[:number]) for number in range(len(files) + 1)]
        start = max((n for n, key in enumerate(keys) if key in kept), default=0)
        parting = max((n for n, key in enumerate(keys) if key in passed), default=0)
        merged = pickle.loads(kept[keys[start]]) if start else OmegaConf.create()
        for end in sorted({parting, len(files)} - set(range(start + 1))):
            try:
                with flag_override(merged, "no_deepcopy_set_nodes", True):
                    for default in defaults[start:end]:
                        merged.merge_with(self._load_single_config(default, repo).config)
            except OmegaConfBaseException:  # Hydra says in which file
                return merge(self, defaults, repo)
            kept[keys[end]] = pickle.dumps(merged)
            start = end
        passed.update(keys)
        strip_defaults(merged)
        return merged

    return merge_the_rest


def strip_defaults(node):
    """Remove the lists that led to the files, as Hydra does after merging."""
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    with flag_override(node, ["readonly", "struct"], False):
        if node._get_flag("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS"):
            node._set_flag("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS", None)
            node.pop("defaults", None)
        for _, value in node.items_ex(resolve=False):
            strip_defaults(value)


def mode_where_set(get_mode):
    """The mode that the configuration sets, or None at once where nothing can set one."""

    def get_mode_if_set(self, config_name, overrides):
        files = [file for folder in folders_of(self.config_loader) for file in files_below(folder)]
        asked = "mode" in " ".join(overrides) or any(b"mode" in file.read_bytes() for file in files)
        return get_mode(self, config_name, overrides) if asked else None

    return get_mode_if_set


def state_of(repository):
    """Where files are found, and an answer that changes when one does."""
    sources = [(source.provider, source.path) for source in repository.get_sources()]
    return (*sources, *map(versions, folders_of(repository)))


def folders_of(repository):
    """Where files are found, the folder of the project left out, which no test changes."""
    sources = repository.get_sources()
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
LIST = defaults_list._create_defaults_list
LOAD, GET_MODE = ConfigLoaderImpl.load_configuration, Hydra.get_mode
MERGE = ConfigLoaderImpl._compose_config_from_defaults_list
OURS = conf_dir()

for source in SOURCES:
    keep_parsed_files(source)
defaults_list._create_interpolation_map = choices_where_interpolated(TABLE)
defaults_list._create_defaults_list = keep_lists(LIST)
ConfigLoaderImpl.load_configuration = keep_composed(LOAD)
ConfigLoaderImpl._compose_config_from_defaults_list = keep_merged(MERGE)
Hydra.get_mode = mode_where_set(GET_MODE)
