"""What a package index, a citing reader and CI find: licence, versions, wheels, locks, image."""

import hashlib
import importlib.metadata
import re
import sys
import tomllib
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from support import paths

import noisyml

sys.path.insert(0, str(paths.ROOT / "scripts"))
import build_kernels
import check_wheels
import package_readme

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
LOCK = (paths.ROOT / ".ci" / "constraints.txt").read_text()


def test_the_licence_is_the_one_that_the_metadata_names():
    text = (paths.ROOT / "LICENSE").read_bytes()
    # As the Apache Software Foundation publishes it.
    known = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256(text).hexdigest() == known
    assert PROJECT["license"] == CITATION["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]


def test_one_version_everywhere():
    assert PROJECT["version"] == noisyml.__version__ == CITATION["version"]


def test_the_citation_has_what_its_schema_asks_for():
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    assert CITATION["authors"] == [{"name": one["name"]} for one in PROJECT["authors"]]
    known = {"cff-version", "message", "type", "title", "abstract", "authors", "version"}
    assert set(CITATION) <= known | {"license", "keywords", "date-released", "repository-code"}


def test_the_changelog_has_the_form_it_names():
    text = (paths.ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", one) for one in versions[1:])
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def locked() -> dict[str, str]:
    pairs = [line.split("==") for line in LOCK.splitlines() if not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_ci_installs_locked_versions_that_the_package_allows():
    extras = PROJECT["optional-dependencies"]
    wanted = map(Requirement, [*PROJECT["dependencies"], *extras["dev"], *extras["pretrained"]])
    pinned = locked()
    for requirement in wanted:
        name = requirement.name.lower().replace("_", "-")
        assert name in pinned, f"{name} is not locked: make lock"
        assert requirement.specifier.contains(pinned[name]), f"{requirement}: make lock"
    assert "constraints.txt" in (paths.ROOT / ".ci" / "run").read_text()


def test_the_lock_names_no_address():
    for line in LOCK.splitlines():
        assert line.startswith("# ") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line


def test_faiss_comes_by_extra_alone():
    names = [Requirement(one).name for one in PROJECT["dependencies"]]
    assert not [name for name in names if "faiss" in name]
    extras = PROJECT["optional-dependencies"]
    assert [Requirement(one).name for one in extras["faiss-cpu"]] == ["faiss-cpu"]
    assert [Requirement(one).name for one in extras["faiss-gpu"]] == ["faiss-gpu"]


def test_classifiers_name_the_pythons_that_are_allowed():
    prefix = "Programming Language :: Python :: 3."
    named = [one.removeprefix(prefix) for one in PROJECT["classifiers"] if one.startswith(prefix)]
    assert named == ["11", "12", "13"]
    assert PROJECT["requires-python"] == ">=3.11"


README = """Intro [docs](docs/a.md), [page](https://example.org/x) and [above](#top).
![A curve](docs/b.png)
```bash
x [y](z)
```
`list[int]` (not a link)
"""


def test_the_readme_of_an_index_leads_nowhere_dead():
    alone = package_readme.for_index(README, None)
    assert alone == README.replace("[docs](docs/a.md)", "docs").replace(
        "![A curve](docs/b.png)", "*A curve* (picture in the repository)"
    )
    linked = package_readme.for_index(README, "https://example.org/us/noisyml/")
    assert "[docs](https://example.org/us/noisyml/blob/HEAD/docs/a.md)" in linked
    assert "![A curve](https://example.org/us/noisyml/raw/HEAD/docs/b.png)" in linked
    assert "x [y](z)" in linked


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel without compiled loops, made of the checkout."""
    from hatchling.build import build_wheel

    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(paths.ROOT)
        patch.setenv(build_kernels.PURE, "1")
        return folder / build_wheel(str(folder))


def test_a_pure_wheel_fits_everywhere_and_has_all_files(wheel):
    assert wheel.name == f"noisyml-{noisyml.__version__}-py3-none-any.whl"
    assert check_wheels.faults(wheel) == []
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {
        file.relative_to(paths.ROOT).as_posix()
        for pattern in ("*.py", "*.json", "*.css", "*.j2", "*.c", "*.h", "py.typed")
        for file in (paths.ROOT / "noisyml").rglob(pattern)
    }
    settings = {
        f"noisyml/conf/{file.relative_to(paths.CONF).as_posix()}"
        for file in paths.CONF.rglob("*.yaml")
    }
    assert sources | settings <= names
    assert not [name for name in names if name.endswith(".so")]


def test_what_no_index_takes_is_named(wheel, tmp_path):
    other = tmp_path / "noisyml-0.1.0-py3-none-linux_x86_64.whl"
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(other, "w") as part:
        for name in whole.namelist():
            if "py.typed" not in name and "licenses" not in name:
                content = whole.read(name)
                if name.endswith("METADATA"):
                    content += b"\n[dead](docs/a.md)\n"
                part.writestr(name, content)
        part.writestr("tests/test_x.py", "")
    assert check_wheels.faults(other) == [
        "no index takes linux_x86_64",
        "noisyml/py.typed is missing",
        "the licence is missing",
        "compiled loops and the platform in its name do not go together",
        "tests/test_x.py does not belong in it",
        "the link ](docs/a.md) leads nowhere on an index",
    ]
    named = tmp_path / "noisyml-0.1.0-py3-none-manylinux_2_34_x86_64.whl"
    other.rename(named)
    assert not [fault for fault in check_wheels.faults(named) if "no index" in fault]
    assert check_wheels.main([str(tmp_path)]) == 1
    assert check_wheels.main([str(tmp_path / "nothing")]) == 1


def test_the_metadata_of_the_wheel_is_that_of_the_project(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = f"noisyml-{noisyml.__version__}.dist-info"
        metadata = importlib.metadata.PathDistribution(zipfile.Path(archive, f"{folder}/")).metadata
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "# noisyml" in metadata.get_payload()


def test_the_image_has_a_pinned_base_and_a_user_without_rights():
    lines = (paths.ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    bases = [rest for word, rest in steps if word == "FROM"]
    assert all(re.match(r"python:3\.\d+\.\d+-slim-\w+( AS \w+)?$", base) for base in bases)
    assert ["ENTRYPOINT", '["noisyml"]'] in steps
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["noisyml"]
    after = [word for word, _ in steps][[word for word, _ in steps].index("USER") :]
    assert "RUN" not in after
    assert not any("://" in rest for _, rest in steps)
    copied = [rest.split()[:-1] for word, rest in steps if word == "COPY"]
    for sources in copied:
        for source in sources:
            assert source.startswith(("--from", "/")) or (paths.ROOT / source).exists()
